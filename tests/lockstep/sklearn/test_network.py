"""Rows are scaled by column and repeated by weight; neither depends on how an array lies in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.numerics.random import Purpose, generator
from lockstep.sklearn.network import BLOCK, MOST_ROWS, column_moments, repetitions, scaled


def test_columns_get_mean_0_and_deviation_1() -> None:
    rows = generator(0, Purpose.CANARY).standard_normal((BLOCK + 100, 3), dtype=np.float32)
    rows *= np.array([1e-3, 1, 1e6], np.float32)
    rows += np.array([0, -50, 3e7], np.float32)
    found = scaled(rows, column_moments(rows))
    np.testing.assert_allclose(found.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=0, dtype=np.float64), 1, rtol=1e-6)
    other = np.asfortranarray(rows)
    assert scaled(other, column_moments(other)).tobytes() == found.tobytes()


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, -1e30])
def test_a_constant_column_stays_one(value: float) -> None:
    rows = np.full((1000, 1), value, np.float32)
    np.testing.assert_allclose(scaled(rows, column_moments(rows)), 0, atol=1e-5 * max(1, abs(value)))
    assert column_moments(rows)[1] == 1.0


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([0, 2, 3], [0, 2, 3]),
        ([4, 6, 0], [2, 3, 0]),
        ([0.5, 0.25, 0], [2, 1, 0]),
        ([0.1, 0.1, 0.1], [1, 1, 1]),
        ([1, 1.5, 1.5, 1.5, 1.5], [1, 1, 2, 2, 1]),
        ([1, 1e9], [0, 16]),
    ],
)
def test_rows_are_repeated_in_proportion(weights: list[float], expected: list[int]) -> None:
    assert repetitions(np.array(weights, np.float64)).tolist() == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(any))
def test_repetitions_add_up(weights: list[float]) -> None:
    given_weights = np.array(weights)
    times = repetitions(given_weights)
    assert 0 < times.sum() <= MOST_ROWS * len(weights) + 1
    assert (times[given_weights == 0] == 0).all()
    # As the weights say, but for what one rounding leaves.
    shares = given_weights / given_weights.sum() * times.sum()
    np.testing.assert_allclose(np.cumsum(times), np.cumsum(shares), atol=1.01)


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sample_weight has the value -1: expected none below 0"):
        repetitions(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="sample_weight is 0 for every row: expected a row to learn from"):
        repetitions(np.zeros(3))
