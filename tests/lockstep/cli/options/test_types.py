"""Kinds of command-line values."""

import click
import pytest

from lockstep.cli.options.types import seconds, share


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
