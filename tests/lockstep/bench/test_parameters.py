"""What the options of benches take, as people write it."""

import click
import pytest

from lockstep.bench.bench import NUMBERS, DurationParam, LinkParam, PowersRange
from lockstep.cli.options.types import WholeNumber


@pytest.mark.parametrize(("text", "speed"), [("1Gbit", 125e6), ("2.5 gbit/s", 312.5e6), ("100Mbit", 12.5e6)])
def test_links_are_named_in_bits(text: str, speed: float) -> None:
    assert LinkParam().convert(text, None, None) == speed


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1..8", (1, 2, 4, 8)), ("3..20", (3, 4, 8, 16, 20)), ("5..5", (5,)), ("1:9", (1, 2, 4, 8)), ("1,7,7", (1, 7))],
)
def test_a_range_stands_for_powers_of_two(text: str, numbers: tuple[int, ...]) -> None:
    assert PowersRange(NUMBERS.kind).convert(text, None, None) == numbers


def test_a_range_does_not_go_on_for_ever() -> None:
    with pytest.raises(click.BadParameter, match=r"'100000000': expected a whole number from 1 to 1024"):
        PowersRange(WholeNumber(1, 1024)).convert("1..100000000", None, None)


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5 s", 1.5), ("250us", 0.00025), ("60s", 60.0)])
def test_times_have_a_unit(text: str, seconds: float) -> None:
    assert DurationParam().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "ms", "-1ms", "61s", "20 minutes"])
def test_what_is_not_a_time_is_reported(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a valid time: expected one such as 20ms"):
        DurationParam().convert(text, None, None)
