"""A shard's shell: turns frames into events and effects into frames, for workers and the server. Decides nothing."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from common.aggregation.tree import Vector
from common.errors import LockstepError, RemoteProtocolError
from common.protocol.codec import decode, encode
from common.protocol.messages import Eviction, Finished, Join, Message, Ping, Refused, SumsFrame, Weights
from common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardWelcome,
    SquaresRequest,
    ToShardMessage,
    Update,
    WorkerToShardMessage,
)
from common.runtime.clock import Clock
from common.transport.diagnosis import Diagnosis
from common.transport.limits.rejection_log import RejectionLog
from common.transport.links import Wait
from common.transport.port import ClientPort, PeerGone, PeerSlow, ServerPort
from ps.coordinator.scheduling.buffer_pool import WINDOW
from ps.coordinator.validation import not_finite
from ps.run.traffic import Traffic
from ps.sharding.process import effects, events
from ps.sharding.process.executor import SliceExecutor
from ps.sharding.process.state import ShardState
from ps.sharding.process.storage import storage_of
from ps.sharding.process.transitions import ShardPhase

#: Seconds for which last words may still go out.
LINGER_S = 1.0

#: Messages without arrays that may wait for a worker.
QUEUE = 32


@dataclass
class ShardShell:
    """One shard's process: its state, and the means by which the state's effects happen."""

    state: ShardState
    #: Where workers dial.
    port: ServerPort
    #: To the server.
    upstream: ClientPort
    clock: Clock
    say: Callable[[str], None]
    wait: Wait
    #: Where memory that a server offers is looked for, None where none is to be shared.
    root: Path | None = None
    #: Finds out what is in the way of a connection to the server, None where nothing can be.
    trouble: Callable[[], Diagnosis | None] | None = None
    #: Connections that were not let in.
    denials: RejectionLog = field(default_factory=RejectionLog)
    #: Set once the shard has ended: the process's exit code and the reason.
    ended: effects.Exit | None = None
    work: SliceExecutor | None = None
    #: What crossed the workers' sockets since the last update.
    traffic: Traffic = field(default_factory=Traffic)
    #: The index of the frame that begins there.
    _frame_at: dict[int, int] = field(default_factory=dict)
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)

    def run(self) -> effects.Exit:
        """Serve until the run is over, the server is gone, or the process is interrupted."""
        try:
            self.begin()
            while self.ended is None:
                self.step()
        except KeyboardInterrupt:
            self.interrupt()
        finally:
            self.close()
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        """Give back what the process holds."""
        self.port.close(LINGER_S)
        self.upstream.close(LINGER_S)
        if self.work is not None:
            self.work.place.close()

    def begin(self) -> None:
        """Ask for a slice of the run."""
        self._happen(events.Started())

    def interrupt(self) -> None:
        """Leave the run now."""
        self._happen(events.Interrupted())

    def step(self) -> bool:
        """Handle one message, or the passing of time; return whether anything happened."""
        deadline = self.state.deadline()
        if self._hear():
            return True
        left = None if deadline is None else deadline - self.clock.now()
        if left is not None and left <= 0.0:
            self._happen(self._time_passed())
            return True
        self.wait((self.upstream, self.port), left)
        for text in self.denials.due(self.clock.now()):
            self.say(text)
        return self._hear()

    def _time_passed(self) -> events.TimePassed:
        """Return that time passed, and where no server has answered yet, what is in the way."""
        trouble = self.trouble() if self.state.phase is ShardPhase.JOINING and self.trouble is not None else None
        if trouble is None:
            return events.TimePassed()
        return events.TimePassed(obstacle=trouble.text, is_hopeless=trouble.is_final)

    def _hear(self) -> bool:
        """Handle one message, if there is any: the server's first, which says who takes part."""
        frames = self.upstream.receive(0.0)
        if frames is not None:
            self._hear_server(frames)
            return True
        received = self.port.receive(0.0)
        if received is not None:
            self._hear_worker(*received)
            return True
        lost = self.port.lost()
        for peer in lost:
            self._happen(events.PeerFailed(peer=peer, reason="its connection is gone"))
        return bool(lost)

    def _hear_server(self, frames: list[memoryview]) -> None:
        try:
            message, self._arrays = decode(frames, ToShardMessage)
            event = self._event(message)
        except RemoteProtocolError as error:
            event = events.ProtocolBroken(fault=str(error))
        self._happen(event)

    def _hear_worker(self, peer: bytes, frames: list[memoryview]) -> None:
        try:
            message, self._arrays = decode(frames, WorkerToShardMessage | Join)
            self.traffic.came(message, frames)
            self._happen(self._visit(peer, message))
        except RemoteProtocolError as error:
            self._happen(events.PeerFailed(peer=peer, reason=str(error)))

    def _visit(self, peer: bytes, message: Message) -> events.ShardEvent:
        match message:
            case Hello():
                self._make_room()
                return events.WorkerGreeted(peer=peer, hello=message)
            case SumsFrame():
                return events.SumsFrameReceived(peer=peer, part=message, frame=self._frame_of(message))
            case _:
                raise RemoteProtocolError(f"this is a shard: workers dial the server, {self.state.facts.address}")

    def _frame_of(self, part: SumsFrame) -> int:
        frame = self._frame_at.get(part.start)
        if self.work is not None and frame is not None:
            shard = self.work.place.shard
            if len(self._arrays[0]) == shard.policy.wire.words(shard.frames[frame]):
                if shard.is_finite(frame, self._arrays[0]):
                    return frame
                raise not_finite(part.step, part.node())
        raise RemoteProtocolError(f"{len(self._arrays[0])} sums from {part.start} on: no frame of this slice")

    def _event(self, message: Message) -> events.ShardEvent:
        match message:
            case ShardWelcome():
                return events.Welcomed(welcome=message)
            case Refused():
                return events.JoinRefused(refused=message)
            case Eviction():
                return events.Evicted(fenced=message)
            case InitialFrame():
                self._demand_work().place.fill(message.name, message.start, self._arrays[0])
                return events.ServerHeard()
            case Begin():
                self._demand_work().place.begin(message.steps)
                return events.Begun(steps=message.steps)
            case Admit():
                return events.WorkerAdmitted(admit=message)
            case Forget():
                return events.WorkerForgotten(rank=message.rank)
            case SendWeightsTo():
                return events.WeightsWanted(serve=message)
            case AddFromMemory():
                return events.SumsShared(add=message)
            case SquaresRequest():
                self._demand_sums(message.step, message.count)
                return events.SquaresWanted(asked=message)
            case Update():
                self._demand_sums(message.step, message.count)
                return events.UpdateWanted(update=message)
            case Collect():
                self._demand_work().tell_held(message.steps, has_state=False)
                return events.ServerHeard()
            case Finished():
                return events.RunFinished(finished=message)
            case Ping():
                return events.ServerAsked()
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is no message for a shard")

    def _demand_sums(self, step: int, count: int) -> None:
        """Raise `RemoteProtocolError` where the sums of the step at hand are not all there, or over no samples."""
        shard = self._demand_work().place.shard
        if step == shard.updates and (count < 1 or not shard.is_whole()):
            raise RemoteProtocolError(f"step {step} over {count} samples, whose sums are not all there")

    def _demand_work(self) -> SliceExecutor:
        """Return what works on the slice; `RemoteProtocolError` before the welcome."""
        if self.work is None:
            raise RemoteProtocolError("a state before the welcome")
        return self.work

    def _happen(self, event: events.ShardEvent) -> None:
        """Let the state handle an event, and whatever its effects lead to."""
        pending = deque([event])
        while pending:
            for effect in self.state.handle(pending.popleft(), self.clock.now()):
                pending.extend(self._perform(effect))

    def _perform(self, effect: effects.ShardEffect) -> Iterator[events.ShardEvent]:
        match effect:
            case effects.Tell():
                self._tell(effect.message)
            case effects.Prepare():
                yield self._prepare(effect.welcome)
            case effects.SendWeights():
                yield from self._send_weights(effect.peer)
            case effects.RefusePeer():
                for _ in self._send(effect.peer, effect.refused):
                    break  # it is given up already
            case effects.MapSums():
                yield from self._demand_work().map(effect.rank)
            case effects.DropSums():
                self._demand_work().drop(effect.rank)
            case effects.Report():
                self.say(effect.text)
            case effects.Exit():
                self.ended = effect
            case effects.AddFrame() | effects.AddSharedSlice() | effects.SendSquares() | effects.UpdateSlice():
                self._demand_work().do(effect, self._arrays)
            case _:
                assert_never(effect)

    def _tell(self, message: Message, *arrays: Vector) -> None:
        try:
            self.upstream.send(encode(message, arrays), self.state.facts.silence_s)
        except PeerSlow:
            # Nobody has read for so long: the server's silence ends this.
            return

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> Iterator[events.ShardEvent]:
        frames = encode(message, arrays)
        try:
            self.port.send(peer, frames)
            self.traffic.went(message, frames)
        except PeerGone:
            yield events.PeerFailed(peer=peer, reason="its connection is gone")
        except PeerSlow:
            yield events.PeerFailed(peer=peer, reason="it does not read what it is sent")

    def _send_weights(self, peer: bytes) -> Iterator[events.ShardEvent]:
        place = self._demand_work().place
        shard, wire = place.shard, place.shard.policy.wire_weights
        for frame in shard.frames:
            values = shard.served_weights[frame.start - place.owned.start : frame.stop - place.owned.start]
            words = wire.pack(values, frame.start)
            for failed in self._send(peer, Weights(step=shard.updates, start=frame.start), words):
                yield failed
                return

    def _prepare(self, welcome: ShardWelcome) -> events.ShardEvent:
        try:
            place = storage_of(welcome, self.root)
        except LockstepError as error:
            return events.PreparationFailed(reason=str(error))
        except MemoryError:
            return events.PreparationFailed(reason=f"a slice of {welcome.size:,} values does not fit into the memory")
        self.work, shard = SliceExecutor(place, self._tell, self.traffic), place.shard
        self._frame_at = {frame.start: index for index, frame in enumerate(shard.frames)}
        self._make_room()
        return events.Prepared(
            frames=len(shard.frames),
            micro_batches=shard.micro_batches,
            nonce=place.nonce,
            obstacle=place.obstacle,
        )

    def _make_room(self) -> None:
        """Let the weights for a window of leases wait for each worker that is there."""
        if self.work is not None:
            self.port.allow(QUEUE + WINDOW * len(self.work.place.shard.frames))
