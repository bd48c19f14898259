"""Passing a gradient where a mask holds, bit by bit."""

import numpy as np
import pytest

from common.autograd.primitives.primitive import Array
from common.autograd.primitives.selection import masked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selects_as_where(dtype: type) -> None:
    gradient: Array = np.array([1.5, -2.0, np.inf, -np.inf, np.nan, -0.0], dtype)
    for mask in (np.ones(6, bool), np.zeros(6, bool), np.arange(6) % 2 == 0):
        np.testing.assert_array_equal(masked(gradient, mask), np.where(mask, gradient, 0), strict=True)


def test_broadcasts_and_takes_any_layout() -> None:
    gradient = np.broadcast_to(np.arange(3.0), (2, 3)).T
    mask = np.array([[True], [False], [True]])
    np.testing.assert_array_equal(masked(gradient, mask), [[0, 0], [0, 0], [2, 2]])
    np.testing.assert_array_equal(masked(np.array(2.0), np.array(True)), 2.0)
