"""Takes a run's checkpoints as it goes on; the run does not fail where that fails."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from common.aggregation.layout import weights_digest
from common.aggregation.tree import Vector
from common.runtime.clock import Clock
from ps.checkpoint.checkpoint import CheckpointIdentity, HeldState, RunProgress, sealed_parts
from ps.checkpoint.folder import CheckpointFolder
from ps.checkpoint.schedule import CheckpointSchedule
from ps.records.ledger import WeightsAt
from ps.records.recorder import MetricsRecorder
from ps.records.run_folder import RunFolder
from ps.run.progress import Progress


class WeightsHolder(Protocol):
    """What has the weights and the optimizer's slots, as a shard does."""

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
    cadence: CheckpointSchedule
    clock: Clock
    #: Steps and epochs when it was last asked.
    seen: tuple[int, int] = (0, 0)

    def look(self, holder: WeightsHolder, progress: Progress, compute_s: float) -> None:
        """Take a checkpoint where one is due. To be called after each event, when its effects are done."""
        at = (holder.updates, len(self.recorder.history))
        if at == self.seen:
            return
        ends_epoch, self.seen = at[1] > self.seen[1], at
        # Without the best epoch's, a run that is to end with it could not go on from a later one.
        is_needed = ends_epoch and self.recorder.info.job.keep_best and self.best() == holder.updates
        if is_needed or self.cadence.is_due(holder.updates, self.clock.now(), ends_epoch=ends_epoch):
            self.take(holder, progress, compute_s)

    def take(self, holder: WeightsHolder, progress: Progress, compute_s: float) -> bool:
        """Take a checkpoint now; return whether there is one of these steps.

        After an interrupt the books may disagree, and then there is none.
        """
        if not self.folder.keep or not self._agrees(holder, progress):
            return False
        began = self.clock.now()
        is_kept = self._save(holder, progress, compute_s, began)
        self.cadence.taken(holder.updates, began, self.clock.now())
        return is_kept

    def _agrees(self, holder: WeightsHolder, progress: Progress) -> bool:
        recorder = self.recorder
        return progress.steps == holder.updates == recorder.steps and len(progress.history) == len(recorder.history)

    def _save(self, holder: WeightsHolder, progress: Progress, compute_s: float, now: float) -> bool:
        recorder, steps = self.recorder, holder.updates
        recorder.add_entries(WeightsAt(step=steps, weights_sha256=weights_digest(holder.weights)))
        if not self._sync():
            return False
        past = RunProgress(
            steps=steps,
            is_evaluated=bool(recorder.history) and recorder.ends_at(recorder.history[-1].epoch) == steps,
            loss_sum=progress.epoch.loss_sum,
            correct=progress.epoch.correct,
            count=progress.epoch.count,
            samples=progress.samples,
            history=recorder.history,
            elapsed_s=progress.elapsed(now),
            wall_s=now - recorder.setting.started,
            train_s=progress.train_s,
            compute_s=compute_s,
            update_s=recorder.update_s,
            metrics_bytes=self.run.metrics.size(),
            ledger_bytes=self.run.ledger.size(),
            audited=progress.audited,
            unaudited=progress.unaudited,
        )
        held = HeldState(weights=holder.weights, state=holder.state)
        return self.folder.save(
            steps, sealed_parts(CheckpointIdentity.of(recorder.info), past, recorder.layout, held), self.best()
        )

    def _sync(self) -> bool:
        """Bring the lines on the disk, to which a checkpoint refers; return whether they are there."""
        self.run.flush()
        if not (self.run.metrics.is_written() and self.run.ledger.is_written()):
            return False  # which has been told
        try:
            self.run.metrics.sync()
            self.run.ledger.sync()
            self.recorder.keep_receipt()
        except OSError as error:
            self.folder.say(
                f"warning: cannot write to {str(self.run.path)!r}: {error.strerror}: the run goes on without a "
                "checkpoint"
            )
            return False
        return True

    def best(self) -> int | None:
        """Return after how many steps the best epoch ended, None before the first."""
        epoch = self.recorder.best_epoch()
        return None if epoch is None else self.recorder.ends_at(epoch)
