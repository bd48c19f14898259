"""The figures of all steps of a run as columns, and curves of a range of them that are as short as a screen is wide."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


class StepLine(msgspec.Struct, frozen=True, tag_field="kind", tag="step"):
    """What is read of a step's line in `metrics.jsonl`; the names are those of `StepRecord`."""

    step: int
    epoch: int
    loss: float
    lr: float
    samples: int
    accuracy: float = float("nan")
    r2: float = float("nan")
    round_s: float = 0.0
    mean_s: float = 0.0
    slowest_s: float = 0.0
    update_s: float = 0.0
    sums_bytes: int = 0
    weights_bytes: int = 0


COLUMNS = StepLine.__struct_fields__

#: What is drawn over the steps; `throughput` is samples per second.
CURVES = ("loss", "accuracy", "r2", "lr", "throughput")


@dataclass
class StepColumns:
    """A column for each field of a step. Steps are in order, without gaps but where a file has one."""

    count: int = 0
    _memory: NDArray[np.float64] = field(default_factory=lambda: np.empty((len(COLUMNS), 1024)))

    def __getitem__(self, name: str) -> Column:
        """Return a column, (count,), valid until the next `extend`."""
        return self._memory[COLUMNS.index(name), : self.count]

    def extend(self, lines: Iterable[StepLine]) -> None:
        """Add steps; one that was made again, after a restart, replaces the old one and all after it."""
        rows = np.array([msgspec.structs.astuple(line) for line in lines], dtype=np.float64)
        if not len(rows):
            return
        # Within one batch, too, the run may have gone back: everything before the last such place is cut off by what
        # comes later.
        backward = np.flatnonzero(np.diff(rows[:, 0]) <= 0)
        for part in np.split(rows, backward + 1):
            self._append(part)

    def _append(self, rows: NDArray[np.float64]) -> None:
        self.count = int(np.searchsorted(self["step"], rows[0, 0]))
        needed = self.count + len(rows)
        if needed > self._memory.shape[1]:
            grown = np.empty((len(COLUMNS), max(needed, 2 * self._memory.shape[1])))
            grown[:, : self.count] = self._memory[:, : self.count]
            self._memory = grown
        self._memory[:, self.count : needed] = rows.T
        self.count = needed

    def clear(self) -> None:
        """Forget all steps."""
        self.count = 0

    def last(self) -> Mapping[str, float]:
        """Return the figures of the last step; empty before the first."""
        return {name: float(self[name][-1]) for name in COLUMNS} if self.count else {}

    def throughput(self, steps: int) -> float:
        """Return the samples per second over the last steps, 0 if that is unknown."""
        seconds = float(self["round_s"][-steps:].sum())
        return float(self["samples"][-steps:].sum()) / seconds if seconds > 0 else 0.0


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
    found: dict[str, list[float | None]] = {"step": _listed(steps[low:high][middles])}
    for name in CURVES:
        values = _values(columns, name)[low:high]
        if not np.isfinite(values).any():
            continue
        with np.errstate(all="ignore"):
            found[name] = _listed(np.add.reduceat(values, edges) / sizes)
            found[f"{name}_min"] = _listed(np.fmin.reduceat(values, edges))
            found[f"{name}_max"] = _listed(np.fmax.reduceat(values, edges))
    return found


def _values(columns: StepColumns, name: str) -> Column:
    if name != "throughput":
        return columns[name]
    seconds = columns["round_s"]
    with np.errstate(all="ignore"):
        return np.asarray(np.where(seconds > 0, columns["samples"] / seconds, np.nan))


def _listed(values: Column) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
