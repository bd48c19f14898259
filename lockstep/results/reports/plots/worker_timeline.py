"""The work of each worker of a run, with its times, from the ledger; plots nothing."""

from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.files.sanitize import one_line
from lockstep.ps.records.ledger import LedgerShare, Line, RunBegun, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.run_folder import LEDGER, read_ledger

#: Most characters of the name of a worker.
MOST_NAME = 60


class ComputedShare(msgspec.Struct, frozen=True):
    """Micro-batches `[lo, hi)` of a step, and the row of the worker that computed them."""

    step: int
    lo: int
    hi: int
    row: int
    #: When they were leased and when the result came, in seconds from the begin of the step; None if that is unknown.
    began_s: float | None = None
    ended_s: float | None = None

    def named(self) -> str:
        """Return the micro-batches as a short label, first to last."""
        return str(self.lo) if self.hi == self.lo + 1 else f"{self.lo}-{self.hi - 1}"


@dataclass
class WorkerTimeline:
    """The workers of a run, one row each, and what they computed."""

    #: The name of each worker as it is shown; ranks start again when a run is resumed.
    names: list[str] = field(default_factory=list)
    #: Step -> the shares that were used, of the last attempt.
    used: dict[int, list[ComputedShare]] = field(default_factory=dict)
    #: Shares that were computed or begun, and not used.
    unused: list[ComputedShare] = field(default_factory=list)
    #: The row of each rank, and process if its team says which, since the run was last begun or resumed, and how often
    #: it was.
    _rows: dict[tuple[int, int | None], int] = field(default_factory=dict)
    #: The host of each team.
    _teams: dict[int, str] = field(default_factory=dict)
    _begun: int = 0

    @property
    def micro_batches(self) -> int:
        """Those of a step."""
        return max(share.hi for shares in self.used.values() for share in shares)

    def shares(self, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the share of each worker per bin of steps, (workers, bins), and the edges of the bins."""
        steps = sorted(self.used)
        edges = np.linspace(steps[0], steps[-1] + 1, min(bins, len(steps)) + 1)
        counts = np.zeros((len(self.names), len(edges) - 1))
        for step in steps:
            place = min(int(np.searchsorted(edges, step, side="right")) - 1, counts.shape[1] - 1)
            for share in self.used[step]:
                counts[share.row, place] += share.hi - share.lo
        return counts / np.maximum(1.0, counts.sum(axis=0)), edges

    def add(self, line: Line) -> None:
        """Add what a line of the ledger says."""
        match line:
            case RunBegun():
                self._rows, self._teams = {}, {}
                self._begun += 1
            case WorkerIn(processes=1):
                self._row(line.rank, None, one_line(f"{line.rank}: {line.host}, pid {line.pid}", MOST_NAME))
            case WorkerIn(rank=rank):
                self._teams[rank] = one_line(line.host, MOST_NAME)
            case StepDone(step=step, shares=shares):
                known = len(line.processes) == len(shares)
                processes = line.processes if known else repeat(None)
                self.used[step] = list(map(self._share, repeat(step), shares, processes))
            case UnusedWork(work="train" | "audit", step=step):
                row = self._row(line.rank, None, str(line.rank))
                self.unused.append(ComputedShare(step, line.lo, line.hi, row, line.began_s, line.ended_s))
            case _:
                pass

    def _share(self, step: int, entry: LedgerShare, process: int | None) -> ComputedShare:
        host = self._teams.get(entry.rank)
        number = f"{entry.rank}" if process is None else f"{entry.rank}.{process}"
        # A run in one process has no workers that join; a team does not always say which of its processes it was.
        row = self._row(entry.rank, process, "this process" if host is None else f"{number}: {host}")
        return ComputedShare(step, entry.lo, entry.hi, row, entry.began_s, entry.ended_s)

    def _row(self, rank: int, process: int | None, name: str) -> int:
        key = rank, process
        if key not in self._rows:
            self._rows[key] = len(self.names)
            self.names.append(name if self._begun < 2 else f"{name}, after restart {self._begun - 1}")
        return self._rows[key]


def read_timeline(folder: Path) -> WorkerTimeline:
    """Return what the workers of a run computed. Raises FileFormatError if its ledger is missing or damaged."""
    workers = WorkerTimeline()
    for line in read_ledger(folder):
        workers.add(line)
    if not workers.used:
        raise FileFormatError(f"{str(folder / LEDGER)!r} has no step yet")
    return workers
