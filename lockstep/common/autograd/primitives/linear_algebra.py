"""Products of matrices."""

import math

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics.leaves import matrix_product, product, total


def _full(gradient: Array, x: Array, y: Array) -> Array:
    """Return the gradient with the axes that NumPy drops from the product if an operand is a vector."""
    if y.ndim == 1:
        gradient = gradient[..., np.newaxis]
    return gradient[..., np.newaxis, :] if x.ndim == 1 else gradient


def _matmul_by_left(gradient: Array, _: None, x: Array, y: Array) -> Array:
    across = y[np.newaxis, :] if y.ndim == 1 else y.swapaxes(-1, -2)
    result = product(_full(gradient, x, y), across)
    return np.squeeze(result, -2) if x.ndim == 1 else result


def _matmul_by_right(gradient: Array, _: None, x: Array, y: Array) -> Array:
    across = x[:, np.newaxis] if x.ndim == 1 else x.swapaxes(-1, -2)
    result = product(across, _full(gradient, x, y))
    return np.squeeze(result, -1) if y.ndim == 1 else result


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return `x @ weight.T + bias`: (..., features) by (out, features) to (..., out), with the rows innermost.

    So the product of the next layer reads it as it lies.
    """
    biases = () if bias is None else (bias,)
    result = matrix_product(weight, _rows(x).T, *biases).T
    return result if x.ndim == 2 else result.reshape(*x.shape[:-1], len(weight))


def _rows(x: Array) -> Array:
    """Return (..., n) as (rows, n). The count is spelled out: NumPy cannot infer it where n is 0."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _linear_by_input(gradient: Array, _: None, x: Array, weight: Array, bias: None) -> Array:
    result = product(weight.T, _rows(gradient).T).T
    return result if x.ndim == 2 else result.reshape(x.shape)


def _linear_by_weight(gradient: Array, _: None, x: Array, *__: Array | None, out: Array | None = None) -> Array:
    return product(_rows(gradient).T, _rows(x), out)


def _linear_by_bias(gradient: Array, *_: Array | None, out: Array | None = None) -> Array:
    return total(_rows(gradient), axis=0, out=out)


matmul = Primitive("matmul", product, (_matmul_by_left, _matmul_by_right), reads=((0, 1), (0, 1)))
linear = Primitive(
    "linear", _linear, (_linear_by_input, _linear_by_weight, _linear_by_bias), reads=((0, 1), (0,), ()), writes=(1, 2)
)
