"""The roster against a plain model, whoever comes and goes; its own check finds contradictions that are planted."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from lockstep.common.protocol.messages import WorkerStatus
from lockstep.ps.coordinator.membership import (
    FREE_PATIENCE,
    MOST_PATIENCE,
    PROBE_S,
    Member,
    Membership,
    MemberState,
    SlowWorkerTrial,
)
from tests.lockstep.ps.runs import join_of, peer_of


def roster() -> Membership:
    made = Membership()
    for worker in range(3):
        made.activate(made.admit(peer_of(worker), join_of(worker), 0.0), capacity=2)
    return made


def member_of(made: Membership, worker: int) -> Member:
    return made.members[peer_of(worker)]


MACHINES = st.sampled_from(["one", "one", "two", ""])


@dataclass
class Known:
    """A member in the model."""

    rank: int
    processes: int
    machine: str
    cores: set[int]
    due: float
    state: MemberState = MemberState.PREPARING
    wait_s: float = PROBE_S
    samples: int = 0
    compute_s: float = 0.0


class RosterMachine(RuleBasedStateMachine):
    """Records the same in a list of who is there, in the order of joining, and counts everything anew."""

    @initialize(capacity=st.integers(1, 3))
    def begin(self, capacity: int) -> None:
        self.made, self.capacity, self.now = Membership(), capacity, 100.0
        self.there: list[Known] = []
        self.joined = 0
        self.most_teams = self.most_prepared = 0
        #: By rank, of a step: processes, seconds of all of them and of the slowest.
        self.step: dict[int, tuple[int, float, float]] = {}

    def of(self, state: MemberState) -> list[Known]:
        return [known for known in self.there if known.state is state]

    def prepared(self) -> list[Known]:
        return [known for known in self.there if known.state is not MemberState.PREPARING]

    def member(self, known: Known) -> Member:
        return self.made.members[peer_of(known.rank)]

    def fill(self) -> None:
        """Let spares, in the order of joining, have the places that are free."""
        free = self.capacity - len(self.of(MemberState.READY))
        called = self.of(MemberState.SPARE)[:free] if free > 0 else []
        assert [member.rank for member in self.made.activate_spares(self.capacity)] == [one.rank for one in called]
        for known in called:
            known.state = MemberState.READY

    @rule(processes=st.integers(1, 3), machine=MACHINES, cores=st.sets(st.integers(0, 3)))
    def admit(self, processes: int, machine: str, cores: set[int]) -> None:
        join = replace(join_of(self.joined, processes=processes), machine=machine, cores=sorted(cores))
        member = self.made.admit(peer_of(self.joined), join, self.now)
        assert (member.rank, member.state) == (self.joined, MemberState.PREPARING)
        self.there.append(Known(self.joined, processes, machine, cores, self.now + PROBE_S))
        self.joined += 1

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        """A member that is prepared, or was late, is ready if there is a place for it."""
        waiting = [known for known in self.there if known.state in (MemberState.PREPARING, MemberState.SUSPECT)]
        if waiting:
            known = data.draw(st.sampled_from(waiting))
            is_ready = len(self.of(MemberState.READY)) < self.capacity
            assert self.made.activate(self.member(known), self.capacity) is is_ready
            known.state = MemberState.READY if is_ready else MemberState.SPARE
            self.most_teams = max(self.most_teams, len(self.prepared()))
            self.most_prepared = max(self.most_prepared, sum(one.processes for one in self.prepared()))

    @precondition(lambda self: self.of(MemberState.READY))
    @rule(data=st.data())
    def be_late(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.of(MemberState.READY)))
        self.made.set_state(self.member(known), MemberState.SUSPECT)
        known.state = MemberState.SUSPECT
        self.fill()

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.there))
        member = self.member(known)
        assert self.made.remove(peer_of(known.rank)) is member
        assert self.made.remove(peer_of(known.rank)) is None
        self.there.remove(known)
        self.fill()

    @precondition(lambda self: self.there)
    @rule(seconds=st.integers(0, 9), slowest=st.none() | st.integers(0, 9), audit=st.booleans(), data=st.data())
    def compute(self, seconds: int, slowest: int | None, audit: bool, data: st.DataObject) -> None:
        """What an audit computes counts for the step alone; of which process it was the slowest one is not known."""
        known = data.draw(st.sampled_from(self.there))
        if audit:
            self.made.credit_audit(self.member(known), seconds)
        else:
            assert self.made.credit(self.member(known), 2, seconds, slowest) == seconds
            known.samples, known.compute_s = known.samples + 2, known.compute_s + seconds
        processes, total, most = self.step.get(known.rank, (known.processes, 0.0, 0.0))
        most += seconds / known.processes if audit or slowest is None else slowest
        self.step[known.rank] = processes, total + seconds, most

    @rule()
    def end_step(self) -> None:
        """The mean is over all that are ready, or that computed the step and may have left since."""
        ready, computed = self.of(MemberState.READY), self.step.values()
        over = max(sum(one.processes for one in ready), sum(processes for processes, _, _ in computed), 1)
        most = max((most for _, _, most in computed), default=0.0)
        assert self.made.end_step() == (sum(seconds for _, seconds, _ in computed) / over, most)
        self.step = {}

    @rule(rank=st.integers(0, 9))
    def hear(self, rank: int) -> None:
        member = self.made.on_message(peer_of(rank), self.now)
        for known in self.there:
            if known.rank == rank:
                known.due, known.wait_s = self.now + PROBE_S, PROBE_S
                assert member is self.member(known)

    @rule(by_s=st.sampled_from([0.5, 1.0, 3.0]))
    def pass_time(self, by_s: float) -> None:
        """A probe waits twice as long each time until its member says something."""
        self.now += by_s
        due = [known for known in self.there if known.due <= self.now]
        assert [member.rank for member in self.made.to_probe(self.now)] == [known.rank for known in due]
        for known in due:
            known.wait_s *= 2
            known.due = self.now + known.wait_s

    @invariant()
    def agree(self) -> None:
        made = self.made
        made.validate(self.capacity)
        assert [(member.rank, member.state, member.samples, member.compute_s) for member in made.members.values()] == [
            (known.rank, known.state, known.samples, known.compute_s) for known in self.there
        ]
        for state in MemberState:
            assert made.count(state) == len(self.of(state))
        assert [member.rank for member in made.ready()] == [known.rank for known in self.of(MemberState.READY)]
        prepared = sum(known.processes for known in self.prepared())
        assert (made.count_prepared(), made.processes_prepared()) == (len(self.prepared()), prepared)
        assert (made.most_teams, made.most_prepared) == (self.most_teams, self.most_prepared)
        for rank in range(self.joined):
            member = made.members.get(peer_of(rank))
            assert made.by_rank(rank) is made.by_incarnation(join_of(rank).incarnation) is member
        assert made.probes.soonest() == min((known.due for known in self.there), default=None)
        # With more that are ready than can have work, nobody is let in.
        assert made.activate_spares(self.capacity - 1) == []

    @invariant()
    def count_cores(self) -> None:
        """A machine is crowded if its members may use fewer cores than they have processes."""
        quiet = 0
        for known in self.there:
            here = [one for one in self.there if one.machine == known.machine]
            is_crowded = sum(one.processes for one in here) > len(set().union(*(one.cores for one in here)))
            assert self.made.is_crowded(self.member(known)) == is_crowded
            quiet += not is_crowded
        # Alone, one has nobody to help.
        assert self.made.has_spare_cores() == (quiet > 1)


RosterMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=100, stateful_step_count=40)
TestRoster = RosterMachine.TestCase


#: What is planted, and what of the complaint tells it from the others.
PLANTS: dict[str, tuple[Callable[[Membership], object], str]] = {
    "one more is ready": (lambda made: made.set_state(member_of(made, 2), MemberState.READY), "more workers are ready"),
    "a free place": (lambda made: made.set_state(member_of(made, 0), MemberState.SUSPECT), "without need"),
    "a rank twice": (lambda made: setattr(member_of(made, 1), "rank", 0), "the order of joining"),
    "ranks in another order": (lambda made: setattr(member_of(made, 0), "rank", 2), "the order of joining"),
    "a rank to come": (lambda made: setattr(made, "next_rank", 2), "^$"),
    "another's peer": (lambda made: setattr(member_of(made, 0), "peer", b"other"), "^$"),
    "twins": (lambda made: setattr(member_of(made, 1), "join", join_of(0)), "twins"),
    "a state uncounted": (lambda made: setattr(member_of(made, 2), "state", MemberState.SUSPECT), "counted wrongly"),
    "fewer prepared": (lambda made: setattr(made, "most_prepared", 2), "^$"),
    "one that is not probed": (lambda made: made.probes.drop(peer_of(1)), "those that are probed"),
}


@pytest.mark.parametrize(("plant", "complaint"), PLANTS.values(), ids=PLANTS)
def test_validate_finds_a_planted_contradiction(plant: Callable[[Membership], object], complaint: str) -> None:
    made = roster()
    plant(made)
    with pytest.raises(AssertionError, match=complaint):
        made.validate(2)


def test_a_status_says_who_a_member_is_and_what_it_did() -> None:
    made = roster()
    member = member_of(made, 1)
    made.credit(member, 7, 1.5)
    join = member.join
    assert member.named() == f"worker 1 (host {join.host}, pid {join.pid})"
    assert member.status(is_busy=True) == WorkerStatus(
        rank=1, host=join.host, pid=join.pid, state="computing", samples=7, compute_s=1.5
    )
    assert member.status(is_busy=False).state == "ready"
    assert member_of(made, 2).status(is_busy=False).state == "spare"


def test_a_member_that_is_late_is_not_shown_as_computing() -> None:
    made = roster()
    first = made.members[peer_of(0)]
    assert first.status(is_busy=True).state == "computing"
    made.set_state(first, MemberState.SUSPECT)
    assert first.status(is_busy=True).state == "suspect"


# Cores


#: Machine, processes and cores of each worker -> what is noticed of the last one.
CROWDING = {
    "enough cores": ([("one", 2, [0, 1, 2, 3]), ("one", 2, [0, 1, 2, 3])], ""),
    "other machines": ([("one", 2, [0, 1]), ("two", 2, [0, 1])], ""),
    "one team": ([("one", 9, [0, 1])], ""),
    "unknown machines": ([("", 2, []), ("", 2, [])], ""),
    "too few": ([("one", 2, [0, 1]), ("one", 3, [1, 2])], "5 processes in 2 teams share the 3 cores of host host"),
}


@pytest.mark.parametrize(("places", "text"), CROWDING.values(), ids=CROWDING)
def test_teams_that_share_too_few_cores_are_noticed_once(places: list[tuple[str, int, list[int]]], text: str) -> None:
    made, found = Membership(), list[str]()
    for worker, (machine, processes, cores) in enumerate(places):
        join = replace(join_of(worker, processes=processes), machine=machine, cores=cores)
        found.append(made.notice_crowding(made.admit(peer_of(worker), join, 0.0)))
    assert found[-1].startswith(text)
    assert bool(found[-1]) is bool(text)
    assert made.crowding == found[-1]
    assert made.notice_crowding(made.admit(peer_of(7), join, 0.0)) == ("" if text else made.crowding)


# Members that are too slow


def rounds_until_tried(trial: SlowWorkerTrial, *, is_free: bool) -> int:
    rounds = 1
    while not trial.begins(is_free=is_free):
        rounds += 1
    return rounds


@pytest.mark.parametrize(("is_free", "most"), [(True, FREE_PATIENCE), (False, MOST_PATIENCE)])
def test_one_that_is_too_slow_is_tried_after_twice_as_many_rounds_each_time_up_to_a_limit(
    is_free: bool, most: int
) -> None:
    trial, waits, expected = SlowWorkerTrial(), list[int](), 1
    for _ in range(10):
        waits.append(rounds_until_tried(trial, is_free=is_free) - 1)
        assert waits[-1] == expected
        expected = min(2 * expected, most)
    assert waits[-2:] == [most, most]


def test_once_a_trial_costs_nothing_the_next_but_one_comes_soon() -> None:
    trial = SlowWorkerTrial()
    for _ in range(10):
        rounds_until_tried(trial, is_free=False)
    assert rounds_until_tried(trial, is_free=True) - 1 == MOST_PATIENCE
    assert rounds_until_tried(trial, is_free=True) - 1 == FREE_PATIENCE
