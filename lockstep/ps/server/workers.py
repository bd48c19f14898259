"""The part of the server that handles messages of workers: shared memory, sums, results."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    Eviction,
    Join,
    Lease,
    Leave,
    Message,
    Ready,
    Result,
    SumsFrame,
    shortened,
)
from lockstep.common.protocol.team_memory import TeamShape
from lockstep.ps.coordinator.events import Event, PeerLeft, Received
from lockstep.ps.coordinator.failures import check_result
from lockstep.ps.coordinator.membership import Member, Membership
from lockstep.ps.coordinator.transitions import MESSAGES
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard_group.group import SliceGroup


@dataclass
class WorkerMessages:
    """The workers of a run, as far as their messages are more than something for the coordinator."""

    info: RunInfo
    membership: Membership
    group: SliceGroup
    outbox: Outbox
    #: The memory that workers on this machine share, None if no memory is shared.
    sharing: ServerSharedMemory | None = None

    def handles(self, peer: bytes, message: Message) -> bool:
        return type(message) in MESSAGES or isinstance(message, Leave)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        received = Received(peer=peer, message=message)
        member = self.membership.members.get(peer)
        match message:
            case Join():
                # Only a worker that joins says which one it is.
                return [Received(peer=peer, message=message, key=self.outbox.port.key_name(peer))]
            case Leave():
                return [PeerLeft(peer=peer, reason=one_line(message.reason))]
            case Ready():
                return [received] if member is None else self._prepared(member, message, received)
            case SumsFrame():
                return [received] if self.group.own.on_frame(peer, message, arrays[0]) else []
            case Result():
                check_result(message, self.info)
                for words in arrays:
                    self.group.own.on_frame(peer, message, words)
                return [received] if self.group.own.on_result(peer, message) else []
        return [received]

    # Shared memory

    def _prepared(self, member: Member, ready: Ready, received: Received) -> Sequence[Event]:
        """Let a worker take part if it has prepared for the place that it has now."""
        if fault := self._fault_of(member, ready):
            # It has broken no rule: it answers a welcome before the last one, since it asked twice, and its first
            # place, or the memory of that time, or the server that welcomed it, is gone. Its shards may be gone as
            # well: nothing that it computed would ever arrive.
            self.outbox.send(member.peer, Eviction(reason=shortened(f"it is ready for another place: {fault}")))
            return [PeerLeft(peer=member.peer, reason=fault)]
        # Before any lease, and so before any sums.
        return [*self.group.admit(member, shares=bool(ready.nonce)), received]

    def _fault_of(self, member: Member, ready: Ready) -> str:
        """Return why a worker cannot take part as it has prepared, empty if it can."""
        if (ready.rank, ready.part) != (member.rank, self.info.part):
            return f"that of worker {ready.rank}, and it is worker {member.rank} of the run as it was resumed last"
        if not ready.nonce:
            return ""
        if self.sharing is None:
            raise RemoteProtocolError("it shares memory that it was not offered")
        try:
            self.sharing.admit(member.rank, ready.nonce, self._team_shape(member, ready.makers))
        except RemoteProtocolError as error:
            return str(error)
        return ""

    def _team_shape(self, member: Member, makers: int) -> TeamShape | None:
        """Return the shape of a team that may make several steps by itself, None if a worker is not one."""
        if not makers:
            return None
        return TeamShape(
            processes=member.processes,
            makers=makers,
            micro_batches=self.info.job.micro_batches,
            size=self.info.size,
            clips=self.info.job.clip_norm is not None,
            metrics=self.info.metric_sums,
        )

    def send_lease(self, peer: bytes, lease: Lease) -> Sequence[Event]:
        """Send a lease to a worker, with the weights of its step or the memory that they are in."""
        member = self.membership.members.get(peer)
        if self.sharing is not None and self.sharing.generation:
            lease = msgspec.structs.replace(lease, memory=self.sharing.generation)
        return [] if member is None else self.group.send_lease(member.rank, lease)

    def forget(self, rank: int) -> Sequence[Event]:
        """Release all that is kept for a worker that is gone."""
        if self.sharing is not None:
            self.sharing.forget(rank)
        return self.group.forget(rank)
