"""The servers that have led a run, and its standbys: `terms.json` in the run's folder."""

from pathlib import Path

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress, Term
from lockstep.ps.records.run_folder import MOST_BYTES

TERMS = "terms.json"

#: Terms that are remembered.
MOST_TERMS = 1000


class LedTerm(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a term."""

    number: int
    #: Drawn by the server that began it.
    server: str
    #: How often that server has resumed the run in this term.
    resumed: int = 0
    #: Steps made by then.
    step: int
    #: The address of the server.
    address: str = ""


class TermHistory(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `terms.json` for a run."""

    #: Drawn when the run began: terms of other runs are not compared.
    run: str = ""
    #: One for each server that has led the run, in order.
    terms: list[LedTerm] = []
    #: The standbys of the last of them, but those that have left in order: one of these may lead the run by now.
    standbys: list[StandbyAddress] = []

    @property
    def last(self) -> Term:
        """The term of the last server."""
        if not self.terms:
            return NO_TERM
        last = self.terms[-1]
        return Term(run=self.run, number=last.number, resumed=last.resumed, server=last.server)

    def begin(self, server: str, *, number: int | None, step: int, address: str = "") -> "TermHistory":
        """Return the history with the term of that number; None: the first, or the last one again."""
        last, is_standby = self.last, address in {one.address for one in self.standbys}
        if number is None and is_standby and self.terms and self.terms[-1].address != address:
            # A standby that was killed after it took over, and before it wrote down its term.
            number = last.number + 1
        is_resumed = number is None and bool(self.terms)
        term = LedTerm(
            number=number or max(1, last.number),
            server=last.server if is_resumed else server,
            resumed=last.resumed + 1 if is_resumed else 0,
            step=step,
            address=address,
        )
        return msgspec.structs.replace(self, run=self.run or server, terms=[*self.terms, term][-MOST_TERMS:])

    def earlier_leader(self, address: str) -> StandbyAddress | None:
        """Return where the last server was that led the run and is not at `address`; None in a run without standbys."""
        known = [term.address for term in self.terms if term.address not in ("", address)]
        if not self.standbys or not known:
            return None
        found = (standby for standby in self.standbys if standby.address == known[-1])
        return next(found, StandbyAddress(address=known[-1]))

    def other_servers(self, own: str, named: tuple[StandbyAddress, ...] = ()) -> tuple[StandbyAddress, ...]:
        """Return the servers that may lead the run besides that at `own`: its standbys, and those before."""
        before = self.earlier_leader(own)
        known = [*named, *self.standbys, *([] if before is None else [before])]
        # Of two with one address, the one whose key is known.
        return tuple(one for one in {each.address: each for each in known}.values() if one.address != own)


def read_terms(folder: Path) -> TermHistory:
    """Return the history of the run in a folder, empty if the file is missing; `FileFormatError` if it is damaged."""
    path = folder / TERMS
    try:
        return decode(read_regular(path, MOST_BYTES), TermHistory)
    except FileNotFoundError:
        return TermHistory()
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected the terms of a run") from error
    except msgspec.MsgspecError as error:
        raise FileFormatError(f"{path}: is not the history of a run's servers: {error}: remove it") from error


def write_terms(folder: Path, history: TermHistory) -> None:
    """Write the history, whole or not at all; raises OSError."""
    write_atomically(folder / TERMS, [msgspec.json.format(msgspec.json.encode(history), indent=2), b"\n"])
