"""Products of matrices."""

import math

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.products import multiply


def _full(gradient: Array, x: Array, y: Array) -> Array:
    """Return the gradient with the axes that NumPy drops from the product if an operand is a vector."""
    if y.ndim == 1:
        gradient = gradient[..., np.newaxis]
    return gradient[..., np.newaxis, :] if x.ndim == 1 else gradient


def _matmul_by_left(gradient: Array, _: None, x: Array, y: Array) -> Array:
    across = y[np.newaxis, :] if y.ndim == 1 else y.swapaxes(-1, -2)
    product: Array = np.matmul(_full(gradient, x, y), across)
    return np.squeeze(product, -2) if x.ndim == 1 else product


def _matmul_by_right(gradient: Array, _: None, x: Array, y: Array) -> Array:
    across = x[:, np.newaxis] if x.ndim == 1 else x.swapaxes(-1, -2)
    product: Array = np.matmul(across, _full(gradient, x, y))
    return np.squeeze(product, -1) if y.ndim == 1 else product


def _is_batch_innermost(x: Array) -> bool:
    return x.ndim == 2 and not x.flags.c_contiguous and x.T.flags.c_contiguous


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return `x @ weight.T + bias`: (..., features) by (out, features) to (..., out), in the layout of `x`."""
    if x.ndim > 2:
        # One product of all rows, where NumPy would make one for each sample.
        return _linear(_rows(x), weight, bias).reshape(*x.shape[:-1], len(weight))
    product = multiply(weight, x.T).T if _is_batch_innermost(x) else multiply(x, weight.T)
    if bias is None:
        return product
    if product.dtype != bias.dtype:
        return product + bias
    product += bias
    return product


def _rows(x: Array) -> Array:
    """Return (..., n) as (rows, n). The count is spelled out: NumPy cannot infer it where n is 0."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _linear_by_input(gradient: Array, _: None, x: Array, weight: Array, bias: None) -> Array:
    if gradient.ndim > 2:
        return multiply(_rows(gradient), weight).reshape(x.shape)
    return multiply(weight.T, gradient.T).T if _is_batch_innermost(x) else multiply(gradient, weight)


def _linear_by_weight(gradient: Array, _: None, x: Array, *__: Array | None, out: Array | None = None) -> Array:
    return multiply(_rows(gradient).T, _rows(x), out)


def _linear_by_bias(gradient: Array, *_: Array | None, out: Array | None = None) -> Array:
    total: Array = np.add.reduce(_rows(gradient), axis=0, out=out)
    return total


matmul = Primitive("matmul", np.matmul, (_matmul_by_left, _matmul_by_right), reads=((0, 1), (0, 1)))
linear = Primitive(
    "linear", _linear, (_linear_by_input, _linear_by_weight, _linear_by_bias), reads=((0, 1), (0,), ()), writes=(1, 2)
)
