"""A shard's shell: turns frames into events and effects into frames, for workers and the server. Decides nothing."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

import numpy as np

from lockstep.common.aggregation.checksum import MODULUS
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import LockstepError, RemoteProtocolError, SharingError
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Join, Message, StandbyAddress, SumsFrame, Weights, Welcome, shortened
from lockstep.common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    CollectedFrame,
    Forget,
    Hello,
    InitialFrame,
    ShardReady,
    ShardWelcome,
    Squares,
    SquaresRequest,
    ToShardMessage,
    Update,
    UpdateDone,
    WorkerLost,
    WorkerToShardMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import ClientEvent, Exit, PreparationFailed, Prepared
from lockstep.common.statemachine.client_shell import ClientShell
from lockstep.common.statemachine.delivery import deliver
from lockstep.common.statemachine.machine import PeerLeft, Received, Send
from lockstep.common.transport.diagnosis import Diagnosis
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.links import Wait
from lockstep.common.transport.port import ClientPort, Dial, PeerSlow, ServerPort
from lockstep.ps.coordinator.failures import not_finite
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from lockstep.ps.run.traffic import Traffic
from lockstep.ps.shard.partition import checksum_in, held_frames
from lockstep.ps.shard_process import state as machine
from lockstep.ps.shard_process.state import ShardState
from lockstep.ps.shard_process.storage import ShardStorage, storage_of

#: Seconds for which the last messages may still be sent.
LINGER_S = 1.0

#: Messages without arrays that may be queued for a worker.
QUEUE = 32


@dataclass
class ShardShell(ClientShell[machine.SliceEvent, machine.SliceEffect]):
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
    #: How a standby is reached, which leads the run if the server is gone; None if there can be none.
    dial: Dial | None = None
    ended: Exit | None = None
    expected = ToShardMessage
    arrays: list[Vector] = field(default_factory=list)
    #: The slice, None before the welcome.
    storage: ShardStorage | None = None
    #: By rank, our part of the sums of workers that share memory.
    sums: dict[int, tuple[Vector, ...]] = field(default_factory=dict)
    #: What crossed the workers' sockets since the last update.
    traffic: Traffic = field(default_factory=Traffic)

    def close(self) -> None:
        self.port.close(LINGER_S)
        self.upstream.close(LINGER_S)
        if self.storage is not None:
            self.storage.close()

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
            self.dispatch(PeerLeft(peer=peer, reason="its connection is gone"))
        return bool(lost)

    def _on_worker_message(self, peer: bytes, frames: list[memoryview]) -> None:
        try:
            message, self.arrays = decode(frames, WorkerToShardMessage | Join)
            self.traffic.record_received(message, frames)
            self._check(message)
            self.dispatch(Received(peer=peer, message=message))
        except RemoteProtocolError as error:
            self.dispatch(PeerLeft(peer=peer, reason=str(error)))

    def _check(self, message: Message) -> None:
        """Raise `RemoteProtocolError` if a message must not come from a worker."""
        match message:
            case Hello():
                return
            case SumsFrame():
                self._check_sums(message)
            case _:
                raise RemoteProtocolError(f"this is a shard: connect to the server at {self.state.config.address}")

    def _check_sums(self, sums: SumsFrame) -> None:
        frame, words = self.state.frame_at.get(sums.start), self.arrays[0]
        if self.storage is None or frame is None or not self.storage.shard.fits(frame, words):
            raise RemoteProtocolError(f"{len(words)} sums from {sums.start} on: not a frame of this slice")
        if not self.storage.shard.is_finite(frame, words):
            raise not_finite(sums.step, sums.node())

    def event_of(self, message: Message) -> machine.ShardEvent:
        match message:
            case InitialFrame():
                self._demand_slice().fill(message.name, message.start, self.arrays[0])
            case Begin():
                self._demand_slice().begin(message.steps)
            case SquaresRequest() | Update():
                self._demand_sums(message.step, message.divisor)
            case Collect():
                self._send_held(message.steps, has_state=False)
            case _ if not isinstance(message, machine.Request | ShardWelcome):
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a shard")
        return message

    def _demand_sums(self, step: int, divisor: float) -> None:
        """Raise `RemoteProtocolError` if the sums of the step at hand are incomplete, or divided by less than 0."""
        shard = self._demand_slice().shard
        if step == shard.updates and (not 0.0 <= divisor < math.inf or not shard.is_whole()):
            raise RemoteProtocolError(f"step {step} over {divisor} targets, whose sums are not all there")

    def _demand_slice(self) -> ShardStorage:
        """Return the slice; `RemoteProtocolError` before the welcome."""
        if self.storage is None:
            raise RemoteProtocolError("a state before the welcome")
        return self.storage

    # From effects to actions

    def perform(self, effect: machine.SliceEffect) -> Iterable[machine.ShardEvent]:
        storage = self._demand_slice()
        match effect:
            case machine.SendSlice():
                yield from self._send_weights(effect.peer)
            case Send():
                self._send(effect.peer, effect.message)  # to a peer that is given up already
            case Admit(rank=rank):
                try:
                    self.sums[rank] = storage.sums_of(rank)
                except SharingError as error:
                    yield WorkerLost(rank=rank, reason=shortened(str(error)))
            case Forget(rank=rank):
                self.sums.pop(rank, None)
            case machine.AddFrame():
                storage.shard.receive(effect.frame, effect.node, self.arrays[0])
            case AddFromMemory():
                sums = self.sums[effect.rank][effect.slot]
                storage.shard.add(effect.node(), sums)
                # The server leases the slot again as soon as this is acknowledged.
                storage.shard.settle(sums)
            case SquaresRequest():
                squares = storage.shard.squares(effect.divisor).view(np.float32)
                self.send_to_server(Squares(step=effect.step), squares)
            case Update():
                self._update(storage, effect)
            case _:
                assert_never(effect)

    def _update(self, storage: ShardStorage, update: Update) -> None:
        """Make an update, and send the server what it collects of it."""
        storage.shard.update(update.step, update.divisor, update.scale)
        if update.collected != "nothing":
            self._send_held(update.step + 1, has_state=update.collected == "all")
        moved = self.traffic.drain()
        done = UpdateDone(
            step=update.step,
            checksum=str(checksum_in(storage.shard, update.step, storage.size) % MODULUS),
            sums_bytes=moved.sums,
            weights_bytes=moved.weights,
            is_finite=storage.shard.not_finite is None,
        )
        self.send_to_server(done)

    def _send_held(self, updates: int, *, has_state: bool) -> None:
        """Send the server what it cannot see of the slice."""
        storage = self._demand_slice()
        frames = held_frames(storage.shard, updates, has_weights=not storage.shows_weights, has_state=has_state)
        for name, part, values in frames:
            self.send_to_server(CollectedFrame(name=name, steps=updates, start=part.start), values)

    def send_to_server(self, message: Message, *arrays: Vector) -> None:
        try:
            self.upstream.send(encode(message, arrays), self.state.config.silence_s)
        except PeerSlow:
            # Nobody has read for so long: the server's silence ends this.
            return

    def redial(self, server: StandbyAddress) -> None:
        assert self.dial is not None  # otherwise no other server is known
        self.upstream.close()
        self.upstream = self.dial(server.address, server.public)

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> list[PeerLeft]:
        frames = encode(message, arrays)
        failed = deliver(self.port, peer, frames)
        if not failed:
            self.traffic.record_sent(message, frames)
        return failed

    def _send_weights(self, peer: bytes) -> list[PeerLeft]:
        storage = self._demand_slice()
        shard, wire = storage.shard, storage.shard.policy.wire_weights
        for frame in shard.frames:
            values = shard.served_weights[frame.start - storage.owned.start : frame.stop - storage.owned.start]
            words = wire.pack(values, frame.start)
            failed = self._send(peer, Weights(step=shard.updates, start=frame.start), words)
            if failed:
                return failed
        return []

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, ShardWelcome)
        try:
            take_numerics(welcome.job.numerics)
            storage = storage_of(welcome, self.root)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        except MemoryError:
            return PreparationFailed(reason=f"a slice of {welcome.size:,} values does not fit into the memory")
        if self.storage is not None:
            self.storage.close()
        self.storage, self.sums = storage, {}
        # Before workers are told where this shard is.
        self.port.make_room(QUEUE + WINDOW * len(storage.shard.frames))
        obstacle = shortened(storage.obstacle)
        ready = ShardReady(nonce=storage.nonce, obstacle=obstacle, index=welcome.index, term=welcome.term)
        return Prepared(ready=ready)
