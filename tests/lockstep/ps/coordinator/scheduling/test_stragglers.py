"""Who is late and silent loses its place, unless nobody else works, or the server itself did not look."""

import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Eviction, Lease, Ping, SumsFrame, Welcome
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import ForgetWorker
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, WithdrawnLease
from lockstep.ps.coordinator.scheduling.round_state import RoundState
from lockstep.ps.coordinator.scheduling.stragglers import (
    CHECK_S,
    EVICTION_S,
    FLOOR_S,
    PROBATION,
    STALL_S,
    LeaseTimeouts,
    StragglerMonitor,
)
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import Drive, facts_of, join_of, kinds, messages, peer_of, result_of, said

# The monitor by itself


def monitor_of_one() -> StragglerMonitor:
    """Return a monitor of worker 0, which got work at 100 s."""
    made = StragglerMonitor(Membership(), LeaseTimeouts(60.0))
    made.membership.activate(made.membership.admit(peer_of(0), join_of(0), 100.0), 9)
    made.timeouts.begin(0, 100.0)
    return made


@pytest.mark.parametrize("held_s", [1.0, 5.0])
def test_one_that_is_late_is_evicted_once_it_was_as_late_again_if_others_work(held_s: float) -> None:
    made, state, now = monitor_of_one(), RoundState(Round("train", 0, 4)), 100.0 + held_s
    state.leases.lease(0, 4, now, is_alone=True)
    (late,) = made.expire(state, now)
    assert (late.released, late.held_s) == ([Node(0, 4)], held_s)
    due = now + max(EVICTION_S, held_s)
    assert made.evict(state, due - 0.1) == made.evict(state, due) == []
    made.membership.activate(made.membership.admit(peer_of(1), join_of(1), due), 9)
    assert made.evict(state, due + EVICTION_S - 0.1) == []
    assert made.evict(state, due + EVICTION_S)[1:] == [ForgetWorker(rank=0)]
    assert made.evict(state, 1e6) == []


@pytest.mark.parametrize("gap", [0.0, 0.5, CHECK_S, STALL_S])
def test_looks_that_are_near_one_another_put_nothing_off(gap: float) -> None:
    made, leases = monitor_of_one(), LeaseTable(4)
    made.check(100.0, leases)
    made.check(100.0 + gap, leases)
    assert made.timeouts.held_s(0, 200.0) == 100.0


def test_time_in_which_the_server_did_not_run_puts_everything_off() -> None:
    made, leases = monitor_of_one(), LeaseTable(4)
    leases.lease(0, 4, 110.0, is_alone=False)
    made.check(100.0, leases)
    made.evictions.set(0, 104.0)
    for now in (131.0, 132.0):
        made.check(now, leases)
        assert (leases.deadlines.soonest(), made.evictions.soonest()) == (141.0, 135.0)
        assert made.timeouts.held_s(0, 132.0) == 1.0


def test_the_next_check_is_at_the_first_of_all_times_and_there_is_none_without_work() -> None:
    made, leases = monitor_of_one(), LeaseTable(4)
    assert made.deadline(leases) is None
    leases.lease(0, 2, 100.5, is_alone=False)
    assert made.deadline(leases) == 100.5
    leases.extend(0, 200.0)
    made.check(100.0, leases)
    assert made.deadline(leases) == 100.0 + CHECK_S
    leases.release(0)
    assert made.deadline(leases) is None
    made.evictions.set(0, 100.25)
    assert made.deadline(leases) == 100.25


def test_all_that_a_worker_holds_counts_for_its_time() -> None:
    made, state = monitor_of_one(), RoundState(Round("train", 0, 4))
    for number in range(1, 9):
        made.timeouts.record(0, "train", 1, 100.0 + number)
    for most in (2, 1):
        state.leases.lease(0, most, 109.0, is_alone=False)
    made.is_back(made.membership.members[peer_of(0)], SumsFrame(step=0, lo=0, hi=2, start=0), state, 108.5)
    assert [lease.deadline - 108.5 for lease in state.leases.held_by(0)] == [3 * 4.0] * 2


