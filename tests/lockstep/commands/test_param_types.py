"""Kinds of command-line values."""

import click
import pytest

from lockstep.commands.param_types import seconds


@pytest.mark.parametrize(("text", "number"), [("0.1", 0.1), ("60", 60.0), ("1e3", 1000.0)])
def test_seconds(text: str, number: float) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "0.05", "soon", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' is no time: expected seconds, at least 0.1"):
        seconds(text)
