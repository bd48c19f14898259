"""The server's outbox: encodes messages, and counts the weights that leave."""

from dataclasses import dataclass

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.codec import encode
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
        frames = encode(message, arrays)
        failed = deliver(self.port, peer, frames)
        if not failed:
            self.traffic.record_sent(message, frames)
        return failed
