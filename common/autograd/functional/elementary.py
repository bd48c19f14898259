"""Arithmetic, activations and reductions as functions; arguments may be tensors, arrays or numbers."""

from typing import Any

from common.autograd.primitives import activation, elementwise, linear_algebra, reduction
from common.autograd.primitives.reduction import Axis
from common.autograd.tensor import Tensor, apply


def add(x: Any, other: Any) -> Tensor:
    return apply(elementwise.add, x, other)


def subtract(x: Any, other: Any) -> Tensor:
    return apply(elementwise.subtract, x, other)


def multiply(x: Any, other: Any) -> Tensor:
    return apply(elementwise.multiply, x, other)


def divide(x: Any, other: Any) -> Tensor:
    return apply(elementwise.divide, x, other)


def power(x: Any, exponent: Any) -> Tensor:
    return apply(elementwise.power, x, exponent)


def negate(x: Any) -> Tensor:
    return apply(elementwise.negate, x)


def abs(x: Any) -> Tensor:  # noqa: A001
    """Return the absolute value; at 0 its derivative is 0."""
    return apply(elementwise.absolute, x)


def maximum(x: Any, other: Any) -> Tensor:
    """Return the greater of the two, element by element; at a tie each gets half of the gradient."""
    return apply(elementwise.maximum, x, other)


def minimum(x: Any, other: Any) -> Tensor:
    """Return the smaller of the two, element by element; at a tie each gets half of the gradient."""
    return apply(elementwise.minimum, x, other)


def where(condition: Any, x: Any, other: Any) -> Tensor:
    """Return `x` where `condition` holds and `other` elsewhere."""
    return apply(elementwise.where, condition, x, other)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002
    """Bound from below and above; the gradient passes where nothing was cut off."""
    return apply(elementwise.clip, x, low=min, high=max)


clamp = clip


def matmul(x: Any, other: Any) -> Tensor:
    """Return `x @ other`, with vectors and batches as in NumPy."""
    return apply(linear_algebra.matmul, x, other)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Return `x @ weight.T + bias`: x (..., features), weight (out, features), bias (out,), result (..., out)."""
    return apply(linear_algebra.linear, x, weight, bias)


def exp(x: Any) -> Tensor:
    return apply(activation.exp, x)


def log(x: Any) -> Tensor:
    return apply(activation.log, x)


def sqrt(x: Any) -> Tensor:
    return apply(activation.sqrt, x)


def tanh(x: Any) -> Tensor:
    return apply(activation.tanh, x)


def sigmoid(x: Any) -> Tensor:
    return apply(activation.sigmoid, x)


def relu(x: Any) -> Tensor:
    return apply(activation.relu, x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    return apply(activation.leaky_relu, x, negative_slope=negative_slope)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """Return `x Phi(x)`, exactly, or with `approximate="tanh"` in the paper's tanh form (arXiv:1606.08415)."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}: must be 'none' or 'tanh'")
    return apply(activation.gelu if approximate == "none" else activation.gelu_tanh, x)


def softplus(x: Any, beta: float = 1.0) -> Tensor:
    """Return `log(1 + exp(beta x)) / beta`, for any x without overflow."""
    return apply(activation.softplus, x, beta=beta)


def sum(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    return apply(reduction.reduce_sum, x, axis=dim, keepdims=keepdim)


def mean(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:
    return apply(reduction.reduce_mean, x, axis=dim, keepdims=keepdim)


def max(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Return the greatest elements, without their indices; those that tie share the gradient evenly."""
    return apply(reduction.reduce_max, x, axis=dim, keepdims=keepdim)


def min(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Return the smallest elements, without their indices; those that tie share the gradient evenly."""
    return apply(reduction.reduce_min, x, axis=dim, keepdims=keepdim)


def var(x: Any, dim: Axis = None, keepdim: bool = False, correction: int = 1) -> Tensor:
    """Return the variance, divided by the count less `correction`: 1 is the unbiased one, PyTorch's default."""
    return apply(reduction.variance, x, axis=dim, correction=correction, keepdims=keepdim)
