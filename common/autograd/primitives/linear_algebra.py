"""Products of matrices."""

import math

import numpy as np

from common.autograd.primitives.primitive import Array, Primitive

#: Multiply-adds up to which OpenBLAS multiplies without packing (its `small matrix` kernels): twice as fast there.
_SMALL = 1_000_000
#: Outputs so few that packing costs as much as multiplying.
_FEW = 16


def _as_rows(x: Array) -> Array:
    return x[np.newaxis, :] if x.ndim == 1 else x


def _as_columns(y: Array) -> Array:
    return y[:, np.newaxis] if y.ndim == 1 else y


def _full(gradient: Array, x: Array, y: Array) -> Array:
    """Return the gradient with the axes that NumPy drops from the product where an operand is a vector."""
    if y.ndim == 1:
        gradient = gradient[..., np.newaxis]
    return gradient[..., np.newaxis, :] if x.ndim == 1 else gradient


def _matmul_by_left(gradient: Array, _: None, x: Array, y: Array) -> Array:
    product: Array = np.matmul(_full(gradient, x, y), _as_columns(y).swapaxes(-1, -2))
    return np.squeeze(product, -2) if x.ndim == 1 else product


def _matmul_by_right(gradient: Array, _: None, x: Array, y: Array) -> Array:
    product: Array = np.matmul(_as_rows(x).swapaxes(-1, -2), _full(gradient, x, y))
    return np.squeeze(product, -1) if y.ndim == 1 else product


def _is_batch_innermost(x: Array) -> bool:
    return x.ndim == 2 and not x.flags.c_contiguous and x.T.flags.c_contiguous


def _row_block(rows: int, features: int, out: int) -> int:
    """Return how many rows a product with few outputs takes at a time: all, or as many as stay below `_SMALL`."""
    if out > _FEW or rows * features * out <= _SMALL:
        return max(1, rows)
    return max(1, _SMALL // (features * out) // _FEW * _FEW)


def _times_transposed(x: Array, weight: Array) -> Array:
    """Return `x @ weight.T`, where `x` has two axes and few outputs in blocks of rows."""
    if x.ndim != 2 or (block := _row_block(len(x), *weight.shape[::-1])) >= len(x):
        product: Array = np.matmul(x, weight.T)
        return product
    product = np.empty((len(x), len(weight)), np.result_type(x, weight))
    for start in range(0, len(x), block):
        np.matmul(x[start : start + block], weight.T, out=product[start : start + block])
    return product


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return `x @ weight.T + bias`: (..., features) by (out, features) to (..., out), in the layout of `x`."""
    product: Array = np.matmul(weight, x.T).T if _is_batch_innermost(x) else _times_transposed(x, weight)
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
    product: Array = np.matmul(weight.T, gradient.T).T if _is_batch_innermost(x) else np.matmul(gradient, weight)
    return product


def _linear_by_weight(gradient: Array, _: None, x: Array, *__: Array | None, out: Array | None = None) -> Array:
    gradient, x = _rows(gradient), _rows(x)
    block = _row_block(len(x), x.shape[1], gradient.shape[1])
    product: Array = np.matmul(gradient[:block].T, x[:block], out=out)
    for start in range(block, len(x), block):
        product += np.matmul(gradient[start : start + block].T, x[start : start + block])
    return product


def _linear_by_bias(gradient: Array, *_: Array | None, out: Array | None = None) -> Array:
    total: Array = np.add.reduce(_rows(gradient), axis=0, out=out)
    return total


matmul = Primitive("matmul", np.matmul, (_matmul_by_left, _matmul_by_right), reads=((0, 1), (0, 1)))
linear = Primitive(
    "linear",
    _linear,
    (_linear_by_input, _linear_by_weight, _linear_by_bias),
    reads=((0, 1), (0,), ()),
    writes=(1, 2),
)
