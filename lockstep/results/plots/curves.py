"""The records of a run for plots, which are made elsewhere, and for the event files of TensorBoard.

The figures over its steps are arrays from `metrics.jsonl`; the work of each worker, with its times, is from the ledger.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FailureKind, FileFormatError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import EpochRecord, Status
from lockstep.ps.records.ledger import LedgerShare, Line, RunBegun, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.metrics import METRICS, FailureRecord, Record, StepRecord, read_metrics
from lockstep.ps.records.run_folder import JOB, LEDGER, read_ledger
from lockstep.runs.run_dir import recorded_job

Floats = NDArray[np.float64]


#: The fields of a step that are numbers; its other metrics have columns of their own names.
COLUMNS = tuple(name for name in StepRecord.__struct_fields__ if name != "metrics")


@dataclass
class StepColumns:
    """A column for each number of a step. Steps are in order, without gaps but where a file has one."""

    count: int = 0
    #: Other metrics of the job by name, as they came.
    others: list[str] = field(default_factory=list)
    _memory: dict[str, Floats] = field(default_factory=lambda: {name: np.empty(1024) for name in COLUMNS})

    def __getitem__(self, name: str) -> Floats:
        """Return a column, (count,), valid until the next `extend`; NaN where a step does not have it."""
        return self._memory[name][: self.count]

    def extend(self, records: Iterable[StepRecord]) -> None:
        """Add steps; one that was made again, after a restart, replaces the old one and all after it."""
        part: list[StepRecord] = []
        for record in records:
            if part and record.step <= part[-1].step:
                self._append(part)
                part = []
            part.append(record)
        if part:
            self._append(part)

    def _append(self, records: Sequence[StepRecord]) -> None:
        self.count = int(np.searchsorted(self["step"], records[0].step))
        for name in dict.fromkeys(name for record in records for name in record.metrics or ()):
            if name not in self.others and name not in self._memory:
                self.others.append(name)
                self._memory[name] = np.full(len(self._memory["step"]), np.nan)
        needed = self.count + len(records)
        for name, column in self._memory.items():
            if needed > len(column):
                self._memory[name] = np.empty(max(needed, 2 * len(column)))
                self._memory[name][: self.count] = column[: self.count]
            of = attrgetter(name) if name in COLUMNS else partial(_metric, name)
            # A figure that a run does not have, None, becomes NaN.
            self._memory[name][self.count : needed] = np.array([of(record) for record in records], np.float64)
        self.count = needed

    def last(self) -> Mapping[str, float]:
        """Return the figures of the last step; empty before the first."""
        return {name: float(self[name][-1]) for name in COLUMNS} if self.count else {}

    def mean(self, name: str, steps: int) -> float:
        """Return the mean of a column over the last steps, NaN without steps, or if the run lacks it."""
        return float(self[name][-steps:].mean()) if self.count else math.nan

    def throughput(self, steps: int) -> float:
        """Return the samples per second over the last steps, 0 if that is unknown."""
        seconds = float(self["round_s"][-steps:].sum())
        return float(self["samples"][-steps:].sum()) / seconds if seconds > 0 else 0.0

    def update_before(self, place: int) -> float:
        """Return the seconds of the update before the step at a place, 0 if it is the first of its epoch.

        The update before that came before the evaluation.
        """
        is_follower = place > 0 and self["epoch"][place - 1] == self["epoch"][place]
        return float(self["update_s"][place - 1]) if is_follower else 0.0


def _metric(name: str, record: StepRecord) -> float | None:
    return (record.metrics or {}).get(name)


@dataclass
class RunCurves:
    """The figures in `metrics.jsonl` of a run so far, finished or not."""

    name: str = ""
    #: The loss of its job, empty if that is not known.
    loss: str = ""
    steps: StepColumns = field(default_factory=StepColumns)
    #: In order; an epoch that was made again counts as it was made last.
    epochs: list[EpochRecord] = field(default_factory=list)
    #: Why the run failed, empty if it has not, or goes on; and whether it was only interrupted.
    failure: str = ""
    is_interrupted: bool = False

    def add(self, records: Iterable[Record]) -> None:
        """Add new records."""
        steps = list[StepRecord]()
        for record in records:
            match record:
                case StepRecord():
                    steps.append(record)
                    self.failure = ""
                case EpochRecord():
                    self.epochs = [epoch for epoch in self.epochs if epoch.epoch < record.epoch]
                    self.epochs.append(record)
                case FailureRecord():
                    self.failure = record.failure
                    self.is_interrupted = record.cause in (FailureKind.INTERRUPTED, FailureKind.STOPPED)
        self.steps.extend(steps)

    def add_status(self, status: Status) -> None:
        """Add what a server says of its run, for a page without the run's folder: means over the epoch so far."""
        if status.step and (not self.steps.count or status.step - 1 > self.steps["step"][-1]):
            record = StepRecord(
                step=status.step - 1,
                epoch=status.epoch,
                loss=status.loss,
                lr=math.nan,
                samples=round(status.images_per_s),
                round_s=1.0,
                accuracy=status.accuracy,
                r2=status.r2,
            )
            self.steps.extend([record])
        for epoch in status.history:
            if epoch.epoch > (self.epochs[-1].epoch if self.epochs else 0):
                self.epochs.append(epoch)

    def has(self, field: str) -> bool:
        """Tell whether the run has a figure, by its first step."""
        return not np.isnan(self.steps[field][0])

    @property
    def is_regression(self) -> bool:
        return not self.has("accuracy")

    @property
    def has_score(self) -> bool:
        """True if there is an accuracy or an R²."""
        return self.has("accuracy") or self.has("r2")

    @property
    def seconds(self) -> Floats:
        """The seconds of training until the end of each step, (steps,), without evaluations."""
        return np.cumsum(self.steps["round_s"])

    @property
    def ends(self) -> dict[int, int]:
        """Epoch -> number of steps at its end."""
        lasts = np.flatnonzero(np.diff(self.steps["epoch"], append=np.inf))
        epochs, steps = (self.steps[name][lasts].astype(int).tolist() for name in ("epoch", "step"))
        return {epoch: step + 1 for epoch, step in zip(epochs, steps, strict=True)}


