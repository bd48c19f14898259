"""The figures of a run over its steps, as arrays from `metrics.jsonl`; plots nothing."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.metrics import METRICS, StepRecord, read_metrics

Floats = NDArray[np.float64]


class RunCurves(msgspec.Struct, frozen=True, dict=True):
    """The figures of one run, finished or not."""

    name: str
    #: In order; of a step that was repeated after a restart, the last attempt.
    steps: list[StepRecord]
    epochs: list[EpochRecord]

    def column(self, field: str) -> Floats:
        """Return one figure of all steps, (steps,)."""
        return np.array([getattr(step, field) for step in self.steps], dtype=np.float64)

    @property
    def is_regression(self) -> bool:
        return self.steps[0].accuracy is None

    @property
    def has_score(self) -> bool:
        """Whether there is an accuracy or an R²."""
        return self.steps[0].accuracy is not None or self.steps[0].r2 is not None

    @cached_property
    def seconds(self) -> Floats:
        """The seconds of training until the end of each step, (steps,), without evaluations."""
        return np.cumsum(self.column("round_s"))

    @cached_property
    def ends(self) -> dict[int, int]:
        """Epoch -> number of steps at its end."""
        return {step.epoch: step.step + 1 for step in self.steps}


def read_curves(folder: Path) -> RunCurves:
    """Return the curves of a run. Raises FileFormatError if it has no step yet, or its metrics are damaged."""
    metrics = read_metrics(folder)
    if not metrics.steps:
        raise FileFormatError(f"{str(folder / METRICS)!r} has no step yet: there is nothing to plot")
    return RunCurves(folder.resolve().name, metrics.steps, metrics.epochs)


def smoothed(values: Floats, window: int) -> Floats:
    """Return the running mean over the last `window` values, fewer at the start."""
    window = max(1, min(window, len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def parts_of(column: Callable[[str], Floats]) -> dict[str, Floats]:
    """Return the four parts of each step in seconds, as `lockstep.ps.run.timing.Split` has those of an average one.

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
