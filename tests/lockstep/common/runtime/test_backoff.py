"""Delays double, stay below their limit, and differ between those who wait."""

import pytest

from lockstep.common.runtime.backoff import backoff_s


def delays(seed: str, tries: int = 40) -> list[float]:
    return [backoff_s(count, first_s=1.0, most_s=30.0, seed=seed) for count in range(1, tries + 1)]


def test_each_is_between_a_half_and_the_whole_of_a_doubling_time() -> None:
    for count, delay in enumerate(delays("a")):
        full = min(30.0, 2.0**count)
        assert full / 2 <= delay <= full


def test_the_same_seed_gives_the_same_delays_and_another_others() -> None:
    assert delays("a") == delays("a")
    assert not set(delays("a")) & set(delays("b"))


def test_those_who_wait_are_spread_over_the_time() -> None:
    tenths = [int(20 * (1.0 - backoff_s(1, first_s=1.0, most_s=1.0, seed=str(one)))) for one in range(1000)]
    assert all(tenths.count(tenth) == pytest.approx(100, abs=40) for tenth in range(10))


def test_any_number_of_tries_will_do() -> None:
    assert 15.0 <= backoff_s(10**9, first_s=1.0, most_s=30.0, seed="a") <= 30.0
