"""Who computed which micro-batches of which step, from the ledger; draws nothing."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import FileFormatError
from common.files.reading import read_regular
from common.files.sanitize import one_line
from ps.records.ledger import Again, LedgerShare, Line, RunBegun, StepDone, WorkerIn, read_lines
from ps.records.metrics import MOST_LINES_BYTES
from ps.records.run_folder import LEDGER

#: Characters of a worker's name in a picture.
MOST_NAME = 60


@dataclass(frozen=True)
class Given:
    """Micro-batches `[lo, hi)` of a step, and the row of the worker that computed them."""

    step: int
    lo: int
    hi: int
    row: int


@dataclass(frozen=True)
class Attendance:
    """The workers of a run, a row each, and what they did."""

    #: How a person is told of each worker; ranks count anew when a run goes on after a restart.
    names: list[str]
    #: What was used, by step: a step that was made again counts as it was made last.
    used: dict[int, list[Given]]
    #: What was computed, or begun, in vain.
    vain: list[Given]
    micro_batches: int

    def shares(self, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each worker's part of the micro-batches in runs of steps, (workers, bins), and the bins' edges."""
        steps = sorted(self.used)
        edges = np.linspace(steps[0], steps[-1] + 1, min(bins, len(steps)) + 1)
        counts = np.zeros((len(self.names), len(edges) - 1))
        for step in steps:
            place = min(int(np.searchsorted(edges, step, side="right")) - 1, counts.shape[1] - 1)
            for given in self.used[step]:
                counts[given.row, place] += given.hi - given.lo
        return counts / np.maximum(1.0, counts.sum(axis=0)), edges


@dataclass
class _Reader:
    names: list[str] = field(default_factory=list)
    used: dict[int, list[Given]] = field(default_factory=dict)
    vain: list[Given] = field(default_factory=list)
    #: The row of each rank since the run was last taken up, and how often it was.
    rows: dict[int, int] = field(default_factory=dict)
    begun: int = 0

    def read(self, line: Line) -> None:
        match line:
            case RunBegun():
                self.rows = {}
                self.begun += 1
            case WorkerIn(rank=rank):
                self._row(rank, one_line(f"{rank}: {line.host}, pid {line.pid}", MOST_NAME))
            case StepDone(step=step, shares=shares):
                self.used[step] = [self._given(step, share) for share in shares]
            case Again(work="train" | "audit", step=step):
                self.vain.append(Given(step, line.lo, line.hi, self._row(line.rank, str(line.rank))))
            case _:
                pass

    def _given(self, step: int, share: LedgerShare) -> Given:
        # A run in one process has no workers that come in.
        return Given(step, share.lo, share.hi, self._row(share.rank, "this process"))

    def _row(self, rank: int, name: str) -> int:
        if rank not in self.rows:
            self.rows[rank] = len(self.names)
            self.names.append(name if self.begun < 2 else f"{name}, after restart {self.begun - 1}")
        return self.rows[rank]


def read_attendance(folder: Path) -> Attendance:
    """Return who computed what in a run; `FileFormatError` where the folder has no ledger, or a damaged one."""
    path = folder / LEDGER
    try:
        lines = read_lines(read_regular(path, MOST_LINES_BYTES), str(path))
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}") from None
    reader = _Reader()
    for line in lines:
        reader.read(line)
    if not reader.used:
        raise FileFormatError(f"{str(path)!r} has no step yet")
    micro_batches = max(given.hi for each in reader.used.values() for given in each)
    return Attendance(reader.names, reader.used, reader.vain, micro_batches)
