"""Clocks run forwards; the manual one only when told."""

import datetime
import re
import time
from typing import Any

import pytest

from lockstep.common.runtime.clock import ManualClock, SystemClock, clocks_ahead, wall_time


def test_the_system_clock_never_runs_backwards() -> None:
    clock = SystemClock()
    readings = [clock.now() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_system_clock_tells_what_became_of_the_time_of_a_thread() -> None:
    clock = SystemClock()
    began, before = clock.now(), clock.times()
    ran = sum(number * number for number in range(20_000))
    after, ended = clock.times(), clock.now()
    assert ran
    assert 0.0 < after.ran - before.ran <= ended - began
    assert 0.0 <= after.waited - before.waited <= ended - began


def test_manual_time_moves_when_told() -> None:
    clock = ManualClock()
    clock.advance(1.5)
    clock.advance(0.0)
    assert clock.now() == 1.5


def test_manual_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="time cannot be moved by -1"):
        ManualClock().advance(-1)


def test_wall_time_is_fit_for_a_name() -> None:
    assert re.fullmatch(r"\d{8}-\d{6}", wall_time())


#: Ways to read a clock, which all show another part of a date or of a time of day.
READ = [
    "int(time.time())",
    "now()",
    "time.monotonic_ns() // 10**9",
    "time.gmtime().tm_hour",
    "time.strftime('%M')",
    "datetime.datetime.now().hour",
    "datetime.datetime.now(datetime.UTC).month",
    "datetime.date.today().weekday()",
    "today.today().year",
]


@pytest.mark.parametrize("text", READ)
def test_clocks_are_ahead_for_code_with_these_names_alone(text: str) -> None:
    ours: dict[str, Any] = {"time": time, "now": time.time, "datetime": datetime, "today": datetime.date}
    before, other = eval(text, ours), dict(ours)
    with clocks_ahead([ours]):
        assert eval(text, ours) != before
        assert other["now"] is time.time
        assert eval("datetime.datetime(2026, 1, 2).day", ours) == 2
    assert ours["time"] is time
    assert ours["now"] is time.time
    assert ours["datetime"].datetime is datetime.datetime
