"""What `metrics.jsonl` says of a run by now: the figures of its steps and epochs, and how it failed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.protocol.messages import Status
from lockstep.ps.records.metrics import METRICS, EpochRecord, FailureRecord
from lockstep.results.watch.curves import StepColumns, StepLine
from lockstep.results.watch.line_follower import LineFollower


class EpochLine(EpochRecord, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="epoch"):
    """An epoch, as its line has it."""


class FailureLine(FailureRecord, frozen=True, kw_only=True, tag_field="kind", tag="failure"):
    """The end of a run that failed, as its line has it."""


AnyLine = StepLine | EpochLine | FailureLine


@dataclass
class MetricsFile:
    """The figures of one run, read as they come."""

    folder: Path
    steps: StepColumns = field(default_factory=StepColumns)
    #: In order; an epoch that was made again counts as it was made last.
    epochs: list[EpochLine] = field(default_factory=list)
    #: Why the run failed, empty if it has not, or goes on.
    failure: str = ""
    #: Lines that are not what this version writes.
    unread: int = 0
    _follower: LineFollower = field(init=False)
    _decoder: msgspec.json.Decoder[Any] = field(default_factory=lambda: msgspec.json.Decoder(AnyLine))

    def __post_init__(self) -> None:
        self._follower = LineFollower(self.folder / METRICS)

    def read(self) -> tuple[bool, bool]:
        """Read what is new; return whether anything was, and whether there is more to read at once."""
        new = self._follower.read()
        if new.is_restarted:
            self.steps.clear()
            self.epochs.clear()
            self.failure, self.unread = "", 0
        lines = list(self._decoded(new.data))
        steps = [line for line in lines if type(line) is StepLine]
        self.steps.extend(steps)
        if len(steps) < len(lines):
            for line in lines:
                self._add(line)
        elif steps:
            self.failure = ""
        return bool(new.data) or new.is_restarted, new.has_more

    def add_status(self, status: Status) -> None:
        """Add what a server says of its run, for a page without the run's folder: means over the epoch so far."""
        is_new = status.step and (not self.steps.count or status.step - 1 > self.steps["step"][-1])
        if is_new:
            line = StepLine(
                step=status.step - 1,
                epoch=status.epoch,
                loss=status.loss,
                lr=math.nan,
                samples=round(status.images_per_s),
                round_s=1.0,
                accuracy=math.nan if status.accuracy is None else status.accuracy,
                r2=math.nan if status.r2 is None else status.r2,
            )
            self.steps.extend([line])
        for epoch in status.history:
            if epoch.epoch > (self.epochs[-1].epoch if self.epochs else 0):
                self.epochs.append(EpochLine(**msgspec.structs.asdict(epoch), weights_sha256=""))

    def _decoded(self, data: bytes) -> Iterator[AnyLine]:
        try:
            yield from self._decoder.decode_lines(data)
        except msgspec.MsgspecError:
            # Seldom: a newer version's line, or a damaged one. The others count all the same.
            for line in data.splitlines():
                try:
                    yield self._decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self.unread += 1

    def _add(self, line: AnyLine) -> None:
        match line:
            case StepLine():
                self.failure = ""
            case EpochLine():
                self.epochs = [epoch for epoch in self.epochs if epoch.epoch < line.epoch]
                self.epochs.append(line)
            case FailureLine():
                self.failure = line.failure
