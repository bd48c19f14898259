"""Who dies is started again, later each time, until that is hopeless."""

import pytest

from lockstep.launch.restarts import FIRST_S, MOST_S, STEADY_S, USAGE, Restarts

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


def test_who_was_refused_would_be_so_again() -> None:
    assert Restarts(most=3, seed="worker 1").delay_s(100.0, USAGE) is None


def test_without_restarts_nobody_comes() -> None:
    assert Restarts(most=0, seed="server").delay_s(1e9, KILLED) is None


def test_workers_that_die_together_do_not_start_together() -> None:
    delays = {Restarts(most=1, seed=f"worker {number}").delay_s(1.0, KILLED) for number in range(20)}
    assert len(delays) == 20
