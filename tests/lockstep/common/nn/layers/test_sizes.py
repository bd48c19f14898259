import numpy as np
import pytest

from lockstep.common.nn.layers.sizes import one_or_each, per_axis, positive


@pytest.mark.parametrize("value", [3, np.int64(3), (3, 3), [3, 3]])
def test_one_number_stands_for_all_axes(value: int) -> None:
    assert per_axis(value, 2, "stride") == (3, 3)


def test_one_or_each_keeps_the_form() -> None:
    assert one_or_each(np.int64(2), 2, "stride") == 2
    assert one_or_each([2, 2], 2, "stride") == (2, 2)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "stride is 0: expected at least 1"),
        ((1, 2, 3), ValueError, r"stride is \(1, 2, 3\): expected one integer, or 2 of them"),
        ((1, 2.5), TypeError, "stride is 2.5: expected an integer"),
        (True, TypeError, "stride is True: expected an integer"),
        (2.5, TypeError, "stride is 2.5: expected an integer"),
        ("same", ValueError, "stride is 'same': expected one integer"),
    ],
)
def test_what_is_no_size_is_named(value: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        per_axis(value, 2, "stride")


def test_positive() -> None:
    assert positive(np.int32(4), "groups") == 4
    with pytest.raises(ValueError, match="groups is -1: expected at least 1"):
        positive(-1, "groups")
