"""When processes that die are restarted: each death counts once, until a restart is hopeless."""

import pytest

from lockstep.launch.supervision.worker_supervisor import (
    BEGUN_S,
    FIRST_S,
    MOST_S,
    STEADY_S,
    USAGE,
    PlaceState,
    ProcessEnd,
    Restarts,
    WorkerSupervisor,
)

KILLED = ProcessEnd(code=-9)
CRASHED = ProcessEnd(code=-11)
DONE = ProcessEnd(code=0)
FAILED = ProcessEnd(code=1, has_reported=True)


def supervisor_of(count: int, most: int, team_size: int = 1) -> WorkerSupervisor:
    """Return the supervisor of so many workers, which have started at 0 s."""
    supervisor = WorkerSupervisor(most, team_size)
    assert supervisor.start_all(count, 0.0) == list(range(count))
    return supervisor


def test_the_next_process_starts_in_its_time_and_once() -> None:
    supervisor = supervisor_of(2, most=2)
    assert supervisor.deadline() is None
    assert supervisor.ended(0, KILLED, 1.0)
    due = supervisor.deadline()
    assert due is not None
    assert 1.0 < due <= 1.0 + FIRST_S
    assert supervisor.start_due(1.0) == []
    assert supervisor.start_due(due) == [0]
    assert supervisor.start_due(due) == []
    assert supervisor.deadline() is None


def test_one_that_ends_well_is_not_restarted_and_not_given_up() -> None:
    supervisor = supervisor_of(1, most=2)
    assert not supervisor.ended(0, DONE, 1.0)
    assert supervisor.places[0].state is PlaceState.DONE
    assert not supervisor.are_given_up()


def test_a_place_is_given_up_after_so_many_deaths() -> None:
    supervisor = supervisor_of(2, most=1)
    assert [supervisor.ended(number, KILLED, 1.0) for number in (0, 1)] == [True, True]
    supervisor.start_due(1.0 + FIRST_S)
    assert not supervisor.ended(0, KILLED, 2.0)
    assert not supervisor.are_given_up()
    assert not supervisor.ended(1, KILLED, 2.0)
    assert supervisor.are_given_up()
    assert supervisor.start_due(1000.0) == []


def test_a_team_is_given_up_with_its_leader_and_not_without_a_process() -> None:
    supervisor = supervisor_of(4, most=0, team_size=2)
    supervisor.ended(1, KILLED, 1.0)
    supervisor.ended(2, KILLED, 1.0)
    # One leader is left.
    assert not supervisor.are_given_up()
    supervisor.ended(0, KILLED, 1.0)
    assert supervisor.are_given_up()


@pytest.mark.parametrize(
    ("end", "has_progressed", "is_restarted"),
    [(KILLED, True, True), (KILLED, False, False), (CRASHED, True, False), (FAILED, True, False)],
)
def test_deaths_do_not_add_up_if_the_run_gets_further_unless_a_process_brings_them_upon_itself(
    end: ProcessEnd, has_progressed: bool, is_restarted: bool
) -> None:
    supervisor, now = supervisor_of(1, most=3), 0.0
    outcomes = []
    for _ in range(5):
        now += BEGUN_S
        supervisor.steps += has_progressed
        outcomes.append(supervisor.ended(0, end, now))
        supervisor.start_due(now + FIRST_S)
    assert outcomes == [True, True, True, is_restarted, is_restarted]


def test_a_process_that_was_killed_is_back_before_its_team_has_missed_it_for_long() -> None:
    delay_s = Restarts(most=3, seed="worker 0").delay_s(1.0, KILLED)
    assert delay_s is not None
    assert delay_s <= 0.1


@pytest.mark.parametrize("end", [KILLED, CRASHED, FAILED])
def test_a_death_is_put_up_with_so_many_times(end: ProcessEnd) -> None:
    restarts = Restarts(most=3, seed="server")
    assert [restarts.delay_s(1.0, end) is None for _ in range(5)] == [False, False, False, True, True]


def test_each_start_waits_about_twice_as_long_as_the_one_before() -> None:
    restarts = Restarts(most=20, seed="server")
    for count in range(20):
        full = min(MOST_S, FIRST_S * 2.0**count)
        delay = restarts.delay_s(1.0, KILLED)
        assert delay is not None
        assert full / 2 <= delay <= full


def test_one_that_has_lived_for_a_while_begins_anew() -> None:
    restarts = Restarts(most=1, seed="server")
    for _ in range(10):
        assert restarts.delay_s(STEADY_S, KILLED) is not None
    assert restarts.delay_s(STEADY_S - 0.1, KILLED) is None
    # One whose death says nothing about it does not count either.
    assert restarts.delay_s(0.0, ProcessEnd(code=-9, is_excused=True)) is not None


def test_one_that_is_killed_at_its_work_again_and_again_is_back_at_once_each_time() -> None:
    restarts = Restarts(most=100, seed="worker 0")
    for _ in range(50):
        delay = restarts.delay_s(BEGUN_S, KILLED)
        assert delay is not None
        assert delay <= FIRST_S


def test_a_start_that_fails_after_work_has_begun_waits_as_the_first_ones() -> None:
    restarts = Restarts(most=100, seed="worker 0")
    first = [restarts.delay_s(0.1, KILLED) for _ in range(3)]
    restarts.delay_s(BEGUN_S, KILLED)
    assert [restarts.delay_s(0.1, KILLED) for _ in range(2)] == first[1:]


def test_who_was_refused_would_be_so_again() -> None:
    assert Restarts(most=3, seed="worker 1").delay_s(100.0, ProcessEnd(code=USAGE)) is None


def test_without_restarts_nobody_comes() -> None:
    assert Restarts(most=0, seed="server").delay_s(1e9, KILLED) is None


def test_workers_that_die_together_do_not_start_together() -> None:
    delays = {Restarts(most=1, seed=f"worker {number}").delay_s(1.0, KILLED) for number in range(20)}
    assert len(delays) == 20
