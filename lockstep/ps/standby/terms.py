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

#: Places of servers of a run, and how many each of them may give to new standbys while it leads.
PLACES, SHARE = 8000, 20


class LedTerm(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a term."""

    number: int
    #: The name of the server that led the run in it.
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
    #: By address, the place of each server of the run, from 1 on.
    places: dict[str, int] = {}

    @property
    def last(self) -> Term:
        """The term of the last server."""
        if not self.terms:
            return NO_TERM
        last = self.terms[-1]
        return Term(run=self.run, number=last.number, resumed=last.resumed, server=last.server)

    def begin(self, server: str, *, number: int | None, step: int, address: str = "") -> "TermHistory":
        """Return the history with the term of that number; None: the first, or the last one again."""
        if number is None and self.terms and address in self.places and self.terms[-1].address != address:
            # A standby that was killed after it took over, and before it wrote down its term.
            number = next_number(self.places[address], self.last.number)
        resumed = self.last.resumed + 1 if number is None and self.terms else 0
        term = LedTerm(
            number=number or max(1, self.last.number), resumed=resumed, server=server, step=step, address=address
        )
        terms = [*self.terms, term][-MOST_TERMS:]
        history = msgspec.structs.replace(self, run=self.run or server, terms=terms)
        return history if self.terms else history.with_place(address)

    def with_place(self, address: str) -> "TermHistory":
        """Return the history with a place for the server at an address; it keeps the one that it has.

        Each leader gives places that no other server gives: so two that lead at the same time, as one that was cut off
        and its successor, do not give one place to two standbys. A leader that has none left gives the lowest that it
        does not know to be taken.
        """
        if address in self.places:
            return self
        own = self.places.get(self.terms[-1].address, 1) if self.terms else 1
        first = SHARE * own if own > 1 else 1
        taken, mine = set(self.places.values()), range(first, min(SHARE * (own + 1), PLACES))
        place = next(one for one in (*mine, *range(1, PLACES)) if one not in taken)
        return msgspec.structs.replace(self, places={**self.places, address: place})

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


def next_number(place: int, seen: int) -> int:
    """Return the lowest number of a term above one that was seen, among those of a place."""
    return seen + 1 + (place - seen - 1) % PLACES


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
