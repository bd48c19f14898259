"""What becomes of the results of a worker that computes wrongly: which of them may be wrong, and where to go back to.

An audit shows that a result is right, and nothing of the results before and after it: a worker may compute wrongly now
and then. So all results of such a worker are in doubt that no audit has confirmed, and the weights from the first of
them on.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import read_regular
from lockstep.ps.records.ledger import (
    AUDITED,
    Line,
    ResultInDoubt,
    RunBegun,
    StepDone,
    UnusedWork,
    WorkerConvicted,
    WorkerIn,
    read_lines,
)
from lockstep.ps.records.metrics import MOST_LINES_BYTES

#: Who was evicted from a run for good: entries of its ledger, whose own is cut off when the run goes back.
CONVICTIONS = "convictions.jsonl"

#: Most results that are named one by one.
MOST_RESULTS = 1000


class Doubt(msgspec.Struct, frozen=True):
    """The accepted results of a worker that no audit has confirmed, in the order of steps."""

    results: Sequence[ResultInDoubt]
    #: Those of steps after the last one of which an audit found a result of it right, or it confirmed another one's.
    since: Sequence[ResultInDoubt]

    @property
    def first(self) -> int | None:
        """The step of the first of them: the weights before it do not depend on any. None if there are none."""
        return self.results[0].step if self.results else None


def doubt_of(lines: Sequence[Line], identities: Collection[str]) -> Doubt:
    """Return which accepted results of workers with these identities are in doubt, by a run's ledger."""
    # The entries of an audit come before that of its step.
    agreed = {
        (line.step, line.lo)
        for line in lines
        if isinstance(line, UnusedWork) and line.work == "audit" and line.why == AUDITED
    }
    mine: set[int] = set()
    results: list[ResultInDoubt] = []
    last_agreed = -1
    for line in lines:
        match line:
            case RunBegun():
                mine = set()
            case WorkerIn():
                mine = mine - {line.rank} | ({line.rank} if line.identity in identities else set())
            case UnusedWork(work="audit", why=why, rank=rank, step=step) if why == AUDITED and rank in mine:
                last_agreed = max(last_agreed, step)
            case StepDone():
                for share in line.shares:
                    if share.rank not in mine:
                        continue
                    # One that is audited is a result by itself.
                    if (line.step, share.lo) in agreed and share.hi == share.lo + 1:
                        last_agreed = max(last_agreed, line.step)
                    else:
                        results.append(ResultInDoubt(line.step, share.lo, share.hi))
            case _:
                pass
    return Doubt(results, [result for result in results if result.step > last_agreed])


def read_convictions(folder: Path) -> list[WorkerConvicted]:
    """Return who was evicted from a run for good; `FileFormatError` if the file is damaged."""
    path = folder / CONVICTIONS
    try:
        lines = read_lines(read_regular(path, MOST_LINES_BYTES), str(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected who was evicted") from error
    return [line for line in lines if isinstance(line, WorkerConvicted)]


def keep_convictions(folder: Path, convicted: Sequence[WorkerConvicted]) -> None:
    """Write who was evicted for good, whole or not at all. Raises OSError."""
    write_atomically(folder / CONVICTIONS, [msgspec.json.encode(one) + b"\n" for one in convicted])
