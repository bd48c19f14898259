"""The server's shell: turns frames into events and effects into frames, and has files written. Decides nothing."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import assert_never

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FailureKind, RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Dropped,
    EndStretch,
    Join,
    Lease,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    Result,
    SamplesRequest,
    SliceResult,
    StatusRequest,
    Stretch,
    StretchEnded,
    SumsFrame,
    Weights,
    WorkerMessage,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardMessage
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import PeerGone, PeerSlow, ServerPort
from lockstep.ps.checkpoint.checkpointer import Checkpointer
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.scheduling.buffer_pool import WINDOW
from lockstep.ps.coordinator.validation import check_result
from lockstep.ps.parallel_update.parallel_update import ParallelUpdateConfig
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.run.traffic import Traffic
from lockstep.ps.server.gradient_receiver import GradientReceiver
from lockstep.ps.server.peer_blocklist import PeerBlocklist
from lockstep.ps.server.samples import SampleSender
from lockstep.ps.server.status_rate_limit import StatusRateLimit
from lockstep.ps.server.step_committer import StepCommitter
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_group.shell import ShardGroupShell
from lockstep.ps.shared_memory import ServerSharedMemory
from lockstep.ps.stretch.shell import StretchShell, declined

#: Seconds for which the last messages may still go out.
LINGER_S = 1.0

#: Seconds between two calls of `watch`, which shows the progress.
WATCH_S = 0.1

#: How often the server tries to take steps back from workers before the run ends, and the seconds between two attempts.
HURRIES, HURRY_S = 500, 0.002

#: Messages without arrays that may wait for a worker. In addition it may have the weights for a window of leases: a
#: worker that does not read costs no more memory than that.
QUEUE = 16


@dataclass
class Server:
    """One run at the server: the coordinator, the server's own slice of the weights, and what effects act on."""

    coordinator: Coordinator
    #: What the run begins with; the memory of its shard may be the one that workers share.
    setup: RunSetup
    recorder: MetricsRecorder
    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    _: KW_ONLY
    #: Shows what the run still waits for; by default `say` does.
    remind: Callable[[str], None] | None = None
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Takes the checkpoints, if there are to be any.
    checkpointer: Checkpointer | None = None
    #: Connections that were not let in.
    rejections: RejectionLog = field(default_factory=RejectionLog)
    #: How workers that share memory help with updates; by default they do not.
    helping: ParallelUpdateConfig = field(default_factory=ParallelUpdateConfig)
    #: Set once the run has ended.
    ended: effects.Finish | None = None
    #: Bytes that crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic = field(default_factory=Traffic)
    status_limit: StatusRateLimit = field(default_factory=StatusRateLimit)
    blocklist: PeerBlocklist = field(init=False)
    #: All servers of the run; its `own` slice is `shard`.
    group: ShardGroupShell = field(init=False)
    shard: Shard = field(init=False)
    #: Steps that workers make by themselves.
    stretch: StretchShell = field(init=False)
    receiver: GradientReceiver = field(init=False)
    committer: StepCommitter = field(init=False)
    #: The samples for workers that lack the data, None if the run does not send any.
    samples: SampleSender | None = field(init=False)
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)
    #: When the progress was last shown.
    _shown: float = -math.inf

    def __post_init__(self) -> None:
        coordinator, setup = self.coordinator, self.setup
        info = coordinator.info
        self.blocklist = PeerBlocklist(self.port, self.clock, self.say, self.rejections)
        self.group = ShardGroupShell(
            info,
            setup.shard,
            (len(setup.data.train), len(setup.data.test)),
            coordinator.membership,
            port=self.port,
            clock=self.clock,
            report=self._report,
            report_refusal=self.blocklist.report_refusal,
            sharing=self.sharing,
            helping=self.helping,
        )
        self.shard = self.group.own
        sharing = self.sharing if info.servers == 1 and self.helping.cores > 1 else None
        self.stretch = StretchShell(info, self.shard, self.clock, self._send_stretch, self.say, sharing)
        coordinator.stretches.is_possible = sharing is not None
        self.receiver = GradientReceiver(coordinator, self.shard, self.sharing)
        self.committer = StepCommitter(coordinator, self.group, self.recorder, self.checkpointer, self.traffic)
        self.samples = None if info.manifest is None else SampleSender(setup.data, info.manifest)

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
        # None after an interrupt between the run's end and the writing of its result, which then is not there.
        return self.ended or effects.Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)

    def interrupt(self) -> None:
        """End the run now, with the update at hand, which else would be lost."""
        with held_back():
            happened = [*self.group.hurry(), *self._take_back()]
            if happened:
                self._dispatch(*happened)
        self._dispatch(events.Interrupted())

    def _take_back(self) -> list[events.Event]:
        """Take back the steps that workers make by themselves, which are in the middle of one most of the time."""
        happened = self.stretch.end(is_hurried=True)
        for _ in range(HURRIES):
            if not self.stretch.is_any():
                break
            self.port.receive(HURRY_S)  # what they send does not matter any more
            happened += self.stretch.end(is_hurried=True)
        return happened + self.stretch.end(is_final=True)

    def _show(self, watch: Callable[[], None]) -> None:
        now = self.clock.now()
        if self.ended is not None or now >= self._shown + WATCH_S:
            self._shown = now
            watch()
            self.recorder.flush_if_due(now)

    def step(self) -> bool:
        """Handle the passing of time, or one message; return whether anything happened."""
        deadline, now = self.deadline(), self.clock.now()
        # First, since there may always be a message: leases run out and dead workers are noticed all the same.
        if deadline is not None and now >= deadline:
            with held_back():
                self._dispatch(*self._time_passed(now))
            return True
        received = self.port.receive(None if deadline is None else deadline - now)
        self.blocklist.report()
        # An interrupt finds an event handled, with all that is recorded of it, or not handled at all.
        with held_back():
            if received is not None:
                self._on_message(*received)
                return True
            lost = self.port.lost()
            for peer in lost:
                self._dispatch(*self._peer_gone(peer, "its connection is gone"))
            return bool(lost)

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        due = (
            self.coordinator.deadline(),
            self.group.deadline(),
            self.stretch.deadline(),
            self.status_limit.deadline(),
        )
        return min((at for at in due if at is not None), default=None)

    def _time_passed(self, now: float) -> list[events.Event]:
        due = [self._status_requested(peer) for peer in self.status_limit.due(now)]
        due += self.group.on_time(now) + self.stretch.on_time(now)
        at = self.coordinator.deadline()
        return [*due, events.TimePassed()] if at is not None and now >= at else due

    # Messages become events

    def _on_message(self, peer: bytes, frames: list[memoryview]) -> None:
        if self.blocklist.blocks(peer):
            return
        happened: Sequence[events.Event]
        try:
            message, self._arrays = decode(frames, WorkerMessage | ShardMessage)
            self.traffic.record_received(message, frames)
            happened = self._events_of(peer, message)
        except RemoteProtocolError as error:
            happened = self._turn_away(peer, str(error))
        self._dispatch(*happened)

    def _events_of(self, peer: bytes, message: Message) -> Sequence[events.Event]:
        if self.group.handles(peer, message):
            return self.group.on_message(peer, message, self._arrays)
        if isinstance(message, StretchEnded):
            return self._stretch_ended(peer, message)
        if isinstance(message, SliceResult):
            return [events.WorkerAdvanced(peer=peer), *self.group.on_slice_result(peer, message)]
        event = self._event_of(peer, message)
        if isinstance(event, events.WorkerPrepared):
            # Before any lease, and so before any sums.
            return [*self.group.admit(peer, shares=event.shares), event]
        return [] if event is None else [event]

    def _event_of(self, peer: bytes, message: Message) -> events.Event | None:
        match message:
            case Join():
                return events.WorkerJoined(peer=peer, join=message)
            case Ready():
                return self._prepared(peer, message)
            case SumsFrame():
                is_added = self.receiver.on_frame(peer, message, self._arrays[0])
                return events.WorkerAdvanced(peer=peer) if is_added else None
            case Result():
                check_result(message, self.coordinator.info)
                self._record_answer(peer, message)
                may_count = self.receiver.on_result(peer, message, self._arrays)
                return events.ResultReceived(peer=peer, result=message) if may_count else None
            case ComputeFailed():
                return events.LeaseFailed(peer=peer, failed=message)
            case Diverged():
                return events.LossDiverged(peer=peer, diverged=message)
            case Dropped():
                self._record_answer(peer, message)
                return events.LeaseDropped(peer=peer, dropped=message)
            case Leave():
                return events.WorkerLeft(peer=peer, reason=one_line(message.reason))
            case SamplesRequest():
                return self._send_samples(peer, message)
            case Ping():
                return events.WorkerPinged(peer=peer)
            case StatusRequest():
                return self._status_requested(peer) if self.status_limit.ask(peer, self.clock.now()) else None
            case CallbackDecision():
                return events.CallbacksDecided(epoch=message.epoch, stops=message.stops)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a server")

    def _stretch_ended(self, peer: bytes, ended: StretchEnded) -> Sequence[events.Event]:
        member, happened = self.coordinator.membership.members.get(peer), list[events.Event]()
        if member is not None:
            self.group.updating.on_stretch(member.rank, ended.number, is_answered=True)
            happened = self.stretch.on_answer(member.rank, ended)
        return [*happened, events.StretchAnswered(peer=peer, number=ended.number)]

    def _send_stretch(self, rank: int, message: Stretch | EndStretch) -> Sequence[events.Event]:
        """Send a worker what concerns a stretch of steps."""
        member = self.coordinator.membership.by_rank(rank)
        if member is None:
            return []
        if isinstance(message, Stretch):
            self.group.updating.on_stretch(rank, message.number, is_answered=False)
            message = msgspec.structs.replace(message, incarnation=member.join.incarnation)
        return self._send(member.peer, message)

    def _status_requested(self, peer: bytes) -> events.Event:
        broken = self.blocklist.broken.count
        return events.StatusRequested(peer=peer, refused=self.rejections.count, broken=broken)

    def _prepared(self, peer: bytes, ready: Ready) -> events.Event:
        """Map the sums of a worker that shares memory, and answer its call; make room for one that sends messages."""
        member = self.coordinator.membership.members.get(peer)
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

    def _send_samples(self, peer: bytes, asked: SamplesRequest) -> events.Event | None:
        """Send samples to a worker, whose leases do not run out while they are on their way."""
        if self.samples is None:
            raise RemoteProtocolError("samples are asked for, which this run does not send: it lacks --ship-data")
        if peer not in self.coordinator.membership.members:
            return None
        failed = self._send(peer, *self.samples.answer(asked))
        return failed[0] if failed else events.WorkerAdvanced(peer=peer)

    def _turn_away(self, peer: bytes, fault: str) -> list[events.Event]:
        """Answer what cannot be understood: a worker of another version would wait for ever, not knowing why."""
        reason = f"it broke protocol {PROTOCOL_VERSION}: {fault}; install the same version of Lockstep on both machines"
        self._send(peer, Refused(reason=shortened(reason)))
        self.blocklist.add(peer, reason)
        return self._peer_gone(peer, reason)

    def _peer_gone(self, peer: bytes, reason: str) -> list[events.Event]:
        """Return what it means to the coordinator that a peer is gone: a worker, a shard, or neither."""
        if peer in self.group.state.members:
            return self.group.on_shard_gone(peer, reason)
        return [events.WorkerLeft(peer=peer, reason=reason)]

    # Events become effects, and effects are carried out

    def _dispatch(self, *happened: events.Event) -> None:
        """Let the coordinator handle events, and whatever its effects lead to."""
        pending = deque(happened)
        while pending:
            for effect in self.coordinator.handle(pending.popleft(), self.clock.now()):
                pending.extend(self._perform(effect))
        # Afterwards: what workers wait for has been sent.
        self.committer.record_completed()
        # Never while workers make steps, and so write the weights: a stretch ends when a checkpoint is due.
        if self.ended is None and not self.stretch.is_any():
            self.committer.take_due_checkpoint()

    def _perform(self, effect: effects.Effect) -> Sequence[events.Event]:
        match effect:
            case effects.Send():
                return self._send(effect.peer, effect.message)
            case effects.SendWeights():
                return self._send_weights(effect.peer, effect.step)
            case effects.AddSharedSums():
                self.receiver.add_shared(effect.node, effect.rank, effect.slot)
                return self.group.add_shared(effect)
            case effects.AwaitShards():
                return self.group.await_sums(effect)
            case effects.ForgetWorker():
                self.receiver.forget(effect.peer, effect.rank)
                return [*self.stretch.remove(effect.rank), *self.group.forget(effect.rank)]
            case effects.UpdateWeights():
                return self.committer.update(effect)
            case effects.BeginStretch():
                return self._begin_stretch(effect)
            case effects.TakeBackSteps():
                return self.stretch.end()
            case effects.RecordStep():
                self.committer.record_made(effect)
            case effects.RecordEpoch():
                self.committer.record_epoch(effect)
            case effects.Report():
                self._report(effect)
            case effects.ReportRefusal():
                self.blocklist.report_refusal(effect.text)
            case effects.Finish():
                self.ended = self.committer.finish(effect)
                self.stretch.close()
            case _:
                assert_never(effect)
        return []

    def _begin_stretch(self, effect: effects.BeginStretch) -> Sequence[events.Event]:
        """Let workers make steps, unless one of them may still write a slice of an update."""
        if any(self.group.updating.state.has_slice(rank) for rank in effect.ranks):
            return [declined(effect)]
        return self.stretch.begin(effect, *self.committer.bounds())

    def _report(self, report: effects.Report) -> None:
        show = self.remind if report.is_reminder and self.remind is not None else self.say
        show(report.text)

    def _send_weights(self, peer: bytes, step: int) -> Sequence[events.Event]:
        """Send our slice of the weights after so many steps; let the other servers send theirs."""
        wire = self.shard.policy.wire_weights
        for frame in self.shard.frames:
            words = wire.pack(frame.of(self.shard.served_weights), frame.start)
            failed = self._send(peer, Weights(step=step, start=frame.start), words)
            if failed:
                return failed
        member = self.coordinator.membership.members.get(peer)
        return [] if member is None else self.group.send_weights(member.rank, step)

    def _record_answer(self, peer: bytes, answer: Result | Dropped) -> None:
        member = self.coordinator.membership.members.get(peer)
        if member is not None and member.shares:
            self.group.updating.on_answer(member.rank, answer)

    def _in_memory(self, peer: bytes, lease: Lease) -> Lease:
        """Return a lease that names the memory in which its weights are, if its worker shares that."""
        member = self.coordinator.membership.members.get(peer)
        if member is None or not member.shares or self.sharing is None:
            return lease
        self.group.updating.on_lease(member.rank, lease)
        generation = self.sharing.generation
        return msgspec.structs.replace(lease, memory=generation) if generation else lease

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> Sequence[events.Event]:
        """Send a message; return that the worker has left if it cannot be sent to."""
        if isinstance(message, Lease):
            self.receiver.expect(peer, message)
            message = self._in_memory(peer, message)
        frames = encode(message, arrays)
        try:
            self.port.send(peer, frames)
        except PeerGone:
            return [events.WorkerLeft(peer=peer, reason="its connection is gone")]
        except PeerSlow:
            return [events.WorkerLeft(peer=peer, reason="it does not read what it is sent")]
        self.traffic.record_sent(message, frames)
        return []
