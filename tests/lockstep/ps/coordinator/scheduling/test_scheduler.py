"""Who gets what: what is given out names only slots that nobody reads any more, and all are to finish together."""

import msgspec
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Lease, Work
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.membership import FREE_PATIENCE, MOST_PATIENCE, Member, Membership, MemberState
from lockstep.ps.coordinator.scheduling.round_state import WINDOW, RoundState
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.coordinator.scheduling.stragglers import ENOUGH, LeaseTimeouts
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import Drive, facts_of, join_of, messages, peer_of, result_of
from tests.lockstep.ps.timed import EACH_S, LATENCY_S, TimedRun, changing, stalling, steady

ROUND = Round("train", 0, 16)
LIMIT_S, NOW = 60.0, 1000.0


class Desk:
    """A scheduler with a round, and members that are all ready."""

    def __init__(
        self,
        workers: int,
        *,
        at: Round = ROUND,
        chosen: frozenset[int] = frozenset(),
        cores: int = 0,
    ) -> None:
        self.state = RoundState(at, chosen)
        self.membership = Membership()
        self.scheduler = Scheduler(self.membership, LeaseTimeouts(LIMIT_S))
        self.members = [self.add(number, cores) for number in range(workers)]

    def add(self, number: int, cores: int = 0) -> Member:
        join = msgspec.structs.replace(join_of(number), machine="one", cores=list(range(cores)))
        member = self.membership.admit(peer_of(number), join, NOW)
        self.membership.activate(member, 100)
        return member

    def practise(self, *seconds: float, work: Work = "train") -> None:
        """Let each worker have taken so many seconds for each of its micro-batches so far."""
        for rank, each_s in enumerate(seconds):
            for _ in range(ENOUGH):
                self.scheduler.timeouts.begin(rank, 0.0)
                self.scheduler.timeouts.record(rank, work, 1, each_s)

    def effects(self, *members: Member, now: float = NOW) -> list[Effect]:
        return self.scheduler.assign(self.state, now, list(members) or None)

    def assign(self, *members: Member, now: float = NOW) -> list[Lease]:
        found = [message for message in messages(self.effects(*members, now=now)) if isinstance(message, Lease)]
        self.state.leases.validate()
        return found

    def shares(self) -> list[list[str]]:
        """Return what each worker holds."""
        return [[str(lease.node) for lease in self.state.leases.held_by(member.rank)] for member in self.members]


# Windows, time-outs, weights


@pytest.mark.parametrize("answered", range(WINDOW + 1))
def test_a_worker_whose_leases_ran_out_gets_others_although_servers_have_not_acknowledged_its_sums(
    answered: int,
) -> None:
    desk = Desk(2)
    member = desk.members[0]
    for lease in desk.assign(member)[:answered]:
        desk.state.on_result(member, result_of(lease), has_shards=True)
    desk.state.leases.release(member.rank)
    assert len(desk.assign(member)) == WINDOW


def test_a_lease_lasts_from_now_and_as_long_as_all_that_is_held() -> None:
    desk = Desk(2)
    desk.assign(desk.members[0])
    assert {lease.deadline for lease in desk.state.leases.held_by(0)} == {NOW + LIMIT_S}


def test_a_second_lease_does_not_begin_the_time_again() -> None:
    desk = Desk(2)
    desk.assign(desk.members[0])
    first, _ = desk.state.leases.held_by(0)
    desk.state.leases.accept(first.node)
    desk.assign(desk.members[0], now=NOW + 5.0)
    assert desk.scheduler.timeouts.held_s(0, NOW + 7.0) == 7.0


def test_the_time_for_a_lease_goes_by_what_its_own_worker_took_before() -> None:
    desk = Desk(2)
    desk.practise(1.0, 2.9)
    desk.assign()
    assert desk.shares() == [["0-7", "8-11"], ["12-15"]]
    timeouts = desk.scheduler.timeouts
    first, second = (desk.state.leases.held_by(rank)[0].deadline - NOW for rank in range(2))
    assert (first, second) == pytest.approx((timeouts.timeout_s(0, "train", 12), timeouts.timeout_s(1, "train", 4)))
    assert first != second


