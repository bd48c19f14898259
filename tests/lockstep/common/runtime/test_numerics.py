"""A process computes with the numerics that it was last told to use, and gives back those of before."""

import pytest

from lockstep.common.runtime.numerics import kept_numerics, own_numerics, use_numerics


def test_a_process_begins_with_portable_numerics() -> None:
    assert own_numerics() == "portable"


def test_they_change_at_any_time_and_are_given_back() -> None:
    with kept_numerics():
        use_numerics("native")
        assert own_numerics() == "native"
        with kept_numerics():
            use_numerics("portable")
        assert own_numerics() == "native"
    assert own_numerics() == "portable"


def test_they_are_given_back_after_an_error() -> None:
    def fail() -> None:
        with kept_numerics():
            use_numerics("native")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert own_numerics() == "portable"
