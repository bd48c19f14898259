"""Makes the updates of a run last: weights are updated, figures, checkpoints and the result are written. A shell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from lockstep.common.errors import FailureKind, FileFormatError, SharingError
from lockstep.common.optim.rules import averaged
from lockstep.common.protocol.messages import MultiStepLease
from lockstep.common.protocol.shard_messages import Collected
from lockstep.common.runtime.notice import warning
from lockstep.ps.checkpoint.checkpointer import Checkpointer
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.findings import Conviction
from lockstep.ps.coordinator.parts.team_lease import LeaseMemory, StepMade, StepsRefusal
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import Account
from lockstep.ps.records.recorder import MetricsRecorder, carried
from lockstep.ps.run.progress import Traffic
from lockstep.ps.server.conviction import quarantine_checkpoints
from lockstep.ps.server.nonfinite_guard import NonFiniteGuard
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.server.team_updates import open_updates
from lockstep.ps.shard_group.group import SliceGroup


@dataclass
class StepCommitter:
    """The updates of a run: the one under way, and the last until it is recorded; those of teams, as `TeamSteps`."""

    coordinator: Coordinator
    group: SliceGroup
    checkpointer: Checkpointer
    #: Reports the quarantine.
    say: Callable[[str], None]
    #: The server's: bytes that crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic
    #: The memory in which teams make steps by themselves, None if no memory is shared.
    sharing: ServerSharedMemory | None = None
    guard: NonFiniteGuard = field(init=False)
    #: The end of the run that is to be written, and the one that is written.
    ending: effects.Finish | None = None
    ended: effects.Finish | None = None
    #: The update that the servers are making, or have made; None once it is recorded.
    _update: effects.UpdateWeights | None = None
    #: Whether it was reported that there is no room for what teams need.
    _is_reported: bool = False

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.recorder.layout)

    @property
    def recorder(self) -> MetricsRecorder:
        """The records of the run."""
        return self.checkpointer.recorder

    def update(self, effect: effects.UpdateWeights) -> Sequence[events.Event]:
        """Let all servers begin an update; return what that leads to at once."""
        if self.guard.text:
            return [events.PartFailed(text=self.guard.text, kind=FailureKind.DIVERGED)]
        self._update = effect
        return self.group.begin_update(effect.step, effect.tally.divisor, self._collected(effect))

    def _collected(self, effect: effects.UpdateWeights) -> Collected:
        """Return the vectors to gather from all servers with the update of a step."""
        step, checkpointer = effect.step, self.checkpointer
        ends_epoch = self.coordinator.info.plan.closes_epoch(step)
        if not checkpointer.folder.keep:
            # The moving average of the weights is one of the optimizer's slots, and is kept at the end of the run.
            has_average = self.coordinator.info.job.ema_decay is not None
            return ("all" if has_average else "weights") if ends_epoch else "nothing"
        # Never the weights alone: they and the optimizer's slots are to be of one step.
        now = self.group.clock.now()
        return "all" if ends_epoch or checkpointer.schedule.is_due(step + 1, now, ends_epoch=False) else "nothing"

    def record_completed(self) -> None:
        """Record the update that all servers have just made, if it is not recorded yet."""
        update, done, coordinator = self._update, self.group.update, self.coordinator
        if update is None or update.step >= self.group.updates:
            return
        self._update = None
        self.traffic.add(done.moved)
        time, moved = coordinator.progress.last_step, self.traffic.drain()
        coordinator.progress.end_update(done.seconds)
        self.recorder.step(update.step, update.tally, done.rate, done.seconds, time, moved)
        self.recorder.account(update.step, update.account, self.group.checksum(done))
        self.guard.check(update, self.group.own.shard, coordinator.membership, others_are_finite=done.are_finite)

    # Steps that a team makes by itself

    def open(self, rank: int, lease: MultiStepLease) -> LeaseMemory | StepsRefusal:
        # The checksum of the last step's weights is taken before a team may write over them.
        self.record_completed()
        try:
            return open_updates(self.sharing, self.group.own.shard, rank, lease)
        except SharingError as error:
            if not self._is_reported:
                self._is_reported = True
                self.say(warning(f"a team waits for the server at each step, which is slower: {error}"))
            return StepsRefusal.NO_ROOM

    def record(self, account: Account, made: StepMade) -> None:
        time = self.coordinator.progress.last_step
        self.coordinator.progress.end_update(made.update_s)
        self.recorder.step(made.step, made.tally, made.rate, made.update_s, time, self.traffic.drain())
        self.recorder.account(made.step, account, made.checksum)

    def bounds(self) -> tuple[int | None, float | None]:
        return self.checkpointer.schedule.next_due() if self.checkpointer.folder.keep else (None, None)

    # Epochs, checkpoints and the end

    def record_epoch(self, effect: effects.RecordEpoch) -> None:
        """Record the figures of an epoch, with the weights as they are now."""
        holder = self.group.holder
        self.recorder.add_entries(*effect.account.other_entries("evaluate", holder.updates))
        self.recorder.epoch(effect.epoch, holder.weights)

    def take_due_checkpoint(self) -> None:
        """Take a checkpoint if one is due."""
        # Never while a team makes steps, and so writes the weights: a multi-step lease ends when a checkpoint is due.
        if not (self.guard.text or self.coordinator.phase is RunPhase.MULTI_STEP):
            self.checkpointer.take_if_due(self.group.holder, self.coordinator.progress)

    def write_again(self) -> None:
        """Write what the disk had no room for: lines, and a checkpoint that was due."""
        self.recorder.flush()
        if self.checkpointer.is_owed:
            self.checkpointer.take(self.group.holder, self.coordinator.progress)
        if self.ending is not None and not self.checkpointer.run.room.is_lacking:
            self.end(self.ending)

    def end(self, finish: effects.Finish) -> None:
        """Write the end of the run; if the disk has no room for it, the run does not end before it has."""
        self.ending = finish
        try:
            self.ended = self.finish(finish)
        except OSError as error:
            if not self.checkpointer.run.room.refuse(error, self.group.holder.weights.nbytes):
                raise

    def finish(self, finish: effects.Finish) -> effects.Finish:
        """Write the outcome of the run; return its end, which is a failure if the weights are not finite."""
        self.record_completed()
        coordinator, recorder, group = self.coordinator, self.recorder, self.group
        progress, membership = coordinator.progress, coordinator.membership
        if finish.conviction is not None:
            finish = self._convict(finish, finish.conviction)
        else:
            self.checkpointer.keep_best()
        if self.guard.text and finish.kind is None:
            finish = effects.Finish(failure=self.guard.text, kind=FailureKind.DIVERGED)
        if finish.kind is None:
            told = membership.sharing, membership.obstacle, membership.crowding
            recorder.setting = carried(recorder.setting, *told)
            recorder.finish(
                progress,
                workers=membership.most_prepared,
                teams=membership.most_teams,
                weights=group.holder.weights,
                average=averaged(group.holder.weights, group.holder.state),
                now=group.clock.now(),
            )
        elif finish.conviction is not None:
            # The current weights may be wrong. A run that goes back has not failed.
            if finish.kind is not FailureKind.ROLLBACK:
                recorder.record_failure(finish.failure, FailureKind.AUDIT, progress.steps)
        else:
            is_diverged = finish.kind is FailureKind.DIVERGED
            if not is_diverged:
                self.checkpointer.take(group.holder, progress)
            recorder.fail(finish.failure, finish.kind, *group.final_weights(is_diverged=is_diverged))
        group.end(finish)
        return finish

    def _convict(self, finish: effects.Finish, conviction: Conviction) -> effects.Finish:
        """Quarantine checkpoints in doubt, and report that; return the end of this part of the run."""
        checkpointer = self.checkpointer
        take = partial(checkpointer.take, self.group.holder, self.coordinator.progress)
        try:
            back_to, lines = quarantine_checkpoints(conviction, checkpointer.run, checkpointer.folder, take)
        except (OSError, FileFormatError) as error:
            text = f"{finish.failure}; the run ends, as that cannot be recorded: {error}"
            return effects.Finish(failure=text, kind=FailureKind.AUDIT, conviction=conviction)
        where = f"step {back_to:,}" if back_to else "its beginning"
        if finish.kind is FailureKind.ROLLBACK:
            follows = [finish.failure, *lines, f"the run goes back to {where}, and continues without it"]
            for line in follows:
                self.say(warning(line))
            return finish
        text = f"{finish.failure}; {'; '.join(lines)}; if it is resumed, the run goes back to {where}"
        return effects.Finish(failure=text, kind=finish.kind, conviction=conviction)