def test_answers_to_what_was_withdrawn_are_awaited_put_off_and_forgotten_with_their_worker() -> None:
    made, leases = monitor_of_one(), LeaseTable(4)
    at, lease = Round("train", 0, 4), HeldLease(Node(0, 4), 0, 100.5, number=1)
    made.withdrawals.add(WithdrawnLease(lease=lease, round=at, round_began=99.0, began=99.0, due=99.5))
    assert made.deadline(leases) == 100.5
    made.check(100.0, leases)
    made.check(130.0, leases)
    assert made.withdrawals.deadlines.soonest() == made.deadline(leases) == 130.5
    member = made.membership.members[peer_of(0)]
    assert made.left(member, "killed", RoundState(Round("train", 0, 4)), 131.0)[1:] == [ForgetWorker(rank=0)]
    assert not made.withdrawals.has_any(0)
    assert made.deadline(leases) is None


LONG = Job(model="linear", epochs=2000, global_batch=16, micro_batches=4)


def practised(workers: int = 2, job: Job | None = None) -> Drive:
    """Return a run whose workers have taken a tenth of a second for each micro-batch of two steps."""
    drive = Drive(facts_of(job, min_workers=workers))
    drive.enter(*range(1, workers + 1))
    computed = dict.fromkeys(range(1, workers + 1), 0)
    while drive.coordinator.round.step < 2 or drive.coordinator.round.work != "train":
        drive.now += 0.1
        for worker in computed:
            computed[worker] += 1
            if drive.leases.get(worker) and computed[worker] >= len(result_of(drive.leases[worker][0]).node()):
                drive.answer(worker)
                computed[worker] = 0
    return drive


def keep_busy(drive: Drive, worker: int, seconds: float) -> str:
    """Let time pass in which one worker asks now and then; return what was said."""
    told = []
    for _ in range(round(2 * seconds)):
        told.append(said(drive.pass_time(0.5)))
        drive.ask(worker)
    return "\n".join(filter(None, told))


def test_a_worker_that_hangs_is_told_of_within_seconds_and_its_micro_batches_go_on() -> None:
    drive = practised()
    while drive.leases[2]:
        drive.answer(2)
    told = said(drive.pass_time(FLOOR_S + 0.1))
    assert told.startswith("worker 0 (host host, pid 1) has held micro-batches ")
    assert " of step 2 for 2.0 s (median 0." in told
    assert told.endswith(" s per micro-batch): leased again to worker 1")


def test_one_that_stays_silent_loses_its_place_and_what_it_brings_later_is_not_applied() -> None:
    drive = practised()
    late = result_of(drive.leases[1][0])
    drive.leases[1].clear()
    while drive.leases[2]:
        drive.answer(2)
    told = keep_busy(drive, 2, 10.0)
    assert "worker 0 (host host, pid 1) was evicted: it has sent nothing for 5" in told
    assert ForgetWorker(rank=0) in drive.effects
    counted = list(drive.counted)
    assert kinds(drive.send(1, late), 1) == [Eviction]
    assert drive.counted == counted
    assert kinds(drive.ask(1), 1) == [Eviction]
    # It joins anew over the same connection, as another.
    join = events.Received(peer=peer_of(1), message=join_of(31))
    (welcome,) = messages(drive.happen(join), 1)
    assert isinstance(welcome, Welcome)
    assert welcome.rank == 2
    drive.prepare(1)
    drive.finish()
    assert Lease in kinds(drive.effects, 1)


def test_one_that_says_anything_keeps_its_place() -> None:
    drive = practised()
    drive.leases[1].clear()
    while drive.leases[2]:
        drive.answer(2)
    drive.pass_time(FLOOR_S + 0.5)
    assert kinds(drive.ask(1), 1)[0] is Ping
    assert "was evicted" not in keep_busy(drive, 1, 4.0)


