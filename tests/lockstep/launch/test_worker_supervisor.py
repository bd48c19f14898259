"""Workers that die: each death is reported once, and each is started again until that is hopeless."""

from pathlib import Path

import pytest

from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.child import USAGE, ProcessLog, WatchedProcess
from lockstep.launch.worker_supervisor import BEGUN_S, FIRST_S, MOST_S, STEADY_S, Restarts, WorkerSupervisor
from tests.lockstep.launch.processes import Pretended


def supervisor_of(codes: list[list[int]], most: int, team_size: int = 1) -> tuple[WorkerSupervisor, ManualClock]:
    """Return places at which processes end at once, by these exit codes in turn."""
    clock, left = ManualClock(), [list(row) for row in codes]

    def start(number: int) -> WatchedProcess:
        return Pretended("a worker", ProcessLog(Path()), ended=left[number].pop(0))

    supervisor = WorkerSupervisor(start, clock, most, team_size)
    supervisor.start_all(len(codes))
    return supervisor, clock


def dead(supervisor: WorkerSupervisor) -> list[int]:
    """Return the numbers of those whose death is reported now."""
    return [supervisor.supervised.index(worker) for worker in supervisor.dead()]


def test_each_death_is_told_once_and_the_next_one_comes_in_its_time() -> None:
    supervisor, clock = supervisor_of([[-9, -9, 0], [0]], most=2)
    assert dead(supervisor) == [0]
    assert dead(supervisor) == []
    first = supervisor.processes[0]
    supervisor.restart_due()
    assert supervisor.processes[0] is first
    clock.advance(FIRST_S)
    supervisor.restart_due()
    assert supervisor.processes[0] is not first
    assert dead(supervisor) == [0]
    clock.advance(2 * FIRST_S)
    supervisor.restart_due()
    assert dead(supervisor) == []
    assert supervisor.processes[0].code == 0


def test_what_the_dead_one_holds_is_free_before_the_next_one_starts() -> None:
    supervisor, clock = supervisor_of([[-9, 0], [0]], most=1)
    first, second = (worker for worker in supervisor.processes if isinstance(worker, Pretended))
    assert dead(supervisor) == [0]
    clock.advance(FIRST_S)
    supervisor.restart_due()
    assert (first.graces, second.graces) == ([0.0], [])


def test_a_place_is_given_up_after_so_many_deaths() -> None:
    supervisor, clock = supervisor_of([[-9, -9], [-9, 0]], most=1)
    assert dead(supervisor) == [0, 1]
    assert not supervisor.are_given_up()
    clock.advance(FIRST_S)
    supervisor.restart_due()
    assert dead(supervisor) == [0]
    assert supervisor.supervised[0].is_given_up
    assert not supervisor.supervised[1].is_given_up
    assert not supervisor.are_given_up()


@pytest.mark.parametrize(("code", "most"), [(2, 5), (-9, 0), (1, 0)])
def test_a_run_all_of_whose_places_are_given_up_is_hopeless(code: int, most: int) -> None:
    supervisor, clock = supervisor_of([[code], [code]], most)
    assert dead(supervisor) == [0, 1]
    assert supervisor.are_given_up()
    clock.advance(1000.0)
    supervisor.restart_due()
    assert dead(supervisor) == []


def test_a_team_is_given_up_with_its_leader_and_not_without_a_process() -> None:
    supervisor, _ = supervisor_of([[0], [-9], [-9], [0]], most=0, team_size=2)
    assert dead(supervisor) == [1, 2]
    # One leader is left.
    assert not supervisor.are_given_up()
    alone, _ = supervisor_of([[-9], [0]], most=0, team_size=2)
    assert dead(alone) == [0]
    assert alone.are_given_up()


def test_there_is_something_to_do_for_a_death_and_for_a_restart_and_not_in_between() -> None:
    supervisor, clock = supervisor_of([[-9, 0], [0]], most=1)
    assert supervisor.is_due()
    assert dead(supervisor) == [0]
    assert not supervisor.is_due()
    clock.advance(FIRST_S)
    assert supervisor.is_due()
    supervisor.restart_due()
    assert not supervisor.is_due()


def test_a_process_that_was_killed_is_back_before_its_team_has_missed_it_for_long() -> None:
    delay_s = Restarts(most=3, seed="worker 0").delay_s(1.0, KILLED)
    assert delay_s is not None
    assert delay_s <= 0.1


KILLED = -9


@pytest.mark.parametrize("code", [KILLED, -11, 1])
def test_a_death_is_put_up_with_so_many_times(code: int) -> None:
    restarts = Restarts(most=3, seed="server")
    assert [restarts.delay_s(1.0, code) is None for _ in range(5)] == [False, False, False, True, True]


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
    assert Restarts(most=3, seed="worker 1").delay_s(100.0, USAGE) is None


def test_without_restarts_nobody_comes() -> None:
    assert Restarts(most=0, seed="server").delay_s(1e9, KILLED) is None


def test_workers_that_die_together_do_not_start_together() -> None:
    delays = {Restarts(most=1, seed=f"worker {number}").delay_s(1.0, KILLED) for number in range(20)}
    assert len(delays) == 20
