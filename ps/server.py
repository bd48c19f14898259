"""The server's shell: turns frames into events and effects into frames, and keeps the run's files. Decides nothing."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from common.clock import Clock
from common.codec import decode, encode
from common.errors import RemoteProtocolError
from common.messages import (
    PROTOCOL_VERSION,
    Alive,
    Diverged,
    Failed,
    Join,
    Lease,
    Leave,
    Message,
    Part,
    Ready,
    Refused,
    Result,
    ServerMessage,
    StatusAsked,
    Weights,
    WorkerMessage,
    shortened,
)
from common.reduction import Node, Vector, is_node
from common.transport.port import PeerGone, PeerSlow, ServerPort
from ps import effects, events
from ps.coordinator import Coordinator
from ps.frame_book import FrameBook
from ps.keeper import Keeper
from ps.leasing import WINDOW
from ps.mark import mark_after
from ps.recorder import Recorder, carried
from ps.shard import Shard
from ps.sharing import Sharing

#: Seconds for which the last messages may still go out.
LINGER_S = 1.0

#: Seconds between two looks at the run by whoever shows it.
LOOK_S = 0.1

#: Messages without arrays that may wait for a worker. Beside them it may have the weights for a window of leases: what
#: does not read costs no more.
QUEUE = 32

#: Peers that were turned away and are remembered.
REFUSED = 1024


@dataclass
class Server:
    """One run at the server: the coordinator, the shard, and the means by which effects happen."""

    coordinator: Coordinator
    shard: Shard
    recorder: Recorder
    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: The memory that workers on this machine share, if there is any.
    sharing: Sharing | None = None
    #: Takes the checkpoints, where there is to be any.
    keeper: Keeper | None = None
    #: Set once the run has ended.
    ended: effects.Finish | None = None
    book: FrameBook = field(init=False)
    #: Peers that were turned away, the last ones: one that goes on talking is not answered again, nor told of.
    _refused: dict[bytes, None] = field(default_factory=dict)
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)
    #: When the progress was last shown.
    _shown: float = -math.inf

    def __post_init__(self) -> None:
        self.book = FrameBook(len(self.shard.frames))
        #: The index of the frame that begins there.
        self._frame_at = {frame.start: index for index, frame in enumerate(self.shard.frames)}

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
        deadline, now = self.coordinator.deadline(), self.clock.now()
        # First, since there may always be a message: leases run out and dead workers are noticed all the same.
        if deadline is not None and now >= deadline:
            self._happen(events.TimePassed())
            return True
        received = self.port.receive(None if deadline is None else deadline - now)
        if received is not None:
            self._hear(*received)
        return received is not None

    def _hear(self, peer: bytes, frames: list[memoryview]) -> None:
        if peer in self._refused:
            return
        try:
            message, self._arrays = decode(frames, WorkerMessage)
            event = self._event(peer, message)
        except RemoteProtocolError as error:
            event = self._turn_away(peer, str(error))
        if event is not None:
            self._happen(event)

    def _turn_away(self, peer: bytes, fault: str) -> events.Event:
        """Answer what cannot be understood: a worker of another version would wait for ever, not knowing why."""
        reason = f"it broke protocol {PROTOCOL_VERSION}: {fault}; is the same version of lockstep on both sides?"
        self.say(f"refused a peer: {reason}")
        self._send(peer, Refused(reason=shortened(reason)))
        self._refused[peer] = None
        if len(self._refused) > REFUSED:
            del self._refused[next(iter(self._refused))]
        return events.WorkerLeft(peer=peer, reason=reason)

    def _event(self, peer: bytes, message: Message) -> events.Event | None:
        match message:
            case Join():
                return events.WorkerJoined(peer=peer, join=message)
            case Ready():
                return self._prepared(peer, message)
            case Part():
                return events.WorkerAdvanced(peer=peer) if self._take(peer, message) else None
            case Result():
                return events.ResultReceived(peer=peer, result=message) if self._is_whole(peer, message) else None
            case Failed():
                return events.PieceFailed(peer=peer, failed=message)
            case Diverged():
                return events.LossDiverged(peer=peer, diverged=message)
            case Leave():
                return events.WorkerLeft(peer=peer, reason=message.reason)
            case Alive():
                return events.WorkerAsked(peer=peer)
            case StatusAsked():
                return events.StatusRequested(peer=peer)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is no message for a server")

    def _prepared(self, peer: bytes, ready: Ready) -> events.Event:
        """Map the sums of a worker that shares memory; make room for the messages of one that does not."""
        member = self.coordinator.roster.members.get(peer)
        if not ready.nonce:
            self.port.allow(QUEUE + WINDOW * len(self.shard.frames))
        elif self.sharing is None:
            raise RemoteProtocolError("it shares memory that it was not offered")
        elif member is not None:
            self.sharing.admit(member.rank, ready.nonce)
        return events.WorkerPrepared(peer=peer, shares=bool(ready.nonce), obstacle=ready.obstacle)

    def _take(self, peer: bytes, part: Part) -> bool:
        """Add a frame straight from the memory it was received in, if a lease asks for it; return whether one does."""
        frame, node = self._frame_at.get(part.start), part.node()
        if frame is None or not is_node(node.lo, node.hi, self.shard.micro_batches):
            raise RemoteProtocolError(f"sums over [{part.lo}, {part.hi}) from {part.start} on: no frame of any lease")
        self._check_length(len(self.shard.frames[frame]))
        if not self.book.take(peer, part.step, node, frame):
            return False
        self.shard.add_frame(frame, node, self._arrays[0])
        return True

    def _is_whole(self, peer: bytes, result: Result) -> bool:
        """Tell whether a result came with all that belongs to it: otherwise a part of it came too late to be taken."""
        self.book.count(peer)
        if result.work == "train" and len(result.losses) != 4 * (result.hi - result.lo):
            raise RemoteProtocolError(f"losses of {len(result.losses)} bytes: expected 4 for each of its pieces")
        if result.work == "evaluate" or self._shares(peer):
            return True
        if self._arrays:
            self._check_length(self.shard.weights.size)
            return True
        return self.book.is_whole(peer, result.step, result.node())

    def _shares(self, peer: bytes) -> bool:
        """Tell whether a peer is a worker that sends no frames."""
        member = self.coordinator.roster.members.get(peer)
        return member is not None and member.shares

    def _check_length(self, expected: int) -> None:
        if len(self._arrays[0]) != expected:
            raise RemoteProtocolError(f"sums of {len(self._arrays[0])} values: expected {expected}")

    def _happen(self, event: events.Event) -> None:
        """Let the coordinator handle an event, and whatever its effects lead to."""
        pending = deque([event])
        while pending:
            for effect in self.coordinator.handle(pending.popleft(), self.clock.now()):
                following = self._perform(effect)
                if following is not None:
                    pending.append(following)
        # Afterwards: what workers wait for has been sent.
        if self.keeper is not None and not (self.ended and self.ended.failure):
            self.keeper.look(self.shard, self.coordinator.progress, self.coordinator.roster.compute_s)

    def _perform(self, effect: effects.Effect) -> events.Event | None:
        match effect:
            case effects.Send():
                return self._send(effect.peer, effect.message)
            case effects.SendWeights():
                return self._send_weights(effect.peer, effect.step)
            case effects.AddSums():
                if self._arrays:
                    self.shard.add(effect.node, self._arrays[0])
            case effects.AddShared():
                assert self.sharing is not None  # a worker shares only what was offered
                self.shard.add(effect.node, self.sharing.sums[effect.rank][effect.slot])
            case effects.ForgetWorker():
                self.book.forget(effect.peer)
                if self.sharing is not None:
                    self.sharing.forget(effect.rank)
            case effects.UpdateWeights():
                self._update(effect)
            case effects.RecordEpoch():
                self.recorder.note(*effect.account.others("evaluate", self.shard.updates))
                self.recorder.epoch(effect.epoch, self.shard.digest())
            case effects.Say():
                self.say(effect.text)
            case effects.Finish():
                self._finish(effect)
            case _:
                assert_never(effect)
        return None

    def _send_weights(self, peer: bytes, step: int) -> events.Event | None:
        for frame in self.shard.frames:
            failed = self._send(peer, Weights(step=step, start=frame.start), frame.of(self.shard.weights))
            if failed is not None:
                return failed
        return None

    def _send(self, peer: bytes, message: ServerMessage, *arrays: Vector) -> events.Event | None:
        if isinstance(message, Lease):
            self._book(peer, message)
        try:
            self.port.send(peer, encode(message, arrays))
        except PeerGone:
            return events.WorkerLeft(peer=peer, reason="its connection is gone")
        except PeerSlow:
            return events.WorkerLeft(peer=peer, reason="it does not read what it is sent")
        return None

    def _book(self, peer: bytes, lease: Lease) -> None:
        """Get ready for a lease before its worker does: for its frames, or for its sums in the slot that it names."""
        member = self.coordinator.roster.members.get(peer)
        if member is not None and member.shares:
            assert self.sharing is not None  # as for `AddShared`
            self.shard.settle(self.sharing.sums[member.rank][lease.slot])
        elif lease.work == "train":
            self.book.grant(peer, lease.step, Node(lease.lo, lease.hi))
        else:
            self.book.expect(peer, 1)

    def _update(self, effect: effects.UpdateWeights) -> None:
        began = self.clock.now()
        rate = self.shard.update(effect.step, effect.tally.count)
        now = self.clock.now()
        self.recorder.step(effect.step, effect.tally, rate, now - began, self.coordinator.progress.last_step)
        self.recorder.account(effect.step, effect.account, mark_after(effect.step, self.shard.weights))

    def _finish(self, finish: effects.Finish) -> None:
        coordinator, shard = self.coordinator, self.shard
        if not finish.failure:
            roster = coordinator.roster
            self.recorder.setting = carried(self.recorder.setting, roster.sharing, roster.obstacle)
            self.recorder.finish(
                coordinator.progress,
                workers=coordinator.roster.most_prepared,
                compute_s=coordinator.roster.compute_s,
                weights=shard.weights,
                now=self.clock.now(),
            )
        elif finish.is_diverged:
            self.recorder.fail(finish.failure, *shard.before_last())
        else:
            if self.keeper is not None:
                self.keeper.take(shard, coordinator.progress, coordinator.roster.compute_s)
            self.recorder.fail(finish.failure, *shard.whole())
        self.ended = finish