def late_and_the_other_is_not() -> Drive:
    """Return a run in which worker 1 was late, and worker 2 has its micro-batches."""
    drive = practised(job=LONG)
    while drive.leases[2]:
        drive.answer(2)
    assert "leased again to worker 1" in said(drive.pass_time(FLOOR_S))
    return drive


def steps_beside_one_that_only_lives(drive: Drive, seconds: float) -> int:
    """Let worker 2 take a tenth of a second for each lease, and worker 1 say again and again that it lives; count."""
    begun, end = drive.coordinator.round.step, drive.now + seconds
    while drive.now < end:
        drive.pass_time(0.1)
        if drive.leases.get(2):
            drive.answer(2)
        drive.ask(1)
    return drive.coordinator.round.step - begun


def test_one_that_only_lives_costs_the_others_a_tenth_of_their_speed_at_most() -> None:
    alone = Drive(facts_of(LONG))
    alone.enter(2)
    before = steps_beside_one_that_only_lives(alone, 300.0)
    drive = Drive(facts_of(LONG))
    drive.enter(2)
    steps_beside_one_that_only_lives(drive, 2.0)
    drive.enter(1)
    beside = steps_beside_one_that_only_lives(drive, 300.0)
    assert 0.9 * before <= beside < before
    # It had its chances.
    assert said(drive.effects).count("worker 1 (host host, pid 1) has held micro-batches ") > 1


def test_one_that_was_late_gets_work_for_what_it_brings_at_once() -> None:
    drive = late_and_the_other_is_not()
    assert Lease not in kinds(drive.ask(1), 1)
    drive.answer(1)
    drive.finish_round()
    assert drive.leases[1][0].step == drive.coordinator.round.step


def test_one_that_was_late_gets_work_for_being_alive_after_a_while() -> None:
    drive = late_and_the_other_is_not()
    drive.leases[1].clear()
    steps_beside_one_that_only_lives(drive, PROBATION * FLOOR_S - 1.0)
    assert not drive.leases[1]
    steps_beside_one_that_only_lives(drive, 2.0)
    assert drive.leases[1]


def test_one_that_was_late_gets_work_for_being_alive_where_nobody_else_is() -> None:
    drive = late_and_the_other_is_not()
    drive.leases[1].clear()
    assert Lease not in kinds(drive.ask(1), 1)
    drive.leave(2)
    assert Lease in kinds(drive.ask(1), 1)


def test_while_nobody_else_works_nobody_loses_a_place() -> None:
    drive = practised()
    assert "was evicted" not in said(drive.pass_time(600.0))
    late = result_of(drive.leases[1][0])
    drive.answer(1)
    assert drive.counted[-1] == late.node()


@pytest.mark.parametrize("missed_s", [5.0, 3600.0])
def test_time_in_which_the_server_did_not_run_is_held_against_nobody(missed_s: float) -> None:
    drive = practised()
    drive.pass_time(1.5)
    drive.now += missed_s
    assert "leased again" not in said(drive.happen(events.TimePassed()))
    assert "leased again" not in said(drive.pass_time(0.4))
    # What is left of the time runs on.
    assert "leased again" in said(drive.pass_time(2.0))


def test_a_worker_that_is_late_does_not_lose_its_place_while_the_server_does_not_run() -> None:
    drive = practised()
    while drive.leases[2]:
        drive.answer(2)
    drive.pass_time(FLOOR_S + 0.5)
    drive.ask(2)
    drive.now += 3600.0
    assert "was evicted" not in said(drive.happen(events.TimePassed()))
    drive.answer(1)
    drive.finish()


def test_one_that_was_late_and_left_is_not_looked_for_any_more() -> None:
    drive = practised()
    while drive.leases[2]:
        drive.answer(2)
    assert "leased again to worker 1" in said(drive.pass_time(FLOOR_S + 0.1))
    drive.leave(1)
    assert not drive.coordinator.stragglers.evictions.times
    assert "was evicted" not in keep_busy(drive, 2, 10.0)
