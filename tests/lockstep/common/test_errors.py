"""A mistyped word gets the nearest right one, where there is one; the root of errors is a public name."""

import pytest

import lockstep
from lockstep.common.errors import DataError, LockstepError, nearest


@pytest.mark.parametrize(("word", "expected"), [("epocs", " (did you mean 'epochs'?)"), ("zzz", ""), ("", "")])
def test_nearest(word: str, expected: str) -> None:
    assert nearest(word, ["seed", "epochs", "steps"]) == expected


def test_capitals_do_not_count() -> None:
    assert nearest("AdamW", ["adam", "adamw", "SGD"]) == " (did you mean 'adamw'?)"
    assert nearest("sgd", ["adam", "SGD"]) == " (did you mean 'SGD'?)"


@pytest.mark.parametrize(("word", "near"), [("nope", ""), ("slpoe", "slope"), ("slop", "slope"), ("area", "")])
def test_half_of_the_letters_are_not_near(word: str, near: str) -> None:
    assert nearest(word, ["slope", "arrived"]) == (f" (did you mean {near!r}?)" if near else "")


def test_nothing_is_near_where_there_is_nothing() -> None:
    assert nearest("epochs", []) == ""


def test_the_root_of_all_errors_is_a_public_name() -> None:
    assert lockstep.LockstepError is LockstepError
    assert "LockstepError" in lockstep.__all__
    with pytest.raises(lockstep.LockstepError) as caught:
        lockstep.load("gone")
    assert type(caught.value) is DataError
