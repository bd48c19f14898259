"""Training in the calling process alone, without coordinator or transport: the oracle that every run must match."""

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.quantization import RoundingKey
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import ComputeError, DivergedError, FailureKind, LockstepError, RunError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.tally import Tally, pack_losses, result_digest
from lockstep.common.optim.rules import averaged
from lockstep.common.protocol.messages import NAME_LIMIT, EpochRecord, Status
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.runtime.notice import notice, warning
from lockstep.ps.checkpoint.checkpointer import Checkpointer
from lockstep.ps.checkpoint.resuming import Resumption, first_round
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.failures import diverged_text
from lockstep.ps.coordinator.findings import MicroBatchOutcome
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.coordinator.parts.callbacks import is_paused_before
from lockstep.ps.coordinator.status import status_of
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import Account
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.records.run_folder import LOOK_S, RunResult
from lockstep.ps.run.plan import Round, next_round
from lockstep.ps.run.progress import Progress
from lockstep.ps.server.nonfinite_guard import NonFiniteGuard, NonFiniteWeightsError
from lockstep.ps.setup import RunSetup
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError


@dataclass
class SingleProcessTrainer:
    """A worker and a shard that share their memory."""

    setup: RunSetup
    compute: Compute = field(init=False)

    def __post_init__(self) -> None:
        setup = self.setup
        self.compute = Compute(setup.info.job, setup.model, setup.data, setup.shard.served, own=setup.own)

    def step(self, step: int) -> None:
        """Make a step: forward, loss, backward, sum, update. Raises what the model raises, and `NotFiniteError`."""
        sums, tally = self.sums(step)
        self.update(step, sums, tally)

    def sums(self, step: int) -> tuple[Vector, Tally]:
        """Return the sums of a step, which are valid until the next one, and its tally; raises as `step`."""
        return self.node_sums(step, self._whole)

    def node_sums(self, step: int, node: Node) -> tuple[Vector, Tally]:
        """Return the sums of a node of a step, which are valid until the next, and its tally; raises as `step`."""
        self.compute.turn(step)
        return self.compute.train(step, node)

    def update(self, step: int, sums: Vector, tally: Tally) -> float:
        """Change the weights by the sums of a step, which are overwritten; return the learning rate."""
        return self.setup.shard.update_by(sums, step, tally.divisor).rate

    @property
    def _whole(self) -> Node:
        return Node(0, self.setup.info.job.micro_batches)


def recompute_micro_batch(setup: RunSetup, weights: Vector, step: int, micro_batch: int) -> MicroBatchOutcome | None:
    """Return what an honest worker finds for a micro-batch, as an audit compares it; None if the model raises.

    `weights` are the whole vector after `step` updates, not rounded for workers.
    """
    served = weights.copy()
    compute = Compute(setup.info.job, setup.model, setup.data, (served, served), own=setup.own)
    if not compute.wire_weights.is_exact:
        compute.wire_weights.round(served, RoundingKey(step, Node(0, 1), 0))
    compute.turn(step)
    try:
        sums, tally = compute.train(step, Node(micro_batch, micro_batch + 1))
    except NotFiniteError as error:
        return MicroBatchOutcome(quantity=error.quantity, layer=one_line(error.layer, NAME_LIMIT))
    except Exception:  # noqa: BLE001  # whatever a user's model raises: it decides nothing
        return None
    return MicroBatchOutcome(digest=result_digest(sums, compute.losses, tally))