def test_the_time_for_a_lease_counts_what_is_held_before_it() -> None:
    desk = Desk(2)
    desk.practise(1.0, 3.0)
    desk.assign()
    _, second = desk.state.leases.held_by(0)
    assert second.deadline - NOW == desk.scheduler.timeouts.timeout_s(0, "train", 8 + 4)


def test_a_micro_batch_that_is_audited_asks_for_a_digest_and_others_do_not() -> None:
    desk = Desk(2, chosen=frozenset({0}))
    assert [(lease.lo, lease.is_digested) for lease in desk.assign(desk.members[0])] == [(0, True), (1, False)]


# Where nothing is known


def test_where_nothing_is_known_the_first_leases_are_large_and_the_last_ones_small() -> None:
    desk = Desk(2)
    assert [len(Node(lease.lo, lease.hi)) for lease in desk.assign()] == [4, 2, 2, 2]


def test_what_is_known_of_training_says_nothing_of_an_evaluation() -> None:
    desk = Desk(2, at=Round("evaluate", 3, 16))
    desk.practise(1.0, 1.0)
    assert [len(Node(lease.lo, lease.hi)) for lease in desk.assign()] == [4, 2, 2, 2]


def test_the_one_ready_worker_is_given_again_what_failed_on_it() -> None:
    desk = Desk(1)
    desk.assign()
    desk.state.leases.record_failure(desk.state.leases.held_by(0)[0])
    assert [(lease.lo, lease.hi) for lease in desk.assign()] == [(0, 16)]


def test_one_of_several_is_not_given_again_what_failed_on_it() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    desk.state.leases.record_failure(desk.state.leases.held_by(0)[0])
    assert [(lease.lo, lease.hi) for lease in desk.assign()] == [(0, 2)]
    assert desk.shares() == [[], ["8-15", "0-1"]]


def test_only_the_one_ready_worker_gets_the_whole_round() -> None:
    assert [(lease.lo, lease.hi) for lease in Desk(1).assign()] == [(0, 16)]
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=16), min_workers=3))
    drive.enter(1, 2, 3)
    assert max(len(node) for node in drive.leased()) <= 4


# By speed


@pytest.mark.parametrize("measured", [(1.0, 1.02), (1.0,)], ids=["equal", "one that nobody has measured"])
def test_workers_that_are_taken_for_equal_get_one_lease_each(measured: tuple[float, ...]) -> None:
    desk = Desk(2)
    desk.practise(*measured)
    desk.assign()
    assert desk.shares() == [["0-7"], ["8-15"]]


def test_all_are_to_finish_together() -> None:
    desk = Desk(3, at=Round("train", 0, 8))
    desk.practise(4.0, 1.0, 2.0)
    desk.assign()
    assert desk.shares() == [["6"], ["0-3", "7"], ["4-5"]]
    assert desk.state.end == NOW + 5.0


def test_what_a_worker_still_holds_counts() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    desk.state.leases.release(1)
    # It is given what the first cannot do until then, which is busy for another seven seconds.
    desk.assign(now=NOW + 1.0)
    assert desk.shares() == [["0-7"], ["8-15"]]


def test_a_worker_at_what_others_have_done_gets_nothing_and_there_is_something_for_it_to_take_over() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    (lease,) = desk.state.leases.held_by(1)
    desk.state.leases.release(1)
    desk.scheduler.withdraw(desk.state, [lease], NOW + 20.0)
    desk.state = RoundState(ROUND)
    desk.assign(now=NOW + 20.0)
    assert desk.shares() == [["0-7", "8-15"], []]


def test_a_worker_that_was_not_late_is_expected_to_stop_at_the_next_micro_batch() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    (lease,) = desk.state.leases.held_by(1)
    desk.state.leases.release(1)
    desk.scheduler.withdraw(desk.state, [lease], NOW + 7.25)
    desk.state = RoundState(ROUND)
    desk.assign(now=NOW + 7.25)
    assert desk.shares() == [["0-7"], ["8-15"]]
    assert desk.state.end == NOW + 7.25 + 0.75 + 8.0
    assert desk.scheduler.timeouts.held_s(1, NOW + 9.0) == 1.0
    # What it says then tells how long it took, and when it has begun the next.
    desk.scheduler.past(desk.members[1], lease.number, 4, NOW + 8.5)
    assert list(desk.scheduler.timeouts._own[1, "train"].recent) == [1.0, 1.0, 1.0, 8.5 / 4]
    assert desk.scheduler.timeouts.held_s(1, NOW + 9.0) == 0.5


