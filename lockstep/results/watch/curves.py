"""The figures of a run so far, those of its steps as columns, and curves that are as short as a screen is wide."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import EpochRecord, Status
from lockstep.ps.records.metrics import FailureRecord, Record, StepRecord
from lockstep.results.reports.plots.curves import Floats, StepColumns

#: The curves over the steps; `throughput` is samples per second.
CURVES = ("loss", "accuracy", "r2", "lr", "throughput")


@dataclass
class MetricsFigures:
    """The figures in `metrics.jsonl` of a run so far."""

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
                    self.is_interrupted = record.cause == FailureKind.INTERRUPTED
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


def curves(columns: StepColumns, first: float, last: float, points: int) -> dict[str, list[float | None]]:
    """Return the curves of steps `first` to `last` in at most `points` places.

    Each place stands for as many steps; `step` has the middle one. For each curve there is the mean over these, and
    under the same name with `_min` and `_max` the range, which a mean would hide. Values that are not finite, as
    those that a run does not have, are None.
    """
    steps = columns["step"]
    low, high = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, side="right"))
    count = high - low
    if count <= 0 or points <= 0:
        return {"step": []}
    width = -(-count // points)
    edges = np.arange(0, count, width)
    sizes = np.diff(np.append(edges, count))
    middles = np.minimum(edges + (sizes - 1) // 2, count - 1)
    found: dict[str, list[float | None]] = {"step": _json_numbers(steps[low:high][middles])}
    for name in CURVES:
        values = _values(columns, name)[low:high]
        if not np.isfinite(values).any():
            continue
        with np.errstate(all="ignore"):
            found[name] = _json_numbers(np.add.reduceat(values, edges) / sizes)
            found[f"{name}_min"] = _json_numbers(np.fmin.reduceat(values, edges))
            found[f"{name}_max"] = _json_numbers(np.fmax.reduceat(values, edges))
    return found


def _values(columns: StepColumns, name: str) -> Floats:
    if name != "throughput":
        return columns[name]
    seconds = columns["round_s"]
    with np.errstate(all="ignore"):
        return np.asarray(np.where(seconds > 0, columns["samples"] / seconds, np.nan))


def _json_numbers(values: Floats) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
