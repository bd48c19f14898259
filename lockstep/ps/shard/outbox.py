"""The way of messages from a server to its peers: they are encoded, and the weights that leave are counted."""

from dataclasses import dataclass

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.codec import Buffer, encode
from lockstep.common.protocol.messages import Message
from lockstep.common.statemachine.loop import deliver
from lockstep.common.statemachine.machine import PeerLeft
from lockstep.common.transport.port import ServerPort
from lockstep.ps.run.progress import Traffic


@dataclass
class Outbox:
    """The way of messages to the peers of a server."""

    port: ServerPort
    #: Bytes that crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic

    def send(self, peer: bytes, message: Message, *arrays: Vector) -> list[PeerLeft]:
        """Send a message; return that the peer has left if it cannot be sent to."""
        return self.send_frames(peer, message, encode(message, arrays))

    def shared(self, message: Message, words: Vector) -> list[Buffer]:
        """Encode a message for many peers; the vector may change afterwards."""
        return [self.port.shared(frame) for frame in encode(message, [words])]

    def send_frames(self, peer: bytes, message: Message, frames: list[Buffer]) -> list[PeerLeft]:
        """Send an encoded message; return that the peer has left if it cannot be sent to."""
        failed = deliver(self.port, peer, frames)
        if not failed:
            self.traffic.record_sent(message, frames)
        return failed