def test_if_all_are_at_what_others_have_done_all_wait() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    for rank in range(2):
        (lease,) = desk.state.leases.held_by(rank)
        desk.scheduler.withdraw(desk.state, [lease], NOW + 20.0)
    desk.state = RoundState(ROUND)
    assert desk.assign(now=NOW + 20.0) == []


def test_one_that_is_late_with_all_the_rest_does_not_keep_itself_waiting() -> None:
    desk = Desk(2)
    desk.practise(1.0, 1.0)
    desk.assign()
    desk.state.leases.accept(Node(0, 8))
    desk.state.leases.release(1)
    # Just before the end that was expected: nobody could finish anything by that.
    assert [(lease.lo, lease.hi) for lease in desk.assign(desk.members[1], now=NOW + 7.5)] == [(8, 12), (12, 16)]


# Those that are too slow are tried now and then


def rounds(desk: Desk, count: int) -> list[int]:
    """Return in which of so many rounds the second worker gets something."""
    found = []
    for number in range(count):
        desk.state = RoundState(ROUND)
        desk.assign()
        if desk.state.leases.held_by(1):
            found.append(number)
    return found


@pytest.mark.parametrize(("cores", "most"), [(2, FREE_PATIENCE), (1, MOST_PATIENCE)])
def test_one_that_is_too_slow_for_a_round_is_tried_ever_more_seldom(cores: int, most: int) -> None:
    desk = Desk(2, cores=cores)
    desk.practise(1.0, 100.0)
    found = rounds(desk, 4 * MOST_PATIENCE)
    gaps = [later - earlier - 1 for earlier, later in zip([-1, *found], found, strict=False)]
    expected = [1]
    while expected[-1] < most:
        expected.append(2 * expected[-1])
    assert gaps[: len(expected) + 1] == [*expected, most][: len(gaps)]


def test_one_that_is_tried_gets_one_micro_batch_and_the_others_the_rest() -> None:
    desk = Desk(2)
    desk.practise(1.0, 100.0)
    rounds(desk, 2)
    assert [sum(len(lease.node) for lease in desk.state.leases.held_by(rank)) for rank in range(2)] == [12, 1]
    assert desk.state.end == NOW + 15.0


def test_one_that_proves_quick_again_is_no_longer_on_trial() -> None:
    desk = Desk(2)
    desk.practise(1.0, 100.0)
    rounds(desk, 2)
    desk.scheduler.timeouts.begin(1, NOW)
    desk.scheduler.timeouts.record(1, "train", 1, NOW + 1.0, is_trial=desk.members[1].trial is not None)
    assert rounds(desk, 3) == [0, 1, 2]
    assert desk.members[1].trial is None


# Second copies


def late(desk: Desk, rank: int = 0) -> float:
    """Return a time at which a worker is late with its first lease, and let the other one be done."""
    desk.practise(1.0, 1.0)
    desk.assign()
    desk.state.leases.accept(desk.state.leases.held_by(1 - rank)[0].node)
    return NOW + 9.0


def test_what_a_worker_is_late_with_is_leased_to_one_that_is_idle_as_well() -> None:
    desk = Desk(2, cores=2)
    now = late(desk)
    assert desk.scheduler.deadline(desk.state) == now
    assert desk.assign(now=now - 0.01) == []
    assert [(lease.lo, lease.hi, lease.number) for lease in desk.assign(now=now)] == [(0, 8, 3)]
    assert desk.shares() == [["0-7"], ["0-7"]]
    # Once.
    assert desk.assign(now=now + 1.0) == []


def test_the_copy_is_late_in_its_turn() -> None:
    desk = Desk(3, cores=3, at=Round("train", 0, 2))
    desk.practise(1.0, 1.0, 1.0)
    desk.assign()
    desk.state.leases.accept(Node(1, 2))
    assert len(desk.assign(now=NOW + 2.0)) == 1
    assert desk.assign(now=NOW + 3.9) == []
    assert len(desk.assign(now=NOW + 4.0)) == 1
    assert desk.state.leases.holders(Node(0, 1)) == [0, 1, 2]


