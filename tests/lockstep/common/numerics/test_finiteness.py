"""What is not finite is found where it is, and nothing is warned of."""

import warnings

import numpy as np
import pytest

from lockstep.common.numerics.sums import first_not_finite


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 7, 999])
def test_the_first_value_that_is_not_finite_is_found(wrong: float, place: int) -> None:
    vector = np.linspace(-1, 1, 1000, dtype=np.float32)
    vector[place] = vector[-1] = wrong
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_not_finite(vector) == place


def test_a_finite_vector_is_finite_even_if_its_squares_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_not_finite(np.zeros(0, np.float32)) is None
        assert first_not_finite(np.full(1000, 3e38, np.float32)) is None
