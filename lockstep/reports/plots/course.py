"""A run's figures over its steps, as arrays, from `metrics.jsonl`; draws nothing."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import FileFormatError
from common.files.json_file import convert, decode
from common.files.reading import read_regular
from ps.records.metrics import METRICS, MOST_LINES_BYTES

Floats = NDArray[np.float64]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One training step. Times are missing in the folder of an older version."""

    epoch: int
    step: int
    loss: float
    #: Of a regression None; then there is R².
    accuracy: float | None = None
    r2: float | None = None
    lr: float
    samples: int
    round_s: float = 0.0
    mean_s: float = 0.0
    slowest_s: float = 0.0
    update_s: float = 0.0


class EpochRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch with its evaluation."""

    epoch: int
    test_loss: float
    test_accuracy: float | None = None
    test_r2: float | None = None
    #: In a run with a validation set.
    val_loss: float | None = None
    val_accuracy: float | None = None
    wall_s: float


@dataclass(frozen=True)
class RunCurves:
    """The course of one run, finished or not."""

    name: str
    #: In order; a step that was made again, after a restart, counts as it was made last.
    steps: list[StepRecord]
    epochs: list[EpochRecord]

    def column(self, field: str) -> Floats:
        """Return one figure of all steps, (steps,)."""
        return np.array([getattr(step, field) for step in self.steps], dtype=np.float64)

    @property
    def is_regression(self) -> bool:
        return self.steps[0].accuracy is None

    @cached_property
    def seconds(self) -> Floats:
        """The seconds of training before each step ended, (steps,): evaluations are not counted."""
        return np.cumsum(self.column("round_s"))

    @cached_property
    def ends(self) -> dict[int, int]:
        """The number of steps that were made when each epoch ended."""
        return {step.epoch: step.step + 1 for step in self.steps}


def read_curves(folder: Path) -> RunCurves:
    """Return a run's course; `FileFormatError` where there is none, or a line is damaged."""
    path = folder / METRICS
    try:
        lines = read_regular(path, MOST_LINES_BYTES).split(b"\n")[
            :-1
        ]  # a last line without its end is still being written
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected the folder of a run") from None
    steps, epochs = dict[int, StepRecord](), dict[int, EpochRecord]()
    for number, line in enumerate(lines, 1):
        record = _record(path, number, line)
        if isinstance(record, StepRecord):
            steps[record.step] = record
        elif isinstance(record, EpochRecord):
            epochs[record.epoch] = record
    if not steps:
        raise FileFormatError(f"{str(path)!r} has no step yet: there is nothing to draw")
    return RunCurves(folder.resolve().name, _in_order(steps), _in_order(epochs))


def _in_order(records: dict[int, Any]) -> list[Any]:
    return [records[number] for number in sorted(records)]


def _record(path: Path, number: int, line: bytes) -> StepRecord | EpochRecord | None:
    try:
        raw = decode(line, dict[str, Any])
        kinds: dict[str, type[StepRecord] | type[EpochRecord]] = {"step": StepRecord, "epoch": EpochRecord}
        kind = kinds.get(str(raw.get("kind", "")))
        return None if kind is None else convert(raw, kind)
    except msgspec.MsgspecError as error:
        raise FileFormatError(f"{str(path)!r}: line {number} is no record of a run: {error}") from None


def smoothed(values: Floats, window: int) -> Floats:
    """Return the running mean over so many values before and including each, fewer at the start."""
    window = max(1, min(window, len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))
