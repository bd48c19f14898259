"""When processes that die are restarted: each death counts once, until a restart is hopeless."""

import pytest

from lockstep.launch.supervision.restarts import (
    BEGUN_S,
    FIRST_S,
    MOST_S,
    STEADY_S,
    USAGE,
    WELL,
    PlaceState,
    ProcessEnd,
    ProcessPlace,
    ProcessTable,
    Role,
    SupervisedPlace,
)

KILLED = ProcessEnd(code=-9)
CRASHED = ProcessEnd(code=-11)
FAILED = ProcessEnd(code=1, has_reported=True)


WORKERS = [ProcessPlace(Role.WORKER, number) for number in range(2)]


def places_of(most: int) -> ProcessTable:
    """Return the places of two workers, which have started at 0 s."""
    places = ProcessTable(most)
    for worker in WORKERS:
        places.begin(worker, 0.0)
    return places


def has_restart(places: ProcessTable, place: ProcessPlace, end: ProcessEnd, now: float) -> bool:
    """Let a process end; return whether it is restarted."""
    places.end(place, end, now)
    return places.restart(place, now) is not None


def test_the_next_process_starts_in_its_time_and_once() -> None:
    places = places_of(most=2)
    assert places.deadline() is None
    assert has_restart(places, WORKERS[0], KILLED, 1.0)
    due = places.deadline()
    assert due is not None
    assert 1.0 < due <= 1.0 + FIRST_S
    assert places.due(PlaceState.AWAITED, 1.0) == []
    assert places.due(PlaceState.AWAITED, due) == WORKERS[:1]
    places.begin(WORKERS[0], due)
    assert places.due(PlaceState.AWAITED, due) == []
    assert places.deadline() is None


def test_an_end_is_judged_in_its_time() -> None:
    places = places_of(most=2)
    places.end(WORKERS[1], FAILED, 3.0)
    assert places.deadline() == 3.0
    assert places.due(PlaceState.ENDED, 2.9) == []
    assert places.due(PlaceState.ENDED, 3.0) == WORKERS[1:]
    places.vacate(WORKERS[1])
    assert places.deadline() is None


def test_one_that_ends_well_is_not_restarted_and_not_given_up() -> None:
    places = places_of(most=2)
    assert not has_restart(places, WORKERS[0], WELL, 1.0)
    assert places.state(WORKERS[0]) is PlaceState.DONE
    assert not places.are_given_up(WORKERS[:1])


def test_a_place_is_given_up_after_so_many_deaths_also_if_it_was_empty_for_a_while() -> None:
    places = places_of(most=1)
    assert [has_restart(places, worker, KILLED, 1.0) for worker in WORKERS] == [True, True]
    places.vacate(WORKERS[0])
    places.begin(WORKERS[0], 1.0)
    assert not has_restart(places, WORKERS[0], KILLED, 2.0)
    assert places.are_given_up(WORKERS[:1])
    assert not places.are_given_up(WORKERS)


@pytest.mark.parametrize(
    ("end", "has_progressed", "is_restarted"),
    [(KILLED, True, True), (KILLED, False, False), (CRASHED, True, False), (FAILED, True, False)],
)
def test_deaths_do_not_add_up_if_the_run_gets_further_unless_a_process_brings_them_upon_itself(
    end: ProcessEnd, has_progressed: bool, is_restarted: bool
) -> None:
    places, now = places_of(most=3), 0.0
    outcomes = []
    for _ in range(5):
        now += BEGUN_S
        places.steps += has_progressed
        outcomes.append(has_restart(places, WORKERS[0], end, now))
        places.begin(WORKERS[0], now)
    assert outcomes == [True, True, True, is_restarted, is_restarted]


def test_a_process_that_was_killed_is_back_before_its_team_has_missed_it_for_long() -> None:
    delay_s = SupervisedPlace(most=3, seed="worker 0").delay_s(1.0, KILLED)
    assert delay_s is not None
    assert delay_s <= 0.1


@pytest.mark.parametrize("end", [KILLED, CRASHED, FAILED])
def test_a_death_is_put_up_with_so_many_times(end: ProcessEnd) -> None:
    restarts = SupervisedPlace(most=3, seed="server")
    assert [restarts.delay_s(1.0, end) is None for _ in range(5)] == [False, False, False, True, True]


def test_each_start_waits_about_twice_as_long_as_the_one_before() -> None:
    restarts = SupervisedPlace(most=20, seed="server")
    for count in range(20):
        full = min(MOST_S, FIRST_S * 2.0**count)
        delay = restarts.delay_s(1.0, KILLED)
        assert delay is not None
        assert full / 2 <= delay <= full


def test_one_that_has_lived_for_a_while_begins_anew() -> None:
    restarts = SupervisedPlace(most=1, seed="server")
    for _ in range(10):
        assert restarts.delay_s(STEADY_S, KILLED) is not None
    assert restarts.delay_s(STEADY_S - 0.1, KILLED) is None
    # One whose death says nothing about it does not count either.
    assert restarts.delay_s(0.0, ProcessEnd(code=-9, is_excused=True)) is not None


def test_one_that_is_killed_at_its_work_again_and_again_is_back_at_once_each_time() -> None:
    restarts = SupervisedPlace(most=100, seed="worker 0")
    for _ in range(50):
        delay = restarts.delay_s(BEGUN_S, KILLED)
        assert delay is not None
        assert delay <= FIRST_S


def test_a_start_that_fails_after_work_has_begun_waits_as_the_first_ones() -> None:
    restarts = SupervisedPlace(most=100, seed="worker 0")
    first = [restarts.delay_s(0.1, KILLED) for _ in range(3)]
    restarts.delay_s(BEGUN_S, KILLED)
    assert [restarts.delay_s(0.1, KILLED) for _ in range(2)] == first[1:]


def test_who_was_refused_would_be_so_again() -> None:
    assert SupervisedPlace(most=3, seed="worker 1").delay_s(100.0, ProcessEnd(code=USAGE)) is None


def test_without_restarts_nobody_comes() -> None:
    assert SupervisedPlace(most=0, seed="server").delay_s(1e9, KILLED) is None


def test_workers_that_die_together_do_not_start_together() -> None:
    delays = {SupervisedPlace(most=1, seed=f"worker {number}").delay_s(1.0, KILLED) for number in range(20)}
    assert len(delays) == 20
