"""Gradients land in memory that somebody else gave: a slice of a flat vector."""

import numpy as np
import pytest

from lockstep.common.autograd.primitives import linear_algebra
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor, apply


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def test_the_first_gradient_is_written_and_later_ones_are_added() -> None:
    flat = np.full(5, np.nan)
    x = leaf(1.0, 2.0)
    x.grad_buffer = flat[1:3]
    (x * 3).backward(np.ones(2))
    assert x.grad is not None
    assert np.shares_memory(x.grad, flat)
    (x * x).backward(np.ones(2))
    np.testing.assert_array_equal(flat, [np.nan, 5.0, 7.0, np.nan, np.nan])


def test_zero_grad_starts_anew_without_zeroing() -> None:
    flat = np.full(2, np.nan)
    x = leaf(1.0, 2.0)
    x.grad_buffer = flat
    for _ in range(2):
        x.zero_grad()
        assert x.grad is None
        (x * 3 + x).backward(np.ones(2))
        np.testing.assert_array_equal(flat, [4.0, 4.0])


def test_linear_writes_its_gradients_with_out() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((5, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2)
    tensors = [Tensor(weight, requires_grad=True), Tensor(bias, requires_grad=True)]
    for tensor in tensors:
        tensor.grad_buffer = np.full(tensor.shape, np.nan)
    total = apply(linear_algebra.linear, x, *tensors) + apply(linear_algebra.linear, 2 * x, *tensors)
    total.backward(np.ones((5, 2)))
    np.testing.assert_allclose(gradient(tensors[0]), np.ones((2, 5)) @ (3 * x))
    np.testing.assert_array_equal(gradient(tensors[1]), [10.0, 10.0])


@pytest.mark.parametrize("buffer", [np.zeros(3), np.zeros(2, np.float32)])
def test_a_buffer_must_fit(buffer: Array) -> None:
    with pytest.raises(ValueError, match="grad_buffer has shape"):
        leaf(1.0, 2.0).grad_buffer = buffer


def test_only_leaves_have_one() -> None:
    with pytest.raises(RuntimeError, match="was computed"):
        (leaf(1.0) * 2).grad_buffer = np.zeros(1)
    with pytest.raises(RuntimeError, match="does not require"):
        Tensor([1.0]).grad_buffer = np.zeros(1, np.float32)
