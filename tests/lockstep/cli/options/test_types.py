"""Kinds of command-line values."""

import click
import pytest

from lockstep.cli.options.types import number_range, seconds, share, whole_number, worker_counts


@pytest.mark.parametrize(("text", "number"), [("0.1", 0.1), ("60", 60.0), ("1e3", 1000.0)])
def test_seconds(text: str, number: float) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "0.05", "soon", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' is not a valid time: expected seconds, at least 0.1"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "part"), [("1%", 0.01), ("0.01", 0.01), ("100%", 1.0), ("1", 1.0), (" 2.5 % ", 0.025)]
)
def test_a_share_is_told_in_per_cent_or_not(text: str, part: float) -> None:
    assert share(text) == pytest.approx(part)


@pytest.mark.parametrize("text", ["", "%", "1.1", "101%", "-1%", "nan", "1%%", "1%x", "all"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a valid share"):
        share(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0..499", range(500)),
        # As Python's slices have it.
        ("0:500", range(500)),
        ("3", range(3, 4)),
        ("7..7", range(7, 8)),
    ],
)
def test_ranges(text: str, numbers: range) -> None:
    assert number_range(text) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2..4", range(2, 5)),
        ("..4", range(5)),
        ("2..", range(2, 7)),
        (":", range(7)),
        ("2:5", range(2, 5)),
        ("6", range(6, 7)),
    ],
)
def test_of_a_known_number_an_end_may_be_left_out(text: str, numbers: range) -> None:
    assert number_range(text, 7) == numbers


@pytest.mark.parametrize("text", ["", "..", ":", "2..", ":3", "5..4", "5:5", "-1..3", "1...3", "a..b", "1..2..3", "²"])
def test_what_is_not_a_range_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a valid range: expected A\.\.B with A <= B, or one number"):
        number_range(text)


@pytest.mark.parametrize("text", ["0..7", "0:8", "7", "9..", ""])
def test_a_range_beyond_all_numbers_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected A\.\.B with 0 <= A <= B <= 6"):
        number_range(text, 7)


@pytest.mark.parametrize(
    ("text", "fewest", "most"),
    [("4", None, 4), ("0", None, 0), ("-1", None, -1), ("2..16", 2, 16), ("2:17", 2, 16), ("3..3", 3, 3)],
)
def test_numbers_of_workers(text: str, fewest: int | None, most: int) -> None:
    counts = worker_counts(text)
    assert (counts.get("min_workers"), counts["workers"]) == (fewest, most)


@pytest.mark.parametrize("text", ["0..4", "4..2", "many", "2..", "1e3"])
def test_what_is_not_a_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected one as 4, or FEWEST\.\.MOST as 2\.\.16"):
        worker_counts(text)


def test_a_whole_number_names_its_bounds_when_it_is_wrong() -> None:
    assert whole_number(1, 8)("8") == 8
    for text in ("9", "0", "1.5", "one", "", "²"):
        with pytest.raises(click.BadParameter, match=f"'{text}': expected a whole number from 1 to 8"):
            whole_number(1, 8)(text)
    with pytest.raises(click.BadParameter, match="'7': expected a whole number >= 8"):
        whole_number(8)("7")
