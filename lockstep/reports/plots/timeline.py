"""Plot which worker computed what and when: its share over the run, and every lease of some steps."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.errors import FileFormatError
from common.files.reading import read_regular
from common.files.sanitize import one_line
from lockstep.reports.plots.curves import Floats, RunCurves
from lockstep.reports.plots.style import colour, new_figure, tidy, whole_numbers
from ps.records.ledger import Again, LedgerShare, Line, RunBegun, StepDone, WorkerIn, read_lines
from ps.records.metrics import MOST_LINES_BYTES
from ps.records.run_folder import LEDGER

#: Most characters of the name of a worker.
MOST_NAME = 60


@dataclass(frozen=True)
class ComputedShare:
    """Micro-batches `[lo, hi)` of a step, and the row of the worker that computed them."""

    step: int
    lo: int
    hi: int
    row: int


@dataclass(frozen=True)
class WorkerTimeline:
    """The workers of a run, one row each, and what they computed."""

    #: The name of each worker as it is shown; ranks start again when a run is resumed.
    names: list[str]
    #: Step -> the shares that were used, of the last attempt.
    used: dict[int, list[ComputedShare]]
    #: Shares that were computed or begun, and not used.
    unused: list[ComputedShare]
    micro_batches: int

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


@dataclass
class _Reader:
    names: list[str] = field(default_factory=list)
    used: dict[int, list[ComputedShare]] = field(default_factory=dict)
    unused: list[ComputedShare] = field(default_factory=list)
    #: The row of each rank since the run was last begun or resumed, and how often it was.
    rows: dict[int, int] = field(default_factory=dict)
    begun: int = 0

    def on_line(self, line: Line) -> None:
        match line:
            case RunBegun():
                self.rows = {}
                self.begun += 1
            case WorkerIn(rank=rank):
                self._row(rank, one_line(f"{rank}: {line.host}, pid {line.pid}", MOST_NAME))
            case StepDone(step=step, shares=shares):
                self.used[step] = [self._share(step, share) for share in shares]
            case Again(work="train" | "audit", step=step):
                self.unused.append(ComputedShare(step, line.lo, line.hi, self._row(line.rank, str(line.rank))))
            case _:
                pass

    def _share(self, step: int, entry: LedgerShare) -> ComputedShare:
        # A run in one process has no workers that join.
        return ComputedShare(step, entry.lo, entry.hi, self._row(entry.rank, "this process"))

    def _row(self, rank: int, name: str) -> int:
        if rank not in self.rows:
            self.rows[rank] = len(self.names)
            self.names.append(name if self.begun < 2 else f"{name}, after restart {self.begun - 1}")
        return self.rows[rank]


def read_timeline(folder: Path) -> WorkerTimeline:
    """Return what the workers of a run computed. Raises FileFormatError if its ledger is missing or damaged."""
    path = folder / LEDGER
    try:
        lines = read_lines(read_regular(path, MOST_LINES_BYTES), str(path))
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}") from None
    reader = _Reader()
    for line in lines:
        reader.on_line(line)
    if not reader.used:
        raise FileFormatError(f"{str(path)!r} has no step yet")
    micro_batches = max(share.hi for each in reader.used.values() for share in each)
    return WorkerTimeline(reader.names, reader.used, reader.unused, micro_batches)


#: Bins of steps over the whole run; steps, and most workers, that are shown lease by lease.
BINS, CLOSE_STEPS, MOST_CLOSE_WORKERS = 160, 12, 24

#: The colour of unused shares.
UNUSED = "#D55E00"


def timeline(curves: RunCurves, workers: WorkerTimeline) -> Figure:
    """Return two panels: the whole run, and a few steps in detail."""
    count = len(workers.names)
    height = 1.2 + 0.32 * max(3, min(count, 40))
    figure = new_figure(13.0, 2 * height + 1.0)
    whole, close = figure.subplots(2, 1)
    _whole(whole, curves, workers)
    _close(close, workers)
    return figure


def _whole(axes: Axes, curves: RunCurves, workers: WorkerTimeline) -> None:
    shares, edges = workers.shares(BINS)
    seconds = _seconds_at(curves, edges)
    rows = np.arange(len(workers.names) + 1) - 0.5
    mesh = axes.pcolormesh(seconds, rows, 100 * shares, cmap="Blues", vmin=0, vmax=max(1.0, 100 * float(shares.max())))
    unused = [share for share in workers.unused if share.step in workers.used]
    if unused:
        times = _seconds_at(curves, np.array([share.step for share in unused], dtype=np.float64))
        axes.plot(times, [share.row for share in unused], "x", color=UNUSED, label="computed or begun, not used")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    tidy(axes, title="share of each worker in the micro-batches", x="seconds of training", y="worker")
    axes.grid(visible=False)
    _label_rows(axes, workers)
    axes.figure.colorbar(mesh, ax=axes, label="%", pad=0.01)


def _seconds_at(curves: RunCurves, steps: Floats) -> Floats:
    """Return when steps began, in seconds of training; if times are unknown, steps count as one second each."""
    known = curves.column("step") + 1
    if not curves.seconds[-1] > 0:
        return steps
    times: Floats = np.interp(steps, np.concatenate([[known[0] - 1], known]), np.concatenate([[0.0], curves.seconds]))
    return times


def close_steps(workers: WorkerTimeline) -> list[int]:
    """Return the steps to show in detail: around the first with an unused share, or in the middle."""
    steps = sorted(workers.used)
    unused = [share.step for share in workers.unused if share.step in workers.used]
    at = steps.index(min(unused)) if unused else len(steps) // 2
    first = max(0, min(at - CLOSE_STEPS // 3, len(steps) - CLOSE_STEPS))
    return steps[first : first + CLOSE_STEPS]


def _close(axes: Axes, workers: WorkerTimeline) -> None:
    steps = close_steps(workers)
    shown = set(steps)
    for step in steps:
        for share in workers.used[step]:
            _lease(axes, share, workers.micro_batches, is_used=True)
    for share in workers.unused:
        if share.step in shown:
            _lease(axes, share, workers.micro_batches, is_used=False)
    for step in (*steps, steps[-1] + 1):
        axes.axvline(step, color="#888888", linewidth=0.8)
    tidy(axes, title="leases: which micro-batches of a step each worker computed", x="step", y="worker")
    axes.grid(visible=False)
    axes.set_xlim(steps[0], steps[-1] + 1)
    _label_rows(axes, workers)
    whole_numbers(axes)


def _lease(axes: Axes, share: ComputedShare, micro_batches: int, *, is_used: bool) -> None:
    """Plot micro-batches as a bar in the row of their worker, at their place within the step."""
    left, width = share.step + share.lo / micro_batches, (share.hi - share.lo) / micro_batches
    if is_used:
        axes.barh(share.row, width, left=left, height=0.8, linewidth=0.5, color=colour(share.row), edgecolor="white")
    else:
        axes.barh(share.row, width, left=left, height=0.8, color="none", edgecolor=UNUSED, hatch="////")
    if is_used and width * 8 >= 1 and share.row < MOST_CLOSE_WORKERS:
        text = str(share.lo) if share.hi == share.lo + 1 else f"{share.lo}-{share.hi - 1}"
        axes.text(left + width / 2, share.row, text, ha="center", va="center", fontsize=6.5, color="white")


def _label_rows(axes: Axes, workers: WorkerTimeline) -> None:
    """Label the workers from top to bottom; only some if there are many."""
    count = len(workers.names)
    places = range(0, count, max(1, count // 40))
    axes.set_yticks(list(places), [workers.names[place] for place in places], fontsize="small")
    axes.set_ylim(count - 0.5, -0.5)
