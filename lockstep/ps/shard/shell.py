"""A shard's shell: turns frames into events and effects into frames, and holds its slice. Decides nothing."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np

from lockstep.common.aggregation.checksum import MODULUS
from lockstep.common.aggregation.slices import Span, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import Diagnosis, LockstepError, RefusalKind, RemoteProtocolError
from lockstep.common.job.optimizer import policy_of
from lockstep.common.job.own_code import NO_CODE, needs_code
from lockstep.common.model.source import source_from_welcome
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    Join,
    Message,
    Ping,
    Refused,
    SumsFrame,
    Welcome,
    shortened,
)
from lockstep.common.protocol.shard_messages import (
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    SendWeightsTo,
    ShardReady,
    ShardWelcome,
    SliceFrame,
    Squares,
    SquaresRequest,
    ToShardMessage,
    Update,
    UpdateDone,
    WorkerLost,
    WorkerToShardMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import ClientEvent, Exit, PreparationFailed
from lockstep.common.statemachine.client_shell import ClientShell
from lockstep.common.statemachine.loop import MOST_AT_ONCE, EventLoop
from lockstep.common.statemachine.machine import PeerLeft, Received, soonest
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import LINGER_S, ClientPort, PeerSlow, ServerPort, Wait
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from lockstep.ps.run.progress import Traffic
from lockstep.ps.shard import state as machine
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard.partition import checksum_in, fill, held_frames
from lockstep.ps.shard.service import SliceService
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard.state import Acknowledgements, ShardPhase, ShardState

#: Made once: to join unions takes as long as to decode a message.
EXPECTED = WorkerToShardMessage | Join

#: Messages without arrays that may be queued for a worker.
QUEUE = 32


def service_of(welcome: ShardWelcome, outbox: Outbox) -> SliceService:
    """Return the service of a shard for its slice; a `UsageError` if it cannot do the job."""
    job, size = welcome.job, welcome.size
    owned = slices_for(size, welcome.options.servers)[welcome.index]
    momenta = np.zeros(size - welcome.parameter_size, np.float32)
    own = NO_CODE
    if needs_code(job):
        own = source_from_welcome(job, welcome.source, welcome.model_files, welcome.model_folder).own_code()
    spans = welcome.spans or (Span(welcome.parameter_size),)
    if spans[-1].stop != welcome.parameter_size:
        raise RemoteProtocolError(f"groups of {spans[-1].stop} values: expected {welcome.parameter_size}")
    policy = policy_of(job, welcome.training_samples, spans, momenta, own)
    slots = np.zeros(len(owned), np.float32), np.zeros(len(owned), np.float32)
    return SliceService(Shard(slots, policy, job.micro_batches, owned.start), outbox)


@dataclass
class ShardShell(ClientShell[machine.SliceEvent, machine.SliceEvent]):
    """One shard's process: its state, and what carries out the effects of the state."""

    state: ShardState
    #: The port that workers dial.
    port: ServerPort
    #: To the server.
    upstream: ClientPort
    clock: Clock
    say: Callable[[str], None]
    wait: Wait
    #: Connections that were rejected.
    rejections: RejectionLog = field(default_factory=RejectionLog)
    ended: Exit | None = None
    expected = ToShardMessage
    arrays: list[Vector] = field(default_factory=list)
    #: For its slice, None before the welcome.
    service: SliceService | None = None
    acknowledgements: Acknowledgements = field(default_factory=Acknowledgements)
    #: To workers, with the bytes that crossed their sockets since the last update.
    outbox: Outbox = field(init=False)
    loop: EventLoop[machine.ShardEvent] = field(init=False)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.port, Traffic())
        self.loop = EventLoop(self.clock, self, (self,), self.dispatch_all, messages_first=True, hold=nullcontext)

    def close(self) -> None:
        self.port.close(LINGER_S)
        self.upstream.close(LINGER_S)

    # The loop's only part, and its inbox

    def deadline(self) -> float | None:
        return soonest(self.state.deadline(), self.acknowledgements.due)

    def on_time(self, now: float) -> Sequence[machine.ShardEvent]:
        self._acknowledge(now)
        due = self.state.deadline()
        if due is not None and now >= due:
            self.expire()
        return []

    def listen(self, seconds: float | None) -> None:
        self.wait((self.upstream, self.port), seconds)
        for text in self.rejections.due(self.clock.now()):
            self.say(text)

    # From messages to events

    def take(self) -> Sequence[machine.ShardEvent] | None:
        """Handle a message of the server, which names the workers that take part, or else those of workers."""
        frames = self.upstream.receive(0.0)
        if frames is not None:
            self.on_server_message(frames)
            return []
        received, left = self.port.receive(0.0), MOST_AT_ONCE
        while received is not None:
            self._on_worker_message(*received)
            left -= 1
            received = self.port.receive(0.0) if left else None
        if left < MOST_AT_ONCE:
            return []
        lost = self.port.lost()
        return [PeerLeft(peer=peer, reason="its connection is gone") for peer in lost] if lost else None

    def _on_worker_message(self, peer: bytes, frames: list[memoryview]) -> None:
        try:
            message, self.arrays = decode(frames, EXPECTED)
            self.outbox.traffic.record_received(message, frames)
            if isinstance(message, Join):
                raise RemoteProtocolError(f"this is a shard: connect to the server at {self.state.config.address}")
            self.dispatch(Received(peer=peer, message=message))
        except RemoteProtocolError as error:
            self.dispatch(PeerLeft(peer=peer, reason=str(error)))

    def events_of(self, message: Message) -> Sequence[machine.ShardEvent]:
        match message:
            case SliceFrame():
                fill(self._demand_service().shard, message.name, message.start, self.arrays[0])
            case Begin():
                shard = self._demand_service().shard
                shard.updates = message.steps
                shard.refresh_served()
            case SquaresRequest() | Update() if self.state.phase is ShardPhase.SERVING:
                self._demand_sums(message.step, message.divisor)
            case _ if not isinstance(message, machine.Request | ShardWelcome):
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a shard")
        return [message]

    def _demand_sums(self, step: int, divisor: float) -> None:
        """Raise `RemoteProtocolError` if the server is at another step, or the sums of this one are incomplete."""
        shard = self._demand_service().shard
        if step != shard.updates:
            raise RemoteProtocolError(f"the server is at step {step}, this shard at {shard.updates}: expected the same")
        if not 0.0 <= divisor < math.inf or not shard.is_whole():
            raise RemoteProtocolError(f"step {step} over {divisor} targets, whose sums are not all there")

    def _demand_service(self) -> SliceService:
        """Return the service for the slice; `RemoteProtocolError` before the welcome."""
        if self.service is None:
            raise RemoteProtocolError("a state before the welcome")
        return self.service

    # From effects to actions

    def perform(self, effect: machine.SliceEvent) -> Iterable[machine.ShardEvent]:
        service = self._demand_service()
        match effect:
            case Received(peer=peer, message=Hello() as hello):
                yield from service.identify(peer, hello)
            case Received(peer=peer, message=SumsFrame() as sums):
                self._add(service, peer, sums)
            case Received():
                raise AssertionError(effect)  # a worker sends nothing else
            case PeerLeft():
                self._lose(service, effect)
            case Admit():
                service.admit(effect)
            case Forget(rank=rank):
                service.forget(rank)
            case SendWeightsTo(rank=rank, step=step):
                yield from service.send_weights(rank, step)
            case SquaresRequest():
                squares = service.shard.squares(effect.divisor).view(np.float32)
                self.send_to_server(Squares(step=effect.step), squares)
            case Update():
                yield from self._update(service, effect)
            case Collect():
                self._send_held(service.shard, effect.steps, has_state=False)
            case Ping():
                self.send_to_server(Ping())
            case SliceFrame() | Begin():
                return  # carried out when it came
            case _:
                assert_never(effect)

    def _add(self, service: SliceService, peer: bytes, sums: SumsFrame) -> None:
        """Add a frame of a worker's sums; acknowledge the sums some time after they are whole."""
        now = self.clock.now()
        is_new, worker = service.on_frame(peer, sums, self.arrays[0]), service.worker_at(peer)
        if is_new and worker is not None and service.has_all(peer, sums.step, sums.node()):
            is_whole = service.shard.is_whole()
            self.acknowledgements.add(worker.admit.rank, sums, now, is_whole=is_whole)
            self._acknowledge(now)

    def _acknowledge(self, now: float) -> None:
        """Acknowledge the sums for which it is time, unless the shard has left the run meanwhile."""
        for ack in self.acknowledgements.take(now):
            if self.state.phase is ShardPhase.SERVING:
                self.send_to_server(ack)

    def _lose(self, service: SliceService, left: PeerLeft) -> None:
        """Continue without a worker that broke the protocol or cannot be reached, and report it to the server."""
        reason = shortened(left.reason)
        self.outbox.send(left.peer, Refused(reason=reason, kind=RefusalKind.FAILED))
        rank = service.forget_peer(left.peer)
        if rank is not None:
            self.send_to_server(WorkerLost(rank=rank, reason=reason))

    def _update(self, service: SliceService, update: Update) -> Sequence[PeerLeft]:
        """Make an update, send the server what it collects of it, and workers the new weights."""
        shard = service.shard
        shard.update(update.step, update.divisor, update.scale)
        if update.collected != "nothing":
            self._send_held(shard, update.step + 1, has_state=update.collected == "all")
        moved = self.outbox.traffic.drain()
        done = UpdateDone(
            step=update.step,
            checksum=str(checksum_in(shard, update.step) % MODULUS),
            sums_bytes=moved.sums,
            weights_bytes=moved.weights,
            is_finite=shard.not_finite is None,
        )
        self.send_to_server(done)
        return [left for rank in update.ranks for left in service.send_weights(rank, shard.updates)]

    def _send_held(self, shard: Shard, updates: int, *, has_state: bool) -> None:
        """Send the server what it collects of the slice."""
        for name, part, values in held_frames(shard, shard.owned, updates, has_state=has_state):
            self.send_to_server(SliceFrame(name=name, steps=updates, start=part.start), values)

    def send_to_server(self, message: Message, *arrays: Vector) -> None:
        try:
            self.upstream.send(encode(message, arrays), self.state.config.patience_s)
        except PeerSlow:
            # The server has read nothing for so long: its silence ends this.
            return

    def diagnosis(self) -> Diagnosis | None:
        return self.upstream.diagnosis()

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, ShardWelcome)
        try:
            take_numerics(welcome.job.numerics)
            service = service_of(welcome, self.outbox)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        except MemoryError:
            return PreparationFailed(reason=f"a slice of {welcome.size:,} values does not fit into the memory")
        self.service, self.acknowledgements = service, Acknowledgements()
        # Before workers are told where this shard is.
        self.port.make_room(QUEUE + WINDOW * len(service.shard.frames))
        return ShardReady(index=welcome.index, part=welcome.part)
