"""Which servers have led a run, and what each of them kept of its records: `terms.json` in the run's folder.

A server that resumes a run cuts its files of lines at a checkpoint. Whoever has mirrored them finds here how many of
their first bytes are still the same.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress, Term
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.run_folder import LEDGER, MOST_BYTES

TERMS = "terms.json"

#: Terms that are remembered: who has mirrored nothing since an earlier one begins again.
MOST_TERMS = 1000


class LedTerm(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a term."""

    number: int
    #: The name of the server that led the run in it.
    server: str
    #: Steps made by then.
    step: int
    #: Bytes of `metrics.jsonl` and of `ledger.jsonl` that were kept.
    metrics_bytes: int
    ledger_bytes: int
    #: Where the server was reached.
    address: str = ""


class TermHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What `terms.json` says about a run."""

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
        return Term(run=self.run, number=self.terms[-1].number, server=self.terms[-1].server)

    def begin(
        self, server: str, *, least: int, step: int, metrics_bytes: int, ledger_bytes: int, address: str = ""
    ) -> "TermHistory":
        """Return the history with a new term, whose number is above all before, and at least `least`."""
        term = LedTerm(
            number=max(least, self.last.number + 1),
            server=server,
            step=step,
            metrics_bytes=metrics_bytes,
            ledger_bytes=ledger_bytes,
            address=address,
        )
        terms = [*self.terms, term][-MOST_TERMS:]
        return TermHistory(run=self.run or server, terms=terms, standbys=self.standbys)

    def earlier_leader(self, address: str) -> StandbyAddress | None:
        """Return where the last server was that led the run and is not at `address`; None in a run without standbys."""
        known = [term.address for term in self.terms if term.address not in ("", address)]
        if not self.standbys or not known:
            return None
        found = (standby for standby in self.standbys if standby.address == known[-1])
        return next(found, StandbyAddress(address=known[-1]))

    def kept(self, since: Term) -> Mapping[str, int]:
        """Return how many first bytes of each file of lines are as they were in an earlier term; none if unknown."""
        at = next((at for at, term in enumerate(self.terms) if (term.number, term.server) == _name(since)), None)
        if at is None or since.run != self.run:
            return {METRICS: 0, LEDGER: 0}
        later = self.terms[at + 1 :]
        return {
            METRICS: min((term.metrics_bytes for term in later), default=2**62),
            LEDGER: min((term.ledger_bytes for term in later), default=2**62),
        }


def _name(term: Term) -> tuple[int, str]:
    return term.number, term.server


def read_terms(folder: Path) -> TermHistory:
    """Return the history of the run in a folder, empty if there is none; `FileFormatError` if it is damaged."""
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