@dataclass
class SerialRun:
    """One run in one process."""

    setup: RunSetup
    recorder: MetricsRecorder
    clock: Clock
    #: Called with the status of the run after each round; None without a reader.
    watch: Callable[[Status], None] | None
    #: The place at which it begins: by default the beginning.
    start: Resumption | None = None
    checkpointer: Checkpointer | None = None
    #: Called between two epochs if the run pauses for callbacks: whether it ends with the one that is over.
    is_to_stop: Callable[[Sequence[EpochRecord]], bool] | None = None
    #: Shows what the run waits for.
    say: Callable[[str], None] = lambda text: None
    #: Waits for so many seconds.
    wait: Callable[[float], object] = threading.Event().wait
    guard: NonFiniteGuard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.setup.layout)

    def train(self) -> RunResult:
        """Train to the end; `DivergedError` if a loss is not finite, `ComputeError` if the model raises."""
        setup, start = self.setup, self.start or first_round(self.setup)
        progress = start.progress
        at: Round | None = start.round
        trainer = SingleProcessTrainer(setup)
        try:
            while at is not None:
                progress.begin_round(self.clock.now())
                self._round(at, trainer, progress)
                then = next_round(setup.info.job, setup.info.plan, at, progress.history)
                if self.guard.text and then is None:
                    raise NonFiniteWeightsError(self.guard.text)
                if self.checkpointer is not None and then is not None and not self.guard.text:
                    self.checkpointer.take_if_due(setup.shard, progress)
                phase = RunPhase.FINISHED if then is None else RunPhase.TRAINING
                show = partial(self._show, progress, phase, then or at)
                self._await_room(partial(self._write_again, progress), show)
                show()
                self.recorder.flush_if_due(self.clock.now())
                at = None if then is not None and self._stops_before(then, progress) else then
        except KeyboardInterrupt:
            self._keep(progress)
            self.recorder.fail("interrupted", FailureKind.INTERRUPTED, *setup.shard.kept_weights())
            raise
        except (LockstepError, OSError):
            raise
        except Exception as error:
            assert at is not None
            if not isinstance(error, NotFiniteError | NonFiniteWeightsError):
                self._keep(progress)
            raise self._failure(at, error) from error
        finally:
            self.recorder.close()
        return self._finish(progress)

    def _finish(self, progress: Progress) -> RunResult:
        """Write the result; on a full disk as soon as there is room."""
        recorder, weights = self.recorder, self.setup.shard.weights
        average = averaged(weights, self.setup.shard.state)

        def write() -> None:
            self._keep_best()
            try:
                recorder.finish(
                    progress,
                    workers=0,
                    weights=weights,
                    average=average,
                    now=self.clock.now(),
                )
            except OSError as error:
                if recorder.room is None or not recorder.room.refuse(error, weights.nbytes):
                    raise

        try:
            write()
            self._await_room(write)
        finally:
            recorder.close()
        assert recorder.result is not None
        return recorder.result

    def _show(self, progress: Progress, phase: RunPhase, at: Round, waiting: str = "") -> None:
        if self.watch is not None:
            self.watch(status_of(self.setup.info, progress, phase, at, self.clock.now(), [], waiting=waiting))

    def _await_room(self, write: Callable[[], None], show: Callable[[str], None] = lambda text: None) -> None:
        """Wait while the disk has no room for its records; `write` writes it again. An interrupt ends the wait.

        `show` is given the text that names the missing room, again and again.
        """
        room = self.recorder.room
        if room is None or not room.is_lacking:
            return
        self.say(warning(room.text))
        is_written = False
        while not is_written:
            show(room.text)
            self.wait(LOOK_S)
            is_written = room.try_again(write)
        self.say(notice("there is room again: the run continues"))

    def _write_again(self, progress: Progress) -> None:
        self.recorder.flush()
        if self.checkpointer is not None and self.checkpointer.is_owed:
            self._keep(progress)

    def _stops_before(self, then: Round, progress: Progress) -> bool:
        """Ask callbacks whether the run ends before a round."""
        is_paused = is_paused_before(self.setup.info, then)
        return is_paused and self.is_to_stop is not None and self.is_to_stop(progress.history)

    def _round(self, at: Round, trainer: SingleProcessTrainer, progress: Progress) -> None:
        """Carry out one round: an interrupt finds it done, with all that is recorded of it, or not done at all."""
        if at.work != "train":
            trainer.compute.turn(at.step)
            tally = trainer.compute.evaluate(Node(0, at.micro_batches), at.work)
            if at.work == "validate":
                progress.end_validation(tally)
                return
            number = self.setup.info.plan.epoch_of(at.step - 1)
            with held_back():
                epoch = progress.end_epoch(number, tally, self.clock.now())
                self.recorder.epoch(epoch, self.setup.shard.weights)
            return
        began = self.clock.now()
        sums, tally = trainer.sums(at.step)
        compute_s = self.clock.now() - began
        if self.guard.text:
            raise NonFiniteWeightsError(self.guard.text)
        account = Account(at.micro_batches)
        account.record_accepted(Node(0, at.micro_batches), 0, pack_losses(trainer.compute.losses))
        with held_back():
            began = self.clock.now()
            rate = trainer.update(at.step, sums, tally)
            ended = self.clock.now()
            progress.end_step(tally, ended, (compute_s, compute_s))
            progress.end_update(ended - began)
            self.recorder.step(at.step, tally, rate, ended - began, progress.last_step)
            self.recorder.account(at.step, account, checksum_after(at.step, self.setup.shard.weights))
            progress.compute_s += compute_s
        made = UpdateWeights(step=at.step, tally=tally, account=account)
        self.guard.check(made, self.setup.shard, Membership())

    def _keep(self, progress: Progress) -> None:
        """Save a checkpoint of the weights as they are."""
        if self.checkpointer is not None:
            self.checkpointer.take(self.setup.shard, progress)

    def _keep_best(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.keep_best()

    def _failure(self, at: Round, error: Exception) -> RunError:
        """Keep the last good weights; return the error to raise, as of a worker's exception."""
        shard = self.setup.shard
        self._keep_best()
        if isinstance(error, NotFiniteError | NonFiniteWeightsError):
            failure = str(error)
            if isinstance(error, NotFiniteError):
                failure = diverged_text(at.work, at.step, error.micro_batch, error.layer, error.quantity)
            self.recorder.fail(failure, FailureKind.DIVERGED, *shard.kept_weights(is_diverged=True))
            return DivergedError(failure)
        failure = f"step {at.step} raised:\n{traceback.format_exc()}"
        self.recorder.fail(failure, FailureKind.COMPUTE, *shard.kept_weights())
        return ComputeError(failure.rstrip())