def test_all_that_are_idle_share_what_is_late() -> None:
    desk = Desk(4, cores=4)
    desk.practise(1.0, 1.0, 1.0, 1.0)
    desk.assign()
    for node in (Node(4, 8), Node(8, 12), Node(12, 16)):
        desk.state.leases.accept(node)
    desk.assign(now=NOW + 5.0)
    assert desk.shares() == [["0-3"], ["0-1"], ["2"], ["3"]]


def test_one_that_becomes_idle_later_gets_the_rest_of_what_is_late() -> None:
    desk = Desk(4, cores=4)
    desk.practise(1.0, 1.0, 1.0, 1.0)
    desk.assign()
    desk.state.leases.accept(Node(4, 8))
    desk.state.leases.accept(Node(8, 12))
    # Rank 3 is still at its own.
    desk.state.leases.extend(3, NOW + LIMIT_S)
    desk.assign(now=NOW + 5.0)
    assert desk.shares() == [["0-3"], ["0-1"], ["2-3"], ["12-15"]]


@pytest.mark.parametrize("cores", [0, 1])
def test_nobody_gets_a_copy_where_it_would_take_the_core_of_the_other(cores: int) -> None:
    desk = Desk(2, cores=cores)
    assert desk.assign(now=late(desk)) == []
    assert desk.scheduler.deadline(desk.state) is None


def test_time_goes_on_if_one_that_comes_takes_the_last_core_while_a_lease_is_late() -> None:
    desk = Desk(2, cores=2)
    now = late(desk)
    desk.add(2, cores=2)
    assert desk.assign(now=now) == []
    assert desk.scheduler.deadline(desk.state) is None


def test_time_goes_on_if_a_lease_is_late_and_nobody_is_idle() -> None:
    desk = Desk(2, cores=2)
    desk.practise(1.0, 1.0)
    desk.assign()
    assert desk.assign(now=NOW + 9.0) == []
    assert desk.scheduler.deadline(desk.state) is None


def test_one_that_is_not_ready_gets_no_copy() -> None:
    desk = Desk(2, cores=2)
    now = late(desk)
    desk.membership.set_state(desk.members[1], MemberState.SUSPECT)
    assert desk.assign(desk.members[1], now=now) == []


def test_one_that_is_at_what_others_have_done_gets_no_copy() -> None:
    desk = Desk(2, cores=2)
    now = late(desk)
    desk.scheduler.withdraw(desk.state, [desk.state.leases.copy(1, Node(0, 8), NOW, NOW)], now)
    desk.state.leases.release(1)
    assert desk.assign(now=now) == []


def test_what_failed_on_one_worker_is_not_copied() -> None:
    desk = Desk(3, cores=3, at=Round("train", 0, 12))
    desk.practise(1.0, 1.0, 1.0)
    desk.assign()
    held = desk.state.leases.held_by(0)[0].node
    for rank in (1, 2):
        for lease in list(desk.state.leases.held_by(rank)):
            desk.state.leases.accept(lease.node)
    desk.state.leases.failed_on[held.lo] = [1]
    assert desk.assign(now=NOW + 20.0) == []


def test_what_ends_last_is_copied_as_soon_as_that_is_quicker() -> None:
    desk = Desk(2, cores=2, at=Round("train", 0, 8))
    desk.practise(1.0, 6.0)
    desk.assign()
    assert desk.shares() == [["0-3", "4-5"], ["6"]]
    desk.scheduler.timeouts.record(0, "train", 4, NOW + 4.0)
    desk.state.leases.accept(Node(0, 4))
    # There is one left for the quick worker.
    assert len(desk.assign(desk.members[0], now=NOW + 4.0)) == 1
    desk.state.leases.accept(Node(4, 6))
    desk.state.leases.accept(Node(7, 8))
    assert desk.assign(desk.members[0], now=NOW + 4.76) == []
    assert [(lease.lo, lease.hi) for lease in desk.assign(desk.members[0], now=NOW + 4.74)] == [(6, 7)]


