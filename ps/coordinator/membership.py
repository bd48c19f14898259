"""Who takes part: the workers as the coordinator knows them. Pure."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from common.protocol.messages import Join, WorkerStatus
from ps.run.timer_queue import TimerQueue

#: Seconds until a worker that says nothing is probed: sending to a process that is gone fails, and so is it noticed.
PROBE_S = 1.0


class MemberState(Enum):
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
    standing: MemberState = MemberState.PREPARING
    #: Whether it computes in memory which the server sees: then no vector is sent either way.
    shares: bool = False
    #: The step whose weights it was last sent, None before the first and where it shares.
    weights_step: int | None = None
    #: Samples whose gradients were accepted from it, and the seconds that these took it.
    samples: int = 0
    compute_s: float = 0.0
    #: How long after the last word or probe it is probed next.
    patience_s: float = PROBE_S

    def named(self) -> str:
        """Return how a person is told of it."""
        return f"worker {self.rank} (host {self.join.host}, pid {self.join.pid})"

    def status(self, *, is_busy: bool) -> WorkerStatus:
        """Return what a status says of it."""
        state = "computing" if is_busy and self.standing is MemberState.READY else self.standing.value
        return WorkerStatus(
            rank=self.rank,
            host=self.join.host,
            pid=self.join.pid,
            state=state,
            samples=self.samples,
            compute_s=self.compute_s,
        )


@dataclass
class Membership:
    """The members by peer; ranks are given in the order of joining, and never again."""

    members: dict[bytes, Member] = field(default_factory=dict)
    #: When each is probed next.
    probes: TimerQueue[bytes] = field(default_factory=TimerQueue)
    next_rank: int = 0
    #: Most members that were prepared at one time, those that stood by included.
    most_prepared: int = 0
    #: Of all that were ever prepared, whether they shared memory.
    sharing: set[bool] = field(default_factory=set)
    #: Why one of them did not, where memory was offered.
    obstacle: str = ""
    #: Seconds of computing whose gradients were accepted, of all members that ever were.
    compute_s: float = 0.0
    #: The same of the step at hand, by rank.
    step_compute_s: dict[int, float] = field(default_factory=dict)
    #: How many members there are of each standing: to count them anew at each message would be quadratic.
    _numbers: Counter[MemberState] = field(default_factory=Counter)

    def admit(self, peer: bytes, join: Join, now: float) -> Member:
        """Give a peer the next rank."""
        member = Member(peer, self.next_rank, join)
        self.next_rank += 1
        self.members[peer] = member
        self.probes.set(peer, now + PROBE_S)
        self._numbers[member.standing] += 1
        return member

    def remove(self, peer: bytes) -> Member | None:
        """Take a member out; return it, if it was there."""
        member = self.members.pop(peer, None)
        if member is not None:
            self.probes.drop(peer)
            self._numbers[member.standing] -= 1
        return member

    def stand(self, member: Member, standing: MemberState) -> None:
        """Change where a member stands."""
        self._numbers[member.standing] -= 1
        self._numbers[standing] += 1
        member.standing = standing

    def number(self, standing: MemberState) -> int:
        """Return how many members stand so."""
        return self._numbers[standing]

    def number_prepared(self) -> int:
        """Return how many members have the model and the data."""
        return len(self.members) - self.number(MemberState.PREPARING)

    def of_rank(self, rank: int) -> Member | None:
        """Return the member of that rank, if it is still there."""
        return next((member for member in self.members.values() if member.rank == rank), None)

    def hear(self, peer: bytes, now: float) -> Member | None:
        """Book that a peer said something; return the member that it is, if it is one."""
        member = self.members.get(peer)
        if member is not None:
            member.patience_s = PROBE_S
            self.probes.set(peer, now + PROBE_S)
        return member

    def due_for_probe(self, now: float) -> list[Member]:
        """Return the members to be probed now, and book it.

        The wait doubles each time: what a worker that computes for minutes does not read must not fill its queue, and
        the end of one is still noticed within twice the time of its silence.
        """
        due = [self.members[peer] for peer in self.probes.due(now)]
        for member in due:
            member.patience_s *= 2
            self.probes.set(member.peer, now + member.patience_s)
        return sorted(due, key=lambda member: member.rank)

    def next_probe(self) -> float | None:
        """Return when the next member is to be probed."""
        return self.probes.soonest()

    def incarnation_of(self, incarnation: str) -> Member | None:
        """Return the member with that incarnation, if there is one."""
        return next((member for member in self.members.values() if member.join.incarnation == incarnation), None)

    def credit(self, member: Member, samples: int, compute_s: float) -> None:
        """Book gradients that were accepted from a member."""
        member.samples += samples
        member.compute_s += compute_s
        self.compute_s += compute_s
        self.step_compute_s[member.rank] = self.step_compute_s.get(member.rank, 0.0) + compute_s

    def credit_audit(self, member: Member, compute_s: float) -> None:
        """Book computing of a member's that the step waited for, and of which no gradient is used."""
        self.step_compute_s[member.rank] = self.step_compute_s.get(member.rank, 0.0) + compute_s

    def end_step(self) -> tuple[float, float]:
        """Return the seconds that workers computed for the step, the mean over those ready and the most; begin anew."""
        seconds = self.step_compute_s.values()
        workers = max(self.number(MemberState.READY), len(seconds), 1)
        computed = sum(seconds) / workers, max(seconds, default=0.0)
        self.step_compute_s.clear()
        return computed

    def ready(self) -> list[Member]:
        """Return the members that may be given work, by rank."""
        return [member for member in self.members.values() if member.standing is MemberState.READY]

    def seat(self, member: Member, places: int) -> bool:
        """Make a prepared member ready, or let it stand by where all `places` are taken; return whether it is ready."""
        is_seated = self.number(MemberState.READY) < places
        self.stand(member, MemberState.READY if is_seated else MemberState.STANDBY)
        self.most_prepared = max(self.most_prepared, self.number_prepared())
        return is_seated

    def fill(self, places: int) -> list[Member]:
        """Let members that stand by take free places; return them."""
        free = places - self.number(MemberState.READY)
        if free <= 0 or not self.number(MemberState.STANDBY):
            return []
        waiting = [member for member in self.members.values() if member.standing is MemberState.STANDBY]
        for member in waiting[:free]:
            self.stand(member, MemberState.READY)
        return waiting[:free]

    def validate(self, places: int) -> None:
        """Raise AssertionError where the books contradict one another: for tests, after each step."""
        ranks = [member.rank for member in self.members.values()]
        assert ranks == sorted(set(ranks)), "ranks are not in the order of joining"
        assert all(rank < self.next_rank for rank in ranks)
        assert all(peer == member.peer for peer, member in self.members.items())
        assert len({member.join.incarnation for member in self.members.values()}) == len(ranks), "twins"
        standings = [member.standing for member in self.members.values()]
        assert len(self.ready()) <= places, "more workers are ready than there are places"
        assert MemberState.STANDBY not in standings or len(self.ready()) == places, "one stands by a free place"
        assert +self._numbers == Counter(standings), "members are counted wrongly"
        assert self.number_prepared() <= self.most_prepared
        assert self.probes.times.keys() == self.members.keys(), "one is probed that is no member, or not probed"
