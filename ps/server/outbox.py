"""What goes out from the server to workers: messages, and the weights, in frames. A shell, which decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.aggregation.tree import Vector
from common.protocol.codec import encode
from common.protocol.messages import Lease, Message, Weights
from common.transport.port import PeerGone, PeerSlow, ServerPort
from ps.coordinator import events
from ps.coordinator.membership import Membership
from ps.run.traffic import Traffic
from ps.server.gradient_receiver import GradientReceiver
from ps.shard.shard import Shard
from ps.sharding.group.shell import ShardGroupShell


@dataclass(frozen=True)
class Outbox:
    """One run's; a worker that cannot be sent to has left."""

    port: ServerPort
    traffic: Traffic
    #: Gets ready for what comes of leases.
    intake: GradientReceiver
    shard: Shard
    roster: Membership
    shards: ShardGroupShell | None

    def send_weights(self, peer: bytes, step: int) -> Sequence[events.Event]:
        """Send our slice of the weights after so many steps; let the other servers send theirs."""
        wire = self.shard.policy.wire_weights
        for frame in self.shard.frames:
            words = wire.pack(frame.of(self.shard.served_weights), frame.start)
            failed = self.send(peer, Weights(step=step, start=frame.start), words)
            if failed:
                return failed
        member = self.roster.members.get(peer)
        return [] if self.shards is None or member is None else self.shards.serve(member.rank, step)

    def send(self, peer: bytes, message: Message, *arrays: Vector) -> Sequence[events.Event]:
        """Send a message; return that the worker is gone, where it is."""
        if isinstance(message, Lease):
            self.intake.expect(peer, message)
        frames = encode(message, arrays)
        try:
            self.port.send(peer, frames)
            self.traffic.went(message, frames)
        except PeerGone:
            return [events.WorkerLeft(peer=peer, reason="its connection is gone")]
        except PeerSlow:
            return [events.WorkerLeft(peer=peer, reason="it does not read what it is sent")]
        return []
