"""The members of a run: the workers as the coordinator knows them. Pure."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from lockstep.common.protocol.messages import Join, WorkerStatus
from lockstep.ps.coordinator.timer_queue import TimerQueue
from lockstep.ps.records.ledger import worker_name

#: Seconds until a worker that says nothing is probed: sending to a process that is gone fails, and so it is noticed.
PROBE_S = 1.0


#: Most rounds for which a worker gets nothing since it is too slow, until it is tried again: where others would take
#: over from it in time, and where all have to wait.
FREE_PATIENCE, MOST_PATIENCE = 8, 64


class MemberState(Enum):
    """The states of a member, which decide whether it may be given work."""

    PREPARING = "preparing"
    READY = "ready"
    #: Prepared, but as many workers are ready as can have work.
    SPARE = "spare"
    #: Let a lease expire: gets no other until it says something again.
    SUSPECT = "suspect"


def process_of(join: Join) -> str:
    """Return the first incarnation of a process, to which it adds how often it has joined again."""
    return join.incarnation.partition(".")[0]


def identity_of(join: Join, key: str) -> str:
    """Return by what a worker is known when it comes back: its key, or else its process.

    Without keys a process may take any name, and a restarted process is another worker.
    """
    return f"key {key}" if key else f"process {process_of(join)}"


@dataclass
class SlowWorkerTrial:
    """A worker that is too slow to be given anything, which may have changed."""

    #: Rounds in which it got nothing, and after how many it is tried: twice as many each time.
    rounds: int = 0
    patience: int = 1

    def begins(self, *, is_free: bool) -> bool:
        """Count one more round in which the worker is too slow; tell whether it is tried in this one.

        It costs nothing if others may be leased the same.
        """
        self.rounds += 1
        if self.rounds <= self.patience:
            return False
        self.rounds, self.patience = 0, min(2 * self.patience, FREE_PATIENCE if is_free else MOST_PATIENCE)
        return True


@dataclass
class Member:
    """One worker of the run: a team of processes, or a single one."""

    peer: bytes
    rank: int
    join: Join
    state: MemberState = MemberState.PREPARING
    #: Whether its processes share memory, with one another and with the server, so that it may make steps by itself.
    has_team: bool = False
    #: Samples whose gradients were accepted from it, and the seconds that these took it.
    samples: int = 0
    compute_s: float = 0.0
    #: How long after its last message or probe it is probed next.
    probe_interval_s: float = PROBE_S
    #: None while it is quick enough to be given work in each round.
    trial: SlowWorkerTrial | None = None
    #: The name of the key with which it was let in, empty if the server has no keys.
    key: str = ""

    @property
    def identity(self) -> str:
        """By what it is known when it comes back."""
        return identity_of(self.join, self.key)

    @property
    def processes(self) -> int:
        """Of how many processes it is a team: people's workers."""
        return self.join.processes

    def named(self) -> str:
        """Return how the worker is named in messages to people."""
        return worker_name(self.rank, self.join.host, self.join.pid, self.processes)

    def status(self, *, is_busy: bool) -> WorkerStatus:
        """Return its line of a status."""
        state = "computing" if is_busy and self.state is MemberState.READY else self.state.value
        return WorkerStatus(
            rank=self.rank,
            host=self.join.host,
            pid=self.join.pid,
            state=state,
            samples=self.samples,
            compute_s=self.compute_s,
            processes=self.processes,
        )


@dataclass
class StepCompute:
    """The computing of a worker for one step."""

    processes: int
    #: Of all its processes, and of the slowest one.
    seconds: float = 0.0
    slowest_s: float = 0.0


