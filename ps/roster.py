"""Who takes part: the workers as the coordinator knows them. Pure."""

from dataclasses import dataclass, field
from enum import Enum

from common.messages import Join, WorkerStatus


class Standing(Enum):
    """Where a worker stands."""

    PREPARING = "preparing"
    READY = "ready"
    #: Prepared, but all places that can compute are taken.
    STANDBY = "standby"
    #: Let a lease run out: gets no other until it is heard again.
    SILENT = "silent"


@dataclass
class Member:
    """One worker's place in the run."""

    peer: bytes
    rank: int
    join: Join
    standing: Standing = Standing.PREPARING
    #: The step whose weights it was last sent, None before the first.
    weights_step: int | None = None
    #: Samples whose gradients were accepted from it, and the seconds that these took it.
    samples: int = 0
    compute_s: float = 0.0

    def named(self) -> str:
        """Return how a person is told of it."""
        return f"worker {self.rank} (host {self.join.host}, pid {self.join.pid})"

    def status(self, *, is_busy: bool) -> WorkerStatus:
        """Return what a status says of it."""
        state = "computing" if is_busy and self.standing is Standing.READY else self.standing.value
        return WorkerStatus(
            rank=self.rank,
            host=self.join.host,
            pid=self.join.pid,
            state=state,
            samples=self.samples,
            compute_s=self.compute_s,
        )


@dataclass
class Roster:
    """The members by peer; ranks are given in the order of joining, and never again."""

    members: dict[bytes, Member] = field(default_factory=dict)
    next_rank: int = 0
    #: Most members that were prepared at one time, those that stood by included.
    most_prepared: int = 0
    #: Seconds of computing whose gradients were accepted, of all members that ever were.
    compute_s: float = 0.0

    def admit(self, peer: bytes, join: Join) -> Member:
        """Give a peer the next rank."""
        member = Member(peer, self.next_rank, join)
        self.next_rank += 1
        self.members[peer] = member
        return member

    def incarnation_of(self, incarnation: str) -> Member | None:
        """Return the member with that incarnation, if there is one."""
        return next((member for member in self.members.values() if member.join.incarnation == incarnation), None)

    def credit(self, member: Member, samples: int, compute_s: float) -> None:
        """Book gradients that were accepted from a member."""
        member.samples += samples
        member.compute_s += compute_s
        self.compute_s += compute_s

    def ready(self) -> list[Member]:
        """Return the members that may be given work, by rank."""
        return [member for member in self.members.values() if member.standing is Standing.READY]

    def prepared(self) -> list[Member]:
        """Return the members that have the model and the data, whether they may be given work or not."""
        return [member for member in self.members.values() if member.standing is not Standing.PREPARING]

    def seat(self, member: Member, places: int) -> bool:
        """Make a prepared member ready, or let it stand by where all places are taken; return whether it is ready."""
        is_seated = len(self.ready()) < places
        member.standing = Standing.READY if is_seated else Standing.STANDBY
        self.most_prepared = max(self.most_prepared, len(self.prepared()))
        return is_seated

    def fill(self, places: int) -> list[Member]:
        """Let members that stand by take free places; return them."""
        waiting = [member for member in self.members.values() if member.standing is Standing.STANDBY]
        promoted = waiting[: max(0, places - len(self.ready()))]
        for member in promoted:
            member.standing = Standing.READY
        return promoted
