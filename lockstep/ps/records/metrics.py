"""The lines of `metrics.jsonl`: the one schema of a run's figures by step and epoch, with its writer and reader."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.run.progress import StepTime

METRICS = "metrics.jsonl"

#: Bytes of a file of lines: a step takes some hundred.
MOST_LINES_BYTES = 2**33


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="step"):
    """One training step."""

    #: The epoch that the step belongs to, from 1.
    epoch: int
    #: The number of the step in the run, from 0.
    step: int
    #: The mean over its training samples.
    loss: float
    #: The share of its training samples that the model gets right; a regression has R² instead.
    accuracy: float | None = None
    #: R² over its training samples, in a regression.
    r2: float | None = None
    #: Its other metrics by name, if the job has any.
    metrics: dict[str, float] | None = None
    #: The learning rate of its update.
    lr: float
    #: Its training samples: the global batch, or the rest of an epoch.
    samples: int
    #: Seconds from the last result of the step before to its own last result.
    round_s: float = 0.0
    #: Seconds of computing in it, as the mean over the workers that might have been given work.
    mean_s: float = 0.0
    #: Seconds of computing of the worker that has the most.
    slowest_s: float = 0.0
    #: Seconds of the update.
    update_s: float = 0.0
    #: Bytes of sums that crossed sockets since the step before.
    sums_bytes: int = 0
    #: Bytes of weights that crossed sockets since the step before.
    weights_bytes: int = 0

    def time(self) -> StepTime:
        """Return the times without the update."""
        return StepTime(round_s=self.round_s, mean_s=self.mean_s, slowest_s=self.slowest_s)


class FailureRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="failure"):
    """The end of a run that failed."""

    #: Why the run failed.
    failure: str
    #: The number of updates behind the weights that were kept.
    weights_after_steps: int
    #: The kind of failure, as `interrupted` or `diverged`.
    cause: str | None = None


Record = StepRecord | EpochRecord | FailureRecord


def encode_record(record: Record) -> bytes:
    """Return the line of a record, without its end; figures that the run does not have are left out."""
    figures = msgspec.to_builtins(record)
    return msgspec.json.encode({name: value for name, value in figures.items() if value is not None})


class RunMetrics(msgspec.Struct, frozen=True):
    """The figures of a run, finished or not."""

    #: In order; a step that was made again, after a restart, counts as it was made last.
    steps: list[StepRecord]
    epochs: list[EpochRecord]


def read_metrics(folder: Path) -> RunMetrics:
    """Return the figures in a run's folder; `FileFormatError` if there is no file or a line is damaged."""
    path = folder / METRICS
    try:
        # A last line without its end is still being written.
        lines = read_regular(path, MOST_LINES_BYTES).split(b"\n")[:-1]
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected the folder of a run") from None
    steps, epochs = dict[int, StepRecord](), dict[int, EpochRecord]()
    for number, line in enumerate(lines, 1):
        record = _record(path, number, line)
        if isinstance(record, StepRecord):
            steps[record.step] = record
        elif isinstance(record, EpochRecord):
            epochs[record.epoch] = record
    return RunMetrics([steps[step] for step in sorted(steps)], [epochs[epoch] for epoch in sorted(epochs)])


def _record(path: Path, number: int, line: bytes) -> Record | None:
    try:
        record: Record = decode(line, Record)
        return record
    except msgspec.MsgspecError as error:
        with suppress(msgspec.MsgspecError):
            # Another kind of line is one of a newer version.
            if decode(line, dict[str, Any]).get("kind", "") not in ("step", "epoch", "failure"):
                return None
        raise FileFormatError(f"{str(path)!r}: line {number} is not a record of a run: {error}") from None
