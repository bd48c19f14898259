"""Takes a run's checkpoints while it runs: when they are due, and their contents. If that fails, the run does not.

On a full disk the checkpoint is taken when there is room again, for which the run waits.

If epochs are shorter than the time to write a checkpoint allows, that of the best epoch stays in memory, until the next
one is due or the run ends. A process that is killed loses it, and all later steps with it: the best epoch comes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import asdict

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Vector
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.notice import warning
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder, CheckpointIdentity, RunProgress, sealed_parts
from lockstep.ps.records.ledger import WeightsAt
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.records.run_folder import RunFolder
from lockstep.ps.run.progress import Progress

#: The share of a run's time, one in so many, that checkpoints of epochs may take.
SPARING = 50

#: Bytes of a checkpoint besides its vectors, generously.
MORE_BYTES = 2**16

#: The contents of a checkpoint: the progress, the weights and the optimizer's slots.
Snapshot = tuple[RunProgress, Vector, Mapping[str, Vector]]


@dataclass
class CheckpointSchedule:
    """The times of checkpoints: every so many steps or seconds, and at the end of each epoch."""

    #: None: not by steps.
    every_steps: int | None = None
    every_s: float = 60.0
    #: Steps made, and the time in seconds, at the last checkpoint or at the beginning.
    last_steps: int = 0
    last_s: float = 0.0
    #: Seconds that the last checkpoint took.
    cost_s: float = 0.0

    def is_due(self, steps: int, now: float, *, ends_epoch: bool) -> bool:
        """Tell whether to write one after so many steps."""
        if self.every_steps is not None and steps // self.every_steps > self.last_steps // self.every_steps:
            return True
        # An epoch may take a millisecond, and a disk ten to write it: then not every epoch has a checkpoint.
        wait = SPARING * self.cost_s if ends_epoch else self.every_s
        return now - self.last_s >= wait

    def next_due(self) -> tuple[int | None, float]:
        """Return after how many steps, and when, one is due if no epoch ends before."""
        every = self.every_steps
        steps = None if every is None else (self.last_steps // every + 1) * every
        return steps, self.last_s + self.every_s

    def record_taken(self, steps: int, began: float, ended: float) -> None:
        """Record a checkpoint, or the attempt at one."""
        self.last_steps, self.last_s, self.cost_s = steps, ended, ended - began


class WeightsHolder(Protocol):
    """Has the weights and the optimizer's slots, as a shard does."""

    updates: int

    @property
    def weights(self) -> Vector: ...
    @property
    def state(self) -> Mapping[str, Vector]: ...


@dataclass
class Checkpointer:
    """One run's checkpoints."""

    recorder: MetricsRecorder
    #: The recorder's.
    run: RunFolder
    folder: CheckpointFolder
    schedule: CheckpointSchedule
    clock: Clock
    #: Steps and epochs at the last call of `take_if_due`.
    seen: tuple[int, int] = (0, 0)
    #: Whether the disk had no room for the last one.
    is_owed: bool = False
    #: A copy for the checkpoint of the best epoch, if that is not written yet.
    pending: Snapshot | None = None
    #: A larger one is written at once.
    most_pending_bytes: int = 2**26

    def take_if_due(self, holder: WeightsHolder, progress: Progress) -> None:
        """Take a checkpoint if one is due. To be called after each event, when its effects are done."""
        at = (holder.updates, len(self.recorder.history))
        if at == self.seen:
            return
        ends_epoch, self.seen = at[1] > self.seen[1], at
        is_best = ends_epoch and self.best() == holder.updates
        is_due = self.schedule.is_due(holder.updates, self.clock.now(), ends_epoch=ends_epoch)
        if is_due or (is_best and bytes_of(holder.weights, holder.state) > self.most_pending_bytes):
            self.take(holder, progress)
        elif is_best and self.folder.keep and self._agrees(holder, progress):
            slots = {name: slot.copy() for name, slot in holder.state.items()}
            self.pending = self._progress(progress, self.clock.now()), holder.weights.copy(), slots

    def take(self, holder: WeightsHolder, progress: Progress) -> bool:
        """Take a checkpoint now; return whether there is one of these steps.

        After an interrupt the records may be incomplete: then no checkpoint is taken.
        """
        if not self.folder.keep or not self._agrees(holder, progress):
            return False
        began = self.clock.now()
        self.keep_best()
        self.recorder.add_entries(WeightsAt(step=progress.steps, weights_sha256=weights_digest(holder.weights)))
        is_kept = self._save((self._progress(progress, began), holder.weights, holder.state))
        self.is_owed = not is_kept and self.run.room.is_lacking
        self.schedule.record_taken(holder.updates, began, self.clock.now())
        return is_kept

    def _agrees(self, holder: WeightsHolder, progress: Progress) -> bool:
        recorder = self.recorder
        return progress.steps == holder.updates == recorder.steps and len(progress.history) == len(recorder.history)

    def keep_best(self) -> None:
        """Write the checkpoint of the best epoch if only memory has it, and the current weights are other ones."""
        if self.pending is not None and self.pending[0].steps == self.best() != self.recorder.steps:
            self._save(self.pending)
            if self.run.room.is_lacking:
                return  # it is tried again with that of the current weights
        self.pending = None

    def _progress(self, progress: Progress, now: float) -> RunProgress:
        recorder = self.recorder
        return RunProgress(
            **progress.totals(),
            **asdict(progress.epoch),
            is_evaluated=bool(recorder.history) and recorder.ends_at(recorder.history[-1].epoch) == progress.steps,
            history=list(recorder.history),
            elapsed_s=progress.elapsed(now),
            wall_s=now - recorder.setting.started,
            metrics_bytes=self.run.metrics.size(),
            ledger_bytes=self.run.ledger.size(),
        )

    def _save(self, snapshot: Snapshot) -> bool:
        """Write a checkpoint, once the lines to which it refers are on the disk; return whether it was written."""
        self.run.flush()
        if not (self.run.metrics.is_written() and self.run.ledger.is_written()):
            return False  # which has been reported
        saved, weights, state = snapshot
        parts = sealed_parts(CheckpointIdentity.of(self.recorder.info), saved, self.recorder.layout, weights, state)
        try:
            self.run.metrics.sync()
            self.run.ledger.sync()
            self.recorder.keep_receipt()
            self.folder.save(saved.steps, parts, self.best())
        except OSError as error:
            if not self.run.room.refuse(error, bytes_of(weights, state) + MORE_BYTES):
                kept = self.folder.steps()
                stays = f"that of step {kept[-1]} stays" if kept else "there is no checkpoint yet"
                why = f"cannot write checkpoint {str(self.folder.file_of(saved.steps))!r}: {error.strerror}"
                self.run.say(warning(f"{why}: the run continues without it, and {stays}"))
            return False
        return True

    def best(self) -> int | None:
        """Return after how many steps the best epoch ended, None before the first."""
        epoch = self.recorder.best_epoch()
        return None if epoch is None else self.recorder.ends_at(epoch.epoch)


def bytes_of(weights: Vector, state: Mapping[str, Vector]) -> int:
    """Return the bytes of a checkpoint's vectors."""
    return weights.nbytes + sum(slot.nbytes for slot in state.values())
