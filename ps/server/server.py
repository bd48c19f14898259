"""The server's shell: turns frames into events and effects into frames, and keeps the run's files. Decides nothing."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from common.aggregation.tree import Vector
from common.errors import RefusalKind, RemoteProtocolError
from common.files.sanitize import one_line
from common.protocol.codec import decode
from common.protocol.messages import (
    PROTOCOL_VERSION,
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Join,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    Result,
    SamplesRequest,
    StatusRequest,
    SumsFrame,
    WorkerMessage,
    shortened,
)
from common.protocol.shard_messages import ShardJoin, ShardMessage
from common.runtime.clock import Clock
from common.runtime.interrupts import held_back
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import ServerPort
from ps.checkpoint.checkpointer import Checkpointer
from ps.coordinator import effects, events
from ps.coordinator.coordinator import Coordinator
from ps.coordinator.scheduling.scheduler import WINDOW
from ps.coordinator.validation import demand_plausible
from ps.records.metrics import MetricsRecorder
from ps.run.traffic import Traffic
from ps.server.gradient_receiver import GradientReceiver
from ps.server.outbox import Outbox
from ps.server.peer_blocklist import PeerBlocklist
from ps.server.samples import SampleSender
from ps.server.status_rate_limit import StatusRateLimit
from ps.server.step_committer import StepCommitter
from ps.shard.shard import Shard
from ps.sharding.group import events as fleet_events
from ps.sharding.group.shell import ShardGroupShell
from ps.shared_memory import ServerSharedMemory

#: Seconds for which the last messages may still go out.
LINGER_S = 1.0

#: Seconds between two looks at the run by whoever shows it.
LOOK_S = 0.1

#: Messages without arrays that may wait for a worker. Beside them it may have the weights for a window of leases: what
#: does not read costs no more.
QUEUE = 16


@dataclass
class Server:
    """One run at the server: the coordinator, the shard, and the means by which effects happen."""

    coordinator: Coordinator
    shard: Shard
    recorder: MetricsRecorder
    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: The memory that workers on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Takes the checkpoints, where there is to be any.
    keeper: Checkpointer | None = None
    #: Set once the run has ended.
    ended: effects.Finish | None = None
    #: The other servers, None where this is the only one; `shard` is its own slice then.
    shards: ShardGroupShell | None = None
    #: Connections that were not let in.
    denials: RejectionLog = field(default_factory=RejectionLog)
    #: Where workers that lack the data are sent samples of it.
    shipping: SampleSender | None = None
    intake: GradientReceiver = field(init=False)
    #: What crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic = field(default_factory=Traffic)
    questions: StatusRateLimit = field(default_factory=StatusRateLimit)
    turned_away: PeerBlocklist = field(init=False)
    post: Outbox = field(init=False)
    chronicle: StepCommitter = field(init=False)
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)
    #: When the progress was last shown.
    _shown: float = -math.inf

    def __post_init__(self) -> None:
        self.intake = GradientReceiver(self.shard, self.coordinator.roster, self.sharing)
        self.post = Outbox(self.port, self.traffic, self.intake, self.shard, self.coordinator.roster, self.shards)
        self.chronicle = StepCommitter(
            self.coordinator, self.shard, self.recorder, self.port, self.clock, self.keeper, self.shards, self.traffic
        )
        self.turned_away = PeerBlocklist(self.port, self.clock, self.say, self.denials)

    def run(self, watch: Callable[[], None] = lambda: None) -> effects.Finish:
        """Serve until the run is over; `watch` is called now and then, and at the end, to show the progress."""
        try:
            while self.ended is None:
                self.step()
                self._show(watch)
        except KeyboardInterrupt:
            self.interrupt()
        finally:
            self.port.close(LINGER_S)
            self.recorder.close()
        # An interrupt between the run's end and the keeping of its result, which then is not there.
        return self.ended or effects.Finish(failure="interrupted")

    def interrupt(self) -> None:
        """End the run now."""
        self._happen(events.Interrupted())

    def _show(self, watch: Callable[[], None]) -> None:
        now = self.clock.now()
        if self.ended is not None or now >= self._shown + LOOK_S:
            self._shown = now
            watch()

    def step(self) -> bool:
        """Handle the passing of time, or one message; return whether anything happened."""
        deadline, now = self.deadline(), self.clock.now()
        # First, since there may always be a message: leases run out and dead workers are noticed all the same.
        if deadline is not None and now >= deadline:
            with held_back():
                self._happen(*self._pass_time(now))
            return True
        received = self.port.receive(None if deadline is None else deadline - now)
        self.turned_away.tell()
        # An interrupt finds an event handled, with all that is booked of it, or not handled at all.
        with held_back():
            if received is not None:
                self._hear(*received)
                return True
            lost = self.port.lost()
            for peer in lost:
                self._happen(*self._gone(peer, "its connection is gone"))
            return bool(lost)

    def _gone(self, peer: bytes, reason: str) -> list[events.Event]:
        """Return what it means to the coordinator that a peer is gone: a worker, a shard, or nobody of ours."""
        if self.shards is not None and peer in self.shards.fleet.seats:
            return self.shards.gone(peer, reason)
        return [events.WorkerLeft(peer=peer, reason=reason)]

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        fleet = None if self.shards is None else self.shards.fleet.deadline()
        due = (self.coordinator.deadline(), fleet, self.questions.deadline())
        return min((at for at in due if at is not None), default=None)

    def _pass_time(self, now: float) -> list[events.Event]:
        told = [self._status_asked(peer) for peer in self.questions.due(now)]
        if self.shards is not None and (due := self.shards.fleet.deadline()) is not None and now >= due:
            told += self.shards.happen(fleet_events.TimePassed())
        at = self.coordinator.deadline()
        return [*told, events.TimePassed()] if at is not None and now >= at else told

    def _hear(self, peer: bytes, frames: list[memoryview]) -> None:
        if self.turned_away.has(peer):
            return
        try:
            message, self._arrays = decode(frames, WorkerMessage | ShardMessage)
            self.traffic.came(message, frames)
            told = self._told(peer, message)
        except RemoteProtocolError as error:
            told = self._turn_away(peer, str(error))
        self._happen(*told)

    def _told(self, peer: bytes, message: Message) -> list[events.Event]:
        """Return what a message tells the coordinator."""
        if self.shards is not None and self.shards.hears(peer, message):
            return self.shards.hear(peer, message, self._arrays)
        if isinstance(message, ShardJoin):
            return self._refuse_shard(peer)
        event = self._event(peer, message)
        told = [] if event is None else [event]
        if self.shards is not None and isinstance(event, events.WorkerPrepared):
            # Before any lease, and so before anything comes of one.
            return self.shards.admit(peer, shares=event.shares) + told
        return told

    def _refuse_shard(self, peer: bytes) -> list[events.Event]:
        reason = "this run has one server: start that with --servers 2 or more"
        self.turned_away.refuse(f"refused a shard: {reason}")
        self.post.send(peer, Refused(reason=reason, kind=RefusalKind.FULL))
        return []

    def _turn_away(self, peer: bytes, fault: str) -> list[events.Event]:
        """Answer what cannot be understood: a worker of another version would wait for ever, not knowing why."""
        reason = f"it broke protocol {PROTOCOL_VERSION}: {fault}; is the same version of lockstep on both sides?"
        self.post.send(peer, Refused(reason=shortened(reason)))
        self.turned_away.add(peer, reason)
        return self._gone(peer, reason)

    def _event(self, peer: bytes, message: Message) -> events.Event | None:
        match message:
            case Join():
                return events.WorkerJoined(peer=peer, join=message)
            case Ready():
                return self._prepared(peer, message)
            case SumsFrame():
                return events.WorkerAdvanced(peer=peer) if self.intake.take(peer, message, self._arrays[0]) else None
            case Result():
                demand_plausible(message, self.coordinator.facts)
                is_whole = self.intake.is_whole(peer, message, self._arrays)
                return events.ResultReceived(peer=peer, result=message) if is_whole else None
            case ComputeFailed():
                return events.LeaseFailed(peer=peer, failed=message)
            case Diverged():
                return events.LossDiverged(peer=peer, diverged=message)
            case Leave():
                return events.WorkerLeft(peer=peer, reason=one_line(message.reason))
            case SamplesRequest():
                return self._ship(peer, message)
            case Ping():
                return events.WorkerAsked(peer=peer)
            case StatusRequest():
                return self._status_asked(peer) if self.questions.ask(peer, self.clock.now()) else None
            case CallbackDecision():
                return events.CallbacksDecided(epoch=message.epoch, stops=message.stops)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is no message for a server")

    def _status_asked(self, peer: bytes) -> events.Event:
        broken = self.turned_away.broken.count
        return events.StatusRequested(peer=peer, refused=self.denials.count, broken=broken)

    def _ship(self, peer: bytes, asked: SamplesRequest) -> events.Event | None:
        """Send samples to a worker, whose leases do not run out while they are on their way."""
        if self.shipping is None:
            raise RemoteProtocolError("samples are asked for, which this run does not send: it lacks --ship-data")
        if peer not in self.coordinator.roster.members:
            return None
        failed = self.post.send(peer, *self.shipping.answer(asked))
        return failed[0] if failed else events.WorkerAdvanced(peer=peer)

    def _prepared(self, peer: bytes, ready: Ready) -> events.Event:
        """Map the sums of a worker that shares memory, and answer its call; make room for one that sends messages."""
        member = self.coordinator.roster.members.get(peer)
        if not ready.nonce:
            self.port.allow(QUEUE + WINDOW * len(self.shard.frames))
        elif self.sharing is None:
            raise RemoteProtocolError("it shares memory that it was not offered")
        elif member is not None:
            self.sharing.admit(member.rank, ready.nonce)
            shortcut = self.sharing.take_shortcut(member.rank)
            if shortcut is not None:
                self.port.shorten(peer, shortcut)
        return events.WorkerPrepared(peer=peer, shares=bool(ready.nonce), obstacle=one_line(ready.obstacle))

    def _happen(self, *told: events.Event) -> None:
        """Let the coordinator handle events, and whatever its effects lead to."""
        pending = deque(told)
        while pending:
            event = pending.popleft()
            if isinstance(event, events.StepUpdated):
                self.chronicle.record_stepped()
            for effect in self.coordinator.handle(event, self.clock.now()):
                pending.extend(self._perform(effect))
            self.chronicle.record_updated()
        # Afterwards: what workers wait for has been sent.
        if self.ended is None:
            self.chronicle.look()

    def _perform(self, effect: effects.Effect) -> Sequence[events.Event]:
        shards = self.shards
        match effect:
            case effects.Send():
                return self.post.send(effect.peer, effect.message)
            case effects.SendWeights():
                return self.post.send_weights(effect.peer, effect.step)
            case effects.AddSums():
                if self._arrays:
                    self.shard.receive(0, effect.node, self._arrays[0])
            case effects.AddSharedSums():
                self.intake.add_shared(effect.node, effect.rank, effect.slot)
                return [] if shards is None else shards.add_shared(effect)
            case effects.AwaitShards():
                assert shards is not None  # otherwise nothing is awaited
                return shards.await_sums(effect)
            case effects.ForgetWorker():
                self.intake.forget(effect.peer, effect.rank)
                return [] if shards is None else shards.forget(effect.rank)
            case effects.UpdateWeights():
                return self.chronicle.update(effect)
            case effects.RecordEpoch():
                self.chronicle.record_epoch(effect)
            case effects.Report():
                self.say(effect.text)
            case effects.ReportRefusal():
                self.turned_away.refuse(effect.text)
            case effects.Finish():
                self.ended = self.chronicle.finish(effect)
            case _:
                assert_never(effect)
        return []
