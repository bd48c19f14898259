"""A shard's shell: turns frames into events and effects into frames, for workers and the server. Decides nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from lockstep.common.aggregation.tree import Vector
from lockstep.common.client.events_and_effects import ClientEvent, Exit, PreparationFailed, Prepared, Welcomed
from lockstep.common.client.shell import ClientShell
from lockstep.common.errors import LockstepError, RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Join, Message, Ping, SumsFrame, Weights, Welcome, shortened
from lockstep.common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardReady,
    ShardWelcome,
    SquaresRequest,
    ToShardMessage,
    Update,
    WorkerToShardMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.diagnosis import Diagnosis
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.links import Wait
from lockstep.common.transport.port import ClientPort, PeerGone, PeerSlow, ServerPort
from lockstep.ps.coordinator.scheduling.buffer_pool import WINDOW
from lockstep.ps.coordinator.validation import not_finite
from lockstep.ps.run.traffic import Traffic
from lockstep.ps.shard_process import effects, events
from lockstep.ps.shard_process.slice_executor import SliceExecutor
from lockstep.ps.shard_process.state import ShardState
from lockstep.ps.shard_process.storage import storage_of

#: Seconds for which the last messages may still be sent.
LINGER_S = 1.0

#: Messages without arrays that may be queued for a worker.
QUEUE = 32


@dataclass
class ShardShell(ClientShell[events.SliceEvent, effects.SliceEffect]):
    """One shard's process: its state, and what carries out the effects of the state."""

    state: ShardState
    #: Where workers dial.
    port: ServerPort
    #: To the server.
    upstream: ClientPort
    clock: Clock
    say: Callable[[str], None]
    wait: Wait
    #: Where memory that a server offers is found, None if none is to be shared.
    root: Path | None = None
    diagnose: Callable[[], Diagnosis | None] | None = None
    #: Connections that were rejected.
    rejections: RejectionLog = field(default_factory=RejectionLog)
    ended: Exit | None = None
    expected = ToShardMessage
    arrays: list[Vector] = field(default_factory=list)
    executor: SliceExecutor | None = None
    #: What crossed the workers' sockets since the last update.
    traffic: Traffic = field(default_factory=Traffic)
    #: The index of the frame that begins there.
    _frame_at: dict[int, int] = field(default_factory=dict)

    def close(self) -> None:
        self.port.close(LINGER_S)
        self.upstream.close(LINGER_S)
        if self.executor is not None:
            self.executor.storage.close()

    def step(self) -> bool:
        """Handle one message, or the passing of time; return whether anything happened."""
        deadline = self.state.deadline()
        if self._receive():
            return True
        left = None if deadline is None else deadline - self.clock.now()
        if left is not None and left <= 0.0:
            self.expire()
            return True
        self.wait((self.upstream, self.port), left)
        for text in self.rejections.due(self.clock.now()):
            self.say(text)
        return self._receive()

    # From messages to events

    def _receive(self) -> bool:
        """Handle one message, if there is any: the server's first, which says who takes part."""
        frames = self.upstream.receive(0.0)
        if frames is not None:
            self.on_server_message(frames)
            return True
        received = self.port.receive(0.0)
        if received is not None:
            self._on_worker_message(*received)
            return True
        lost = self.port.lost()
        for peer in lost:
            self.dispatch(events.PeerFailed(peer=peer, reason="its connection is gone"))
        return bool(lost)

    def _on_worker_message(self, peer: bytes, frames: list[memoryview]) -> None:
        try:
            message, self.arrays = decode(frames, WorkerToShardMessage | Join)
            self.traffic.record_received(message, frames)
            self.dispatch(self._worker_event_of(peer, message))
        except RemoteProtocolError as error:
            self.dispatch(events.PeerFailed(peer=peer, reason=str(error)))

    def _worker_event_of(self, peer: bytes, message: Message) -> events.SliceEvent:
        match message:
            case Hello():
                self._make_room()
                return events.WorkerConnected(peer=peer, hello=message)
            case SumsFrame():
                return events.SumsReceived(peer=peer, sums=message, frame=self._frame_of(message))
            case _:
                raise RemoteProtocolError(f"this is a shard: connect to the server at {self.state.config.address}")

    def _frame_of(self, sums: SumsFrame) -> int:
        frame = self._frame_at.get(sums.start)
        if self.executor is not None and frame is not None:
            shard = self.executor.storage.shard
            if len(self.arrays[0]) == shard.policy.wire.words(shard.frames[frame]):
                if shard.is_finite(frame, self.arrays[0]):
                    return frame
                raise not_finite(sums.step, sums.node())
        raise RemoteProtocolError(f"{len(self.arrays[0])} sums from {sums.start} on: not a frame of this slice")

    def event_of(self, message: Message) -> events.ShardEvent:
        match message:
            case ShardWelcome():
                return Welcomed(welcome=message, place=f"shard {message.index} of {message.servers} servers")
            case InitialFrame():
                self._demand_slice().storage.fill(message.name, message.start, self.arrays[0])
                return events.ServerHeard()
            case Begin():
                self._demand_slice().storage.begin(message.steps)
                return events.SliceFilled(steps=message.steps)
            case Admit():
                return events.WorkerAdmitted(admit=message)
            case Forget():
                return events.WorkerForgotten(rank=message.rank)
            case SendWeightsTo():
                return events.WeightsRequested(request=message)
            case AddFromMemory():
                return events.SumsShared(add=message)
            case SquaresRequest():
                self._demand_sums(message.step, message.count)
                return events.SquaresRequested(request=message)
            case Update():
                self._demand_sums(message.step, message.count)
                return events.UpdateRequested(update=message)
            case Collect():
                self._demand_slice().send_held(message.steps, has_state=False)
                return events.ServerHeard()
            case Ping():
                return events.PingReceived()
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a shard")

    def _demand_sums(self, step: int, count: int) -> None:
        """Raise `RemoteProtocolError` if the sums of the step at hand are incomplete, or over no samples."""
        shard = self._demand_slice().storage.shard
        if step == shard.updates and (count < 1 or not shard.is_whole()):
            raise RemoteProtocolError(f"step {step} over {count} samples, whose sums are not all there")

    def _demand_slice(self) -> SliceExecutor:
        """Return what works on the slice; `RemoteProtocolError` before the welcome."""
        if self.executor is None:
            raise RemoteProtocolError("a state before the welcome")
        return self.executor

    # From effects to actions

    def perform(self, effect: effects.SliceEffect) -> Iterable[events.ShardEvent]:
        executor = self._demand_slice()
        match effect:
            case effects.SendSlice():
                yield from self._send_weights(effect.peer)
            case effects.RefusePeer():
                for _ in self._send(effect.peer, effect.refused):
                    break  # it is given up already
            case effects.MapSums():
                yield from executor.map_sums(effect.rank)
            case effects.UnmapSums():
                executor.unmap_sums(effect.rank)
            case effects.AddFrame() | effects.AddSharedSlice() | effects.SendSquares() | effects.UpdateSlice():
                executor.perform(effect, self.arrays)
            case _:
                assert_never(effect)

    def send_to_server(self, message: Message, *arrays: Vector) -> None:
        try:
            self.upstream.send(encode(message, arrays), self.state.config.silence_s)
        except PeerSlow:
            # Nobody has read for so long: the server's silence ends this.
            return

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> Iterable[events.ShardEvent]:
        frames = encode(message, arrays)
        try:
            self.port.send(peer, frames)
            self.traffic.record_sent(message, frames)
        except PeerGone:
            yield events.PeerFailed(peer=peer, reason="its connection is gone")
        except PeerSlow:
            yield events.PeerFailed(peer=peer, reason="it does not read what it is sent")

    def _send_weights(self, peer: bytes) -> Iterable[events.ShardEvent]:
        storage = self._demand_slice().storage
        shard, wire = storage.shard, storage.shard.policy.wire_weights
        for frame in shard.frames:
            values = shard.served_weights[frame.start - storage.owned.start : frame.stop - storage.owned.start]
            words = wire.pack(values, frame.start)
            for failed in self._send(peer, Weights(step=shard.updates, start=frame.start), words):
                yield failed
                return

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, ShardWelcome)
        try:
            storage = storage_of(welcome, self.root)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        except MemoryError:
            return PreparationFailed(reason=f"a slice of {welcome.size:,} values does not fit into the memory")
        self.executor = SliceExecutor(storage, self.send_to_server, self.traffic)
        self._frame_at = {frame.start: index for index, frame in enumerate(storage.shard.frames)}
        self._make_room()
        return Prepared(ready=ShardReady(nonce=storage.nonce, obstacle=shortened(storage.obstacle)))

    def _make_room(self) -> None:
        """Let the weights for a window of leases be queued for each worker that is there."""
        if self.executor is not None:
            self.port.allow(QUEUE + WINDOW * len(self.executor.storage.shard.frames))
