"""Kinds of command-line values."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import pytest

from lockstep.cli.options.types import moment, number_range, seconds, share_below_one, whole_number, worker_counts

of_seven = partial(number_range, total=7)

#: What makes a text a value -> texts and their values.
GOOD: tuple[tuple[Callable[[str], Any], dict[str, Any]], ...] = (
    (seconds, {"0.1": 0.1, "60": 60.0, "1e3": 1000.0}),
    (share_below_one, {"1%": 0.01, "0.01": 0.01, "0": 0.0, " 2.5 % ": 0.025, "20%": 0.2}),
    (moment, {"last": "last", "best": "best", "ema": "ema", "400": 400}),
    (number_range, {"0..499": range(500), "3": range(3, 4), "7..7": range(7, 8)}),
    (of_seven, {"2..4": range(2, 5), "..4": range(5), "2..": range(2, 7), "..": range(7), "6": range(6, 7)}),
    (worker_counts, {text: {"workers": int(text)} for text in ("4", "0", "-1")}),
    (worker_counts, {"2..16": {"workers": 16, "min_workers": 2}, "3..3": {"workers": 3, "min_workers": 3}}),
    (whole_number(1, 8), {"8": 8, " 1 ": 1}),
)

#: What makes a text a value -> what it refuses, and the error.
BAD: tuple[tuple[Callable[[str], Any], tuple[str, ...], str], ...] = (
    (seconds, ("nan", "inf", "-1", "0", "0.05", "soon", ""), "is not a valid time: expected seconds, at least 0.1"),
    (share_below_one, ("", "%", "1", "101%", "-1%", "nan", "1%%", "all"), "is not a valid share: expected less than 1"),
    (moment, ("first", "-1", "1.5", "²"), "does not name weights: expected last, best, ema, or a number of steps"),
    (
        number_range,
        ("", "..", "2..", "5..4", "-1..3", "1...3", "a..b", "1..2..3", "²", "2:4"),
        "is not a valid range: expected A..B with A <= B, or one number",
    ),
    (of_seven, ("0..7", "7", "9..", "", "12"), "expected A..B with 0 <= A <= B <= 6"),
    (worker_counts, ("0..4", "4..2", "many", "2..", "1e3"), "expected one as 4, or FEWEST..MOST as 2..16"),
    (whole_number(1, 8), ("9", "0", "1.5", "one", "", "²"), "expected a whole number from 1 to 8"),
    (whole_number(8), ("7",), "'7': expected a whole number >= 8"),
)


@pytest.mark.parametrize(("kind", "text", "value"), [(kind, *pair) for kind, texts in GOOD for pair in texts.items()])
def test_a_text_becomes_a_value(kind: Callable[[str], Any], text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "error"), [(kind, text, error) for kind, texts, error in BAD for text in texts]
)
def test_another_text_is_refused(kind: Callable[[str], Any], text: str, error: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(error)) as raised:
        kind(text)
    assert repr(text.strip()) in str(raised.value) or repr(text) in str(raised.value)