def read_curves(folder: Path, name: str = "") -> RunCurves:
    """Return the curves of a run, by default under the name of its folder.

    Raises FileFormatError if it has no step yet, or its metrics are damaged.
    """
    metrics = read_metrics(folder)
    if not metrics.steps:
        raise FileFormatError(f"{str(folder / METRICS)!r} has no step yet: there is nothing to plot")
    loss = recorded_job(folder).loss if (folder / JOB).exists() else ""
    found = RunCurves(name or folder.resolve().name, loss)
    found.add([*metrics.steps, *metrics.epochs])
    return found


def smoothed(values: Floats, window: int) -> Floats:
    """Return the running mean over the last `window` values, fewer at the start."""
    window = max(1, min(window, len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def parts_of(steps: StepColumns) -> dict[str, Floats]:
    """Return the four parts of each step in seconds, as `Split` has those of an average one."""
    whole, mean, slowest = steps["round_s"], steps["mean_s"], steps["slowest_s"]
    # A step waits for the update of the step before.
    before = np.concatenate([[0.0], steps["update_s"]])[:-1]
    return {
        "compute": mean,
        "exchange": np.maximum(0.0, whole - slowest - before),
        "update": before,
        "waiting": np.maximum(0.0, slowest - mean),
    }


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


#: The suffix of our event files.
SUFFIX = ".lockstep"


def write_events(curves: RunCurves, folder: Path, start: float) -> None:
    """Write the figures of one run into a folder of its own; `start` is its beginning in seconds since 1970.

    Training figures are by step, and evaluations at the number of steps before them. Replaces the files of an earlier
    call, since TensorBoard would draw both as one zigzag line.
    """
    # Imported here, since the extra may not be installed.
    from tensorboardX import SummaryWriter

    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), max_queue=1000, filename_suffix=SUFFIX) as writer:
        seconds, steps = curves.steps["round_s"], curves.steps["step"].astype(int).tolist()
        scores = [name for name in ("accuracy", "r2", *curves.steps.others) if curves.has(name)]
        columns = {
            "loss/train": curves.steps["loss"],
            **{f"{name}/train": curves.steps[name] for name in scores},
            "learning_rate": curves.steps["lr"],
            "throughput/samples_per_s": np.divide(
                curves.steps["samples"], seconds, out=np.zeros(len(steps)), where=seconds > 0
            ),
            **{f"step_ms/{name}": 1e3 * values for name, values in parts_of(curves.steps).items()},
        }
        ended_s = curves.seconds
        for place, step in enumerate(steps):
            for tag, values in columns.items():
                writer.add_scalar(tag, float(values[place]), step, walltime=start + float(ended_s[place]))
        ends = curves.ends
        for epoch in curves.epochs:
            at, after = start + epoch.wall_s, ends.get(epoch.epoch, 0)
            figures = {
                "loss/test": epoch.test_loss,
                **_score("test", epoch.test_accuracy, epoch.test_r2, epoch.of_set("test_")),
            }
            if epoch.val_loss is not None:
                figures |= {
                    "loss/validation": epoch.val_loss,
                    **_score("validation", epoch.val_accuracy, epoch.val_r2, epoch.of_set("val_")),
                }
            for tag, value in figures.items():
                writer.add_scalar(tag, value, after, walltime=at)


def _score(
    part: str, accuracy: float | None, r2: float | None, metrics: Mapping[str, float] | None
) -> dict[str, float]:
    named = {"accuracy": accuracy, "r2": r2, **(metrics or {})}
    return {f"{name}/{part}": value for name, value in named.items() if value is not None}
