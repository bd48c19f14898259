"""Records a run's figures as they come, in memory and in its folder if it has one."""

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import asdict, replace

from lockstep.common.aggregation.layout import ParameterLayout, weights_digest
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FailureKind
from lockstep.common.job.metrics import score_of
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.runtime.notice import warning
from lockstep.ps.records.ledger import Account, EpochDone, LedgerEntry, RunBegun
from lockstep.ps.records.metrics import FailureRecord, StepRecord
from lockstep.ps.records.receipt import Receipt, ReceiptLink, first_link, next_link, receipt_of
from lockstep.ps.records.run_folder import AVERAGE_WEIGHTS, DiskRoom, RunFolder, RunResult
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import best_epoch, is_stopped
from lockstep.ps.run.progress import NOTHING, Moved, Progress, StepTime, StepTimeTotals

#: Seconds after which lines that wait are written, so that readers of the files see each step within a second.
FLUSH_S = 0.3


#: The transport of a run in one process, which has no server.
NO_TRANSPORT = "none"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The circumstances of a run, as `result.json` has them next to the job and the options."""

    transport: str
    #: Why vectors did not go through shared memory although they might have.
    obstacle: str = ""
    #: As in `RunResult`.
    crowding: str = ""
    #: When the server was started, in seconds of the clock that the run goes by.
    started: float


def carried(setting: Setting, sharing: Collection[bool], obstacle: str, crowding: str = "") -> Setting:
    """Return the setting with the transports that workers used: `sharing` has whether they shared memory."""
    names = [name for shares, name in ((True, "shm"), (False, setting.transport)) if shares in sharing]
    transport = "+".join(names) or setting.transport
    return replace(setting, transport=transport, obstacle=setting.obstacle or obstacle, crowding=crowding)


@dataclass
class MetricsRecorder:
    """The record of one run."""

    info: RunInfo
    setting: Setting
    layout: ParameterLayout
    folder: RunFolder | None
    history: list[EpochRecord] = field(default_factory=list)
    #: The time of the steps so far, in parts.
    times: StepTimeTotals = field(default_factory=StepTimeTotals)
    #: The bytes that have crossed sockets, and in how many steps.
    moved: Moved = NOTHING
    moved_steps: int = 0
    #: Steps whose entry is in the ledger.
    steps: int = 0
    #: The receipt's links, from the one before the first epoch on.
    chain: list[ReceiptLink] = field(default_factory=list)
    #: A copy of the weights after the best epoch, if the run is to end with those.
    best: Vector | None = None
    #: Set once the run has ended well.
    result: RunResult | None = None
    #: When lines were last written.
    _flushed: float = 0.0

    def begin(self, first_weights_sha256: str, lost_steps: int = 0) -> None:
        """Begin the ledger and the receipt of a run that begins with these weights; see `RunBegun`."""
        self.chain = [first_link(self.info, first_weights_sha256)]
        self.add_entries(RunBegun(step=0, weights_sha256=first_weights_sha256, lost_steps=lost_steps))
        self.keep_receipt()

    def step(
        self, step: int, tally: Tally, rate: float, update_s: float, time: StepTime, moved: Moved = NOTHING
    ) -> None:
        """Record the figures of a training step; `moved` is what crossed sockets since the one before."""
        self.moved += moved
        self.moved_steps += 1
        self.times.add(time, update_s, is_counted=step % self.info.plan.steps_per_epoch != 0)
        if self.folder is not None:
            guess = self.info.guess
            score = score_of(self.info.metrics, tally, guess and guess.train)
            record = StepRecord(
                epoch=self.info.plan.epoch_of(step),
                step=step,
                loss=tally.loss,
                accuracy=score.accuracy,
                r2=score.r2,
                metrics=dict(score.others) or None,
                lr=rate,
                samples=tally.count // self.info.targets,
                **asdict(time),
                update_s=update_s,
                sums_bytes=moved.sums,
                weights_bytes=moved.weights,
            )
            self.folder.add_record(record)

    def account(self, step: int, account: Account, checksum: int) -> None:
        """Record the workers of a training step, and the results that were not used."""
        if self.folder is not None:
            self.add_entries(*account.other_entries("train", step), account.step_done(step, checksum))
        # Last, so that after an interrupt it shows whether all is there.
        self.steps = step + 1

    def epoch(self, figures: EpochRecord, weights: Vector) -> None:
        """Record the figures of an epoch, and keep the weights after it if callbacks or the job ask for them."""
        digest = weights_digest(weights)
        record = replace(figures, weights_sha256=digest)
        if self.folder is not None:
            self.folder.add_record(record)
            step = self.ends_at(figures.epoch)
            link = next_link(self.chain[-1], epoch=figures.epoch, step=step, weights_sha256=digest)
            self.add_entries(EpochDone(**asdict(link)))
            self.chain.append(link)
            if self.info.options.pause:
                self.folder.keep_epoch(self.layout, weights, figures.epoch, step)
            self.folder.flush()
        # Last, as in `account`.
        self.history.append(record)
        if self.info.job.keep_best and self.best_epoch() is record:
            self.best = weights.copy()

    def best_epoch(self) -> EpochRecord | None:
        """Return the best epoch so far, None before the first."""
        return best_epoch(self.info.job, self.history)

    def ends_at(self, epoch: int) -> int:
        """Return after how many steps an epoch ends."""
        return min(epoch * self.info.plan.steps_per_epoch, self.info.plan.total_steps)

    def add_entries(self, *entries: LedgerEntry) -> None:
        """Add entries to the ledger."""
        if self.folder is not None:
            for entry in entries:
                self.folder.ledger.append(msgspec.json.encode(entry))

    def flush_if_due(self, now: float) -> None:
        """Write the lines that wait, at most three times a second."""
        if self.folder is not None and now >= self._flushed + FLUSH_S:
            self._flushed = now
            self.folder.flush()

    def receipt(self) -> Receipt:
        """Return the receipt as it is by now."""
        return receipt_of(self.info, self.chain)

    def keep_receipt(self) -> None:
        """Write the receipt as it is by now."""
        if self.folder is not None:
            self.folder.keep_receipt(self.receipt())

    def finish(
        self,
        progress: Progress,
        *,
        workers: int,
        weights: Vector,
        average: Vector | None = None,
        now: float,
        teams: int = 0,
    ) -> RunResult:
        """Write the weights and the result of a run that succeeded, of so many workers in so many teams.

        May be called again if it raises OSError, as on a full disk.
        """
        kept = self.history[-1]
        if self.best is not None:
            weights, kept = self.best, self.best_epoch() or kept
        result = self._result(progress, kept, weights_digest(weights), workers, teams, now)
        if self.folder is not None:
            self.folder.demand_written()
            metadata = self._metadata(self.ends_at(kept.epoch))
            self.folder.keep_weights(self.layout, weights, metadata)
            if average is not None:
                self.folder.keep_weights(self.layout, average, self._metadata(progress.steps), AVERAGE_WEIGHTS)
            self.folder.keep_result(result, self.receipt())
        self.result = result
        return result

    def _result(
        self, progress: Progress, kept: EpochRecord, digest: str, workers: int, teams: int, now: float
    ) -> RunResult:
        """Return the result with the weights of the epoch that is kept, which have that digest."""
        info, job = self.info, self.info.job
        return RunResult(
            **progress.totals(),
            run=info.run,
            model=job.model_name(),
            dataset=job.data,
            seed=job.seed,
            workers=workers,
            servers=0 if self.setting.transport == NO_TRANSPORT else info.options.servers,
            transport=self.setting.transport,
            epochs=info.plan.epochs,
            global_batch=job.global_batch,
            micro_batches=job.micro_batches,
            local_steps=job.local_steps,
            wall_s=now - self.setting.started,
            images_per_s=progress.samples / progress.train_s if progress.train_s else 0.0,
            parameters=self.layout.parameter_count,
            split=self.times.split(),
            train_loss=kept.loss,
            test_loss=kept.test_loss,
            test_accuracy=kept.test_accuracy,
            test_r2=kept.test_r2,
            test_metrics=kept.of_set("test_"),
            weights_sha256=digest,
            numerics=msgspec.to_builtins(info.fingerprint),
            history=self.history,
            obstacle=self.setting.obstacle,
            crowding=self.setting.crowding,
            wire=job.wire,
            wire_weights=job.wire_weights,
            moved=self.moved.mean(self.moved_steps),
            weights_epoch=kept.epoch,
            stopped=self._why_stopped(),
            teams=teams,
        )

    def _why_stopped(self) -> str:
        job, epochs = self.info.job, len(self.history)
        if epochs == self.info.plan.epochs:
            return ""
        if is_stopped(job, self.history):
            return f"{job.monitored()} did not improve for {job.patience} epochs"
        return f"a callback stopped it after epoch {epochs}"

    def fail(self, failure: str, cause: FailureKind, weights: Vector, steps: int) -> None:
        """Write the weights of a run that failed, as they were after `steps` updates.

        If they cannot be written that is reported: why the run failed is what matters.
        """
        if self.folder is not None:
            self.record_failure(failure, cause, steps)
            try:
                self.folder.keep_weights(self.layout, weights, self._metadata(steps))
            except OSError as error:
                self.folder.say(warning(f"cannot write the weights to {str(self.folder.path)!r}: {error.strerror}"))

    def record_failure(self, failure: str, cause: FailureKind, steps: int) -> None:
        """Record why a run failed after `steps` updates."""
        if self.folder is not None:
            self.folder.add_record(FailureRecord(failure=failure, weights_after_steps=steps, cause=cause.value))

    def _metadata(self, steps: int) -> dict[str, str]:
        """Return what a file of weights after so many steps records of its run."""
        return {"run": self.info.run, "model": self.info.job.model_name(), "steps": str(steps)}

    @property
    def room(self) -> DiskRoom | None:
        """The room on the folder's disk, None without a folder."""
        return None if self.folder is None else self.folder.room

    def flush(self) -> None:
        """Write the lines that wait."""
        if self.folder is not None:
            self.folder.flush()

    def close(self) -> None:
        """Close the folder's files."""
        if self.folder is not None:
            self.folder.close()
