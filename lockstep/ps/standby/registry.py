"""The standbys of a run as its server knows them: where they are, and how far. Pure."""

from dataclasses import dataclass, field

from lockstep.common.protocol.messages import STANDBYS_LIMIT, StandbyAddress, StandbyStatus
from lockstep.common.protocol.standby_messages import MirrorRequest

#: Seconds of its silence after which a standby is none any more: it asks twice a second.
GONE_S = 10.0


@dataclass
class StandbyMember:
    """One standby."""

    peer: bytes
    request: MirrorRequest
    heard: float

    @property
    def address(self) -> StandbyAddress:
        return StandbyAddress(address=self.request.address, public=self.request.public)

    def status(self) -> StandbyStatus:
        request = self.request
        return StandbyStatus(address=request.address, host=request.host, step=request.step, is_whole=request.is_whole)


@dataclass
class StandbyRegistry:
    """All standbys, by their addresses, in the order in which they came."""

    members: dict[str, StandbyMember] = field(default_factory=dict)

    def on_request(self, peer: bytes, request: MirrorRequest, now: float) -> bool | None:
        """Record that a standby asks; return whether it is new, None if there is no room for another one."""
        known = self.members.get(request.address)
        if known is None and len(self.members) == STANDBYS_LIMIT:
            return None
        is_new = known is None or known.request.public != request.public
        self.members[request.address] = StandbyMember(peer, request, now)
        return is_new

    def by_peer(self, peer: bytes) -> StandbyMember | None:
        """Return the standby behind a connection, None if there is none."""
        return next((member for member in self.members.values() if member.peer == peer), None)

    def remove_peer(self, peer: bytes) -> StandbyMember | None:
        """Record that a connection is gone; return whose it was."""
        found = self.by_peer(peer)
        return None if found is None else self.members.pop(found.request.address)

    def deadline(self) -> float | None:
        """Return when the next one counts as gone if it stays silent."""
        return min((member.heard + GONE_S for member in self.members.values()), default=None)

    def expire(self, now: float) -> list[StandbyMember]:
        """Remove those that have been silent for too long; return them."""
        gone = [member for member in self.members.values() if now >= member.heard + GONE_S]
        for member in gone:
            del self.members[member.request.address]
        return gone

    def addresses(self) -> tuple[StandbyAddress, ...]:
        """Return where they are."""
        return tuple(member.address for member in self.members.values())

    def statuses(self) -> list[StandbyStatus]:
        """Return how far they are."""
        return [member.status() for member in self.members.values()]

    def best(self) -> StandbyMember | None:
        """Return the one that has most of the run, None if there is none."""
        members = self.members.values()
        return max(members, key=lambda member: (member.request.is_whole, member.request.step), default=None)
