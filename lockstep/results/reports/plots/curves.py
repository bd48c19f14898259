"""The figures of a run over its steps, as arrays from `metrics.jsonl`; plots nothing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.metrics import METRICS, StepRecord, read_metrics

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


def _metric(name: str, record: StepRecord) -> float | None:
    return (record.metrics or {}).get(name)


class RunCurves(msgspec.Struct, frozen=True, dict=True):
    """The figures of one run, finished or not."""

    name: str
    steps: StepColumns
    epochs: list[EpochRecord]

    def column(self, field: str) -> Floats:
        """Return one figure of all steps, (steps,)."""
        return self.steps[field]

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

    @cached_property
    def seconds(self) -> Floats:
        """The seconds of training until the end of each step, (steps,), without evaluations."""
        return np.cumsum(self.column("round_s"))

    @cached_property
    def ends(self) -> dict[int, int]:
        """Epoch -> number of steps at its end."""
        epochs, steps = (self.column(name).astype(int).tolist() for name in ("epoch", "step"))
        return {epoch: step + 1 for epoch, step in zip(epochs, steps, strict=True)}


def read_curves(folder: Path) -> RunCurves:
    """Return the curves of a run. Raises FileFormatError if it has no step yet, or its metrics are damaged."""
    metrics = read_metrics(folder)
    if not metrics.steps:
        raise FileFormatError(f"{str(folder / METRICS)!r} has no step yet: there is nothing to plot")
    steps = StepColumns()
    steps.extend(metrics.steps)
    return RunCurves(folder.resolve().name, steps, metrics.epochs)


def smoothed(values: Floats, window: int) -> Floats:
    """Return the running mean over the last `window` values, fewer at the start."""
    window = max(1, min(window, len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def parts_of(column: Callable[[str], Floats]) -> dict[str, Floats]:
    """Return the four parts of each step in seconds, as `lockstep.ps.run.progress.Split` has those of an average one.

    `column` returns one figure of all steps, in their order.
    """
    whole, mean, slowest = column("round_s"), column("mean_s"), column("slowest_s")
    # A step waits for the update of the step before.
    before = np.concatenate([[0.0], column("update_s")])[:-1]
    return {
        "compute": mean,
        "exchange": np.maximum(0.0, whole - slowest - before),
        "update": before,
        "waiting": np.maximum(0.0, slowest - mean),
    }