def test_what_is_free_comes_before_copies() -> None:
    desk = Desk(2, cores=2)
    now = late(desk)
    desk.state.leases.release(0)
    assert [(lease.lo, lease.hi) for lease in desk.assign(desk.members[1], now=now)] == [(0, 4), (4, 8)]


# In virtual time


def ratio(speeds: list[float], micro_batches: int, *, cores: int | None = None) -> float:
    """Return how long a step takes, in micro-batches of a worker of speed 1, once the speeds are known."""
    run = TimedRun([steady(speed) for speed in speeds], micro_batches, cores=cores)
    run.run(5)
    return run.run(20) / EACH_S


def of_a_step(micro_batches: float) -> object:
    """Return what equals the time of a step in which the last worker computes so many micro-batches, with messages."""
    return pytest.approx(micro_batches + 2 * LATENCY_S / EACH_S, abs=0.2)


def test_two_equal_workers_take_half_the_time_with_one_lease_each() -> None:
    run = TimedRun([steady(1.0), steady(1.0)], 8)
    run.run(5)
    before = len(run.sent)
    assert run.run(10) / EACH_S == of_a_step(4)
    assert len(run.sent) - before == 20
    assert run.in_vain == 0


def test_one_at_a_third_of_the_speed_does_a_third_as_much() -> None:
    assert ratio([1.0, 1.0 / 3.0], 8) == of_a_step(6)


@pytest.mark.parametrize("speeds", [[2 ** (-3 * n / 15) for n in range(16)], [1 - 7 / 8 * n / 15 for n in range(16)]])
def test_sixteen_workers_of_all_speeds_are_as_fast_as_whole_micro_batches_allow(speeds: list[float]) -> None:
    least = next(
        time
        for time in sorted(count / speed for speed in speeds for count in range(1, 65))
        if sum(int(time * speed + 1e-9) for speed in speeds) >= 64
    )
    assert ratio(speeds, 64) == of_a_step(least)


def test_one_at_a_tenth_costs_nothing() -> None:
    assert ratio([1.0, 0.1], 8) <= 1.01 * ratio([1.0], 8)


def test_one_that_stops_for_good_costs_one_micro_batch_in_one_step() -> None:
    run = TimedRun([steady(1.0), stalling(0.5, 1e9)], 8)
    run.run(5)
    steps = []
    while run.now < 1.0:
        steps.append(run.run(1) / EACH_S)
    assert max(steps) <= 4 + 1 + 4 + 0.1
    assert [step for step in steps if step > 8.1] == [max(steps)]


def test_one_that_stands_still_two_thirds_of_the_time_helps() -> None:
    run = TimedRun([steady(1.0), stalling(20 * EACH_S / 1.78, 40 * EACH_S / 1.78)], 8)
    run.run(10)
    assert run.run(200) / EACH_S <= 7.2


def test_of_sixteen_one_that_stands_still_costs_two_micro_batches_at_most() -> None:
    run = TimedRun([*[steady(1.0)] * 15, stalling(0.5, 1e9)], 64)
    run.run(5)
    steps = []
    while run.now < 1.0:
        steps.append(run.run(1) / EACH_S)
    assert max(steps) <= 4 + 2 + 0.1


def test_a_change_of_speed_is_followed_within_a_few_steps() -> None:
    run = TimedRun([steady(1.0), changing(1.0, until=0.5, then=1.0 / 3.0)], 8)
    while run.now < 0.5:
        run.run(1)
    run.run(6)
    assert run.run(5) / EACH_S == of_a_step(6)


def test_one_that_becomes_quick_again_is_used_within_a_few_steps() -> None:
    run = TimedRun([steady(1.0), changing(0.05, until=2.0, then=1.0)], 8)
    while run.now < 2.0:
        run.run(1)
    run.run(FREE_PATIENCE + 3)
    assert run.run(5) / EACH_S == of_a_step(4)


def test_with_more_workers_than_cores_nothing_is_computed_twice() -> None:
    run = TimedRun([steady(1.0), steady(0.1), stalling(0.1, 0.2)], 8, cores=2)
    run.run(50)
    assert run.in_vain == 0