@dataclass
class Membership:
    """The members by peer; ranks are given in the order of joining, and never again."""

    members: dict[bytes, Member] = field(default_factory=dict)
    #: When each is probed next.
    probes: TimerQueue[bytes] = field(default_factory=TimerQueue)
    next_rank: int = 0
    #: Most members that were prepared at one time, including spares, and most processes of theirs.
    most_teams: int = 0
    most_prepared: int = 0
    #: Of all that were ever prepared, whether they shared memory.
    sharing: set[bool] = field(default_factory=set)
    #: Why one of them did not, if memory was offered; and which of them had too few cores for several teams.
    obstacle: str = ""
    crowding: str = ""
    #: Seconds of computing of the current step, by rank.
    step_compute_s: dict[int, StepCompute] = field(default_factory=dict)
    #: How many members are in each state: to count them again at each message would be quadratic.
    _counts: Counter[MemberState] = field(default_factory=Counter)
    #: How many are on each machine, how many processes of theirs, and how many members may use each of its cores.
    _on_machine: Counter[str] = field(default_factory=Counter)
    _processes_on: Counter[str] = field(default_factory=Counter)
    _cores: dict[str, Counter[int]] = field(default_factory=dict)
    #: Members on machines that have a core for each process of theirs.
    _uncrowded: int = 0

    def admit(self, peer: bytes, join: Join, now: float, key: str = "") -> Member:
        """Give a peer the next rank; `key` as of `Member`."""
        member = Member(peer, self.next_rank, join, key=key)
        self.next_rank += 1
        self.members[peer] = member
        self.probes.set(peer, now + PROBE_S)
        self._counts[member.state] += 1
        self._move(member, 1)
        return member

    def remove(self, peer: bytes) -> Member | None:
        """Take a member out; return it, if it was there."""
        member = self.members.pop(peer, None)
        if member is not None:
            self.probes.drop(peer)
            self._counts[member.state] -= 1
            self._move(member, -1)
        return member

    def _move(self, member: Member, change: int) -> None:
        """Count a member that arrives at its machine, or leaves it."""
        machine = member.join.machine
        cores = self._cores.setdefault(machine, Counter())
        self._uncrowded -= 0 if self.is_crowded(member) else self._on_machine[machine]
        self._on_machine[machine] += change
        self._processes_on[machine] += change * member.processes
        for core in member.join.cores:
            cores[core] += change
            if not cores[core]:
                del cores[core]
        self._uncrowded += 0 if self.is_crowded(member) else self._on_machine[machine]

    def is_crowded(self, member: Member) -> bool:
        """Tell whether the members on a machine may use fewer cores than processes, or an unknown number of them."""
        machine = member.join.machine
        return self._processes_on[machine] > len(self._cores[machine])

    def notice_crowding(self, member: Member) -> str:
        """Return that the teams on a member's machine take its cores from one another, if that is new; else nothing."""
        machine, teams = member.join.machine, self._on_machine[member.join.machine]
        if self.crowding or not machine or teams < 2 or not self.is_crowded(member):
            return ""
        self.crowding = (
            f"{self._processes_on[machine]} processes in {teams} teams share the {len(self._cores[machine])} cores of "
            f"host {member.join.host} and wait for one another: start fewer with --workers, or one `lockstep worker` "
            "per machine"
        )
        return self.crowding

    def has_spare_cores(self) -> bool:
        """Tell whether there are members whose machine is not crowded: at least two, to help one another."""
        return self._uncrowded > 1

    def set_state(self, member: Member, state: MemberState) -> None:
        """Change a member's state."""
        self._counts[member.state] -= 1
        member.state = state
        self._counts[state] += 1

    def count(self, state: MemberState) -> int:
        """Return how many members are in a state."""
        return self._counts[state]

    def count_prepared(self) -> int:
        """Return how many members have the model and the data."""
        return len(self.members) - self.count(MemberState.PREPARING)

    def processes_prepared(self) -> int:
        """Return how many processes these have."""
        members = self.members.values()
        return sum(member.processes for member in members if member.state is not MemberState.PREPARING)

    def holder(self, rank: int) -> Member:
        """Return the member of a rank that holds leases: they are released when it leaves."""
        return next(member for member in self.members.values() if member.rank == rank)

    def by_rank(self, rank: int) -> Member | None:
        """Return the member of that rank, if it is still there."""
        return next((member for member in self.members.values() if member.rank == rank), None)

    def by_incarnation(self, incarnation: str) -> Member | None:
        """Return the member with that incarnation, if there is one."""
        return next((member for member in self.members.values() if member.join.incarnation == incarnation), None)

    def ready(self) -> list[Member]:
        """Return the members that may be given work, by rank."""
        return [member for member in self.members.values() if member.state is MemberState.READY]

    # Signs of life

    def on_message(self, peer: bytes, now: float) -> Member | None:
        """Record that a peer said something; return the member that it is, if it is one."""
        member = self.members.get(peer)
        if member is not None:
            member.probe_interval_s = PROBE_S
            self.probes.set(peer, now + PROBE_S)
        return member

    def to_probe(self, now: float) -> list[Member]:
        """Return the members to be probed now, and record it.

        The wait doubles each time: what a worker that computes for minutes does not read must not fill its queue, and
        the end of one is still noticed within twice the time of its silence.
        """
        due = [self.members[peer] for peer in self.probes.due(now)]
        for member in due:
            member.probe_interval_s *= 2
            self.probes.set(member.peer, now + member.probe_interval_s)
        return sorted(due, key=lambda member: member.rank)

    # Work

    def activate(self, member: Member, capacity: int) -> bool:
        """Make a prepared member ready, or a spare if `capacity` members are; return whether it is ready."""
        is_active = self.count(MemberState.READY) < capacity
        self.set_state(member, MemberState.READY if is_active else MemberState.SPARE)
        self.most_teams = max(self.most_teams, self.count_prepared())
        self.most_prepared = max(self.most_prepared, self.processes_prepared())
        return is_active

    def activate_spares(self, capacity: int) -> list[Member]:
        """Make spares ready, as far as the capacity goes; return them."""
        free = capacity - self.count(MemberState.READY)
        if free <= 0 or not self.count(MemberState.SPARE):
            return []
        waiting = [member for member in self.members.values() if member.state is MemberState.SPARE]
        for member in waiting[:free]:
            self.set_state(member, MemberState.READY)
        return waiting[:free]

    def credit(self, member: Member, samples: int, compute_s: float, slowest_s: float | None = None) -> float:
        """Record gradients that were accepted from a member, and return the seconds of computing of all its processes.

        `slowest_s` are the most seconds of any process, None if only their mean is known.
        """
        member.samples += samples
        member.compute_s += compute_s
        self._credit_step(member, compute_s, slowest_s)
        return compute_s

    def credit_audit(self, member: Member, compute_s: float) -> None:
        """Record computing for which the step waited, but of which no gradient is used."""
        self._credit_step(member, compute_s, None)

    def _credit_step(self, member: Member, compute_s: float, slowest_s: float | None) -> None:
        step = self.step_compute_s.setdefault(member.rank, StepCompute(member.processes))
        step.seconds += compute_s
        step.slowest_s += compute_s / member.processes if slowest_s is None else slowest_s

    def end_step(self) -> tuple[float, float]:
        """Return the seconds of computing for the step, the mean over ready processes and the most; then reset them."""
        steps = self.step_compute_s.values()
        ready = sum(member.processes for member in self.ready())
        processes = max(ready, sum(step.processes for step in steps), 1)
        computed = sum(step.seconds for step in steps) / processes, max((step.slowest_s for step in steps), default=0.0)
        self.step_compute_s.clear()
        return computed

    def validate(self, capacity: int) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        ranks = [member.rank for member in self.members.values()]
        assert ranks == sorted(set(ranks)), "ranks are not in the order of joining"
        assert all(rank < self.next_rank for rank in ranks)
        assert all(peer == member.peer for peer, member in self.members.items())
        assert len({member.join.incarnation for member in self.members.values()}) == len(ranks), "twins"
        states = [member.state for member in self.members.values()]
        assert len(self.ready()) <= capacity, "more workers are ready than can have work"
        assert MemberState.SPARE not in states or len(self.ready()) == capacity, "one is a spare without need"
        assert +self._counts == Counter(states), "members are counted wrongly"
        assert self.count_prepared() <= self.most_teams
        assert self.processes_prepared() <= self.most_prepared
        assert self.probes.times.keys() == self.members.keys(), "members and those that are probed differ"
