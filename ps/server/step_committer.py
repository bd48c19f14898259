"""What becomes of steps and of a run's end: updates are made, figures, checkpoints and the result are kept. A shell."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.protocol.shard_messages import Collected
from common.runtime.clock import Clock
from common.transport.port import ServerPort
from ps.checkpoint.checkpointer import Checkpointer
from ps.coordinator import effects, events
from ps.coordinator.coordinator import Coordinator
from ps.records.metrics import MetricsRecorder, carried
from ps.run.traffic import Traffic
from ps.server.nonfinite_guard import NonFiniteGuard
from ps.shard.checksum import checksum_after
from ps.shard.shard import Shard
from ps.sharding.group.final_weights import final_weights
from ps.sharding.group.gathered import GatheredWeights
from ps.sharding.group.shell import ShardGroupShell


@dataclass
class StepCommitter:
    """One run's, at the server."""

    coordinator: Coordinator
    shard: Shard
    recorder: MetricsRecorder
    port: ServerPort
    clock: Clock
    keeper: Checkpointer | None
    shards: ShardGroupShell | None
    #: What crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic
    spoilt: NonFiniteGuard = field(init=False)
    #: An update that is not recorded yet: the effect, the learning rate, and the seconds that it took.
    _updated: tuple[effects.UpdateWeights, float, float] | None = None
    #: The update that all servers are making.
    _closing: effects.UpdateWeights | None = None

    def __post_init__(self) -> None:
        self.spoilt = NonFiniteGuard(self.recorder.layout)

    def look(self) -> None:
        """Take a checkpoint where one is due."""
        if self.keeper is not None and not self.spoilt.text:
            self.keeper.look(self._holder(), self.coordinator.progress, self.coordinator.roster.compute_s)

    def record_epoch(self, effect: effects.RecordEpoch) -> None:
        """Keep the figures of an epoch, with the weights as they are now."""
        holder = self._holder()
        self.recorder.note(*effect.account.others("evaluate", holder.updates))
        self.recorder.epoch(effect.epoch, holder.weights)

    def _holder(self) -> Shard | GatheredWeights:
        """Return who has the whole vector, where that was last had."""
        return self.shard if self.shards is None else self.shards.gathered

    def update(self, effect: effects.UpdateWeights) -> Sequence[events.Event]:
        """Make the update, or let all servers begin it: they tell by an event when it is done."""
        if self.spoilt.text:
            return [events.WeightsNotFinite(text=self.spoilt.text)]
        if self.shards is not None:
            self._closing = effect
            return self.shards.update(effect.step, effect.tally.count, self._collected(effect.step))
        began = self.clock.now()
        rate = self.shard.update(effect.step, effect.tally.count)
        self._updated = (effect, rate, self.clock.now() - began)
        return []

    def _collected(self, step: int) -> Collected:
        """Return what is to be gathered from all servers with the update of a step."""
        ends_epoch, keeper = self.coordinator.facts.plan.closes_epoch(step), self.keeper
        if keeper is None or not keeper.folder.keep:
            return "weights" if ends_epoch else "nothing"
        # Never the weights alone: they and the optimizer's slots are to be of one step.
        is_due = ends_epoch or keeper.cadence.is_due(step + 1, self.clock.now(), ends_epoch=False)
        return "all" if is_due else "nothing"

    def _record(self, effect: effects.UpdateWeights, rate: float, seconds: float, mark: int) -> None:
        time, moved = self.coordinator.progress.last_step, self.traffic.take()
        self.recorder.step(effect.step, effect.tally, rate, seconds, time, moved)
        self.recorder.account(effect.step, effect.account, mark)

    def record_updated(self) -> None:
        """Keep the figures of the update just made, once those who waited for it have their leases."""
        if self._updated is not None:
            (effect, rate, seconds), self._updated = self._updated, None
            self._record(effect, rate, seconds, checksum_after(effect.step, self.shard.weights))
            self.spoilt.look(effect, self.shard, self.coordinator.roster)

    def record_stepped(self) -> None:
        """Keep the figures of the update that all servers have made."""
        if self.shards is None or self.shards.stepped is None:
            return
        done, self.shards.stepped = self.shards.stepped, None
        self.traffic.add(done.moved)
        assert self._closing is not None
        self._record(self._closing, done.rate, done.seconds, done.mark)
        self.spoilt.look(self._closing, self.shard, self.coordinator.roster, others_are_finite=done.are_finite)

    def finish(self, finish: effects.Finish) -> effects.Finish:
        """Keep what the run has come to; return its end, which may be another one than was meant."""
        coordinator, shard, shards = self.coordinator, self.shard, self.shards
        if self.spoilt.text and not finish.failure:
            finish = effects.Finish(failure=self.spoilt.text, is_diverged=True)
        if not finish.failure:
            roster = coordinator.roster
            self.recorder.setting = carried(self.recorder.setting, roster.sharing, roster.obstacle)
            self.recorder.finish(
                coordinator.progress,
                workers=coordinator.roster.most_prepared,
                compute_s=coordinator.roster.compute_s,
                weights=self._holder().weights,
                now=self.clock.now(),
            )
        else:
            if self.keeper is not None and not finish.is_diverged:
                self.keeper.take(self._holder(), coordinator.progress, coordinator.roster.compute_s)
            if shards is not None:
                kept = final_weights(shards, self.port, self.clock, is_diverged=finish.is_diverged)
            else:
                kept = shard.before_last() if finish.is_diverged else shard.whole()
            self.recorder.fail(finish.failure, *kept)
        if shards is not None:
            shards.end(finish.failure)
        return finish
