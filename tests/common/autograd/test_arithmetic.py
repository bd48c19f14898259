"""Operators: with tensors, arrays, lists and numbers on either side."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from common.autograd.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return Tensor(list(values), requires_grad=True)


@pytest.mark.parametrize("apply", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
@pytest.mark.parametrize(
    "other", [2, 2.5, np.float32(2), np.array([2.0, 3.0], np.float32), [2.0, 3.0], Tensor([2.0, 3.0])]
)
def test_both_sides(apply: Callable[[Any, Any], Any], other: Any) -> None:
    x = leaf(1.5, 2.5)
    raw = np.asarray(other, np.float32)
    for result, expected in (
        (apply(x, other), apply(x.data, raw)),
        (apply(other, x), apply(raw, x.data)),
    ):
        assert isinstance(result, Tensor)
        assert result.requires_grad
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.data, expected, rtol=1e-6)


def test_matmul_with_arrays() -> None:
    x = Tensor(np.eye(2), requires_grad=True)
    for result in (x @ np.ones((2, 3)), (np.ones((3, 2)) @ x).T):
        np.testing.assert_array_equal(result.data, np.ones((2, 3)))


def test_unary() -> None:
    x = leaf(-1.0, 2.0)
    np.testing.assert_array_equal((-x).data, [1.0, -2.0])
    np.testing.assert_array_equal((+x).data, [-1.0, 2.0])
    np.testing.assert_array_equal(abs(x).data, [1.0, 2.0])


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [2.0, np.array([1.0, 3.0, 2.0]), Tensor([1.0, 3.0, 2.0])])
def test_comparisons(compare: Callable[[Any, Any], Any], other: Any) -> None:
    x = leaf(1.0, 2.0, 3.0)
    raw = np.asarray(other)
    for result, expected in ((compare(x, other), compare(x.data, raw)), (compare(other, x), compare(raw, x.data))):
        assert result.dtype == np.bool_
        assert not result.requires_grad
        np.testing.assert_array_equal(result.data, expected)


def test_masks() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(x[(x > 1) & ~(x > 2)].data, [2.0])
    np.testing.assert_array_equal(x[(x < 2) | (x > 2)].data, [1.0, 3.0])


def test_ufuncs_refuse_a_tensor() -> None:
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.exp(Tensor([1.0]))
