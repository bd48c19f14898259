"""The server's inbox: from frames to messages, and from these to events, by the part that handles each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import decode
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Message,
    Refused,
    Result,
    SumsFrame,
    WorkerMessage,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardMessage
from lockstep.common.statemachine.loop import MOST_AT_ONCE
from lockstep.common.statemachine.machine import kind_of
from lockstep.ps.coordinator.events import Event, PeerLeft
from lockstep.ps.server.limits import PeerBlocklist
from lockstep.ps.shard.outbox import Outbox

#: Made once: to join unions takes as long as to decode a message.
EXPECTED = WorkerMessage | ShardMessage

#: Messages after which others are handled before the coordinator sees them.
MAY_WAIT = {SumsFrame, Result}


class MessagePart(Protocol):
    """A part of the server that handles some messages."""

    def handles(self, peer: bytes, message: Message) -> bool:
        """Tell whether a message is for this part."""

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        """Handle a message; return what it means to the coordinator. `RemoteProtocolError` if it must not be sent."""


class PeerPart(MessagePart, Protocol):
    """A part of the server that knows its own peers, which are not workers."""

    def has(self, peer: bytes) -> bool:
        """Tell whether a peer is one of its own."""

    def on_left(self, peer: bytes, reason: str) -> Sequence[Event]:
        """Handle that one of its peers is gone."""


@dataclass
class ServerInbox:
    """The messages of all peers of a server."""

    outbox: Outbox
    blocklist: PeerBlocklist
    #: Each message is handled by the first part that it is for: first the parts with peers of their own.
    peer_parts: Sequence[PeerPart]
    parts: Sequence[MessagePart]
    #: A message that was waited for.
    _received: tuple[bytes, list[memoryview]] | None = None

    def listen(self, seconds: float | None) -> None:
        self._received = self.outbox.port.receive(seconds)
        self.blocklist.report()

    def take(self) -> Sequence[Event] | None:
        received, self._received = self._received, None
        if received is not None:
            return self._events_from(received)
        lost = self.outbox.port.lost()
        return [event for peer in lost for event in self.gone(peer, "its connection is gone")] if lost else None

    def _events_from(self, received: tuple[bytes, list[memoryview]] | None) -> Sequence[Event]:
        """Handle messages up to the first one that is neither a frame of sums nor a result.

        These can be handled before the coordinator has seen those before them: each is of the lease that it names. Of
        the frames of one worker, the coordinator needs only the last one, as a sign of progress.
        """
        framed, others, left = dict[bytes, Event](), list[Event](), MOST_AT_ONCE
        while received is not None:
            peer, left = received[0], left - 1
            events = self._events_of(*received)
            kinds = {kind_of(event) for event in events}
            if kinds == {SumsFrame}:
                framed.update((peer, event) for event in events)
            elif events:
                framed.pop(peer, None)
                others += events
            received = self.outbox.port.receive(0.0) if left and kinds <= MAY_WAIT else None
        return [*framed.values(), *others]

    def _events_of(self, peer: bytes, frames: list[memoryview]) -> Sequence[Event]:
        if self.blocklist.blocks(peer):
            return []
        try:
            message, arrays = decode(frames, EXPECTED)
            self.outbox.traffic.record_received(message, frames)
            return self._part_for(peer, message).on_message(peer, message, arrays)
        except RemoteProtocolError as error:
            return self._turn_away(peer, str(error))

    def _part_for(self, peer: bytes, message: Message) -> MessagePart:
        for part in (*self.peer_parts, *self.parts):
            if part.handles(peer, message):
                return part
        raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a server")

    def _turn_away(self, peer: bytes, fault: str) -> Sequence[Event]:
        """Answer what cannot be understood: a worker of another version would wait for ever, not knowing why."""
        reason = f"it broke protocol {PROTOCOL_VERSION}: {fault}; install the same version of Lockstep on both machines"
        self.outbox.send(peer, Refused(reason=shortened(reason)))
        self.blocklist.add(peer, reason)
        return self.gone(peer, reason)

    def gone(self, peer: bytes, reason: str) -> Sequence[Event]:
        """Return what it means to the coordinator that a peer is gone: a worker, or a peer of some part."""
        part = next((part for part in self.peer_parts if part.has(peer)), None)
        return [PeerLeft(peer=peer, reason=reason)] if part is None else part.on_left(peer, reason)
