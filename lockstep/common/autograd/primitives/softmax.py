"""Softmax and its logarithm along one axis, shifted by the maximum so that nothing overflows."""

from functools import lru_cache

import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.numerics import leaves


def shifted(x: Array, axis: int) -> Array:
    """Return `x` minus its maximum along `axis`, a new array. Infinite maxima give NaN, as in PyTorch, silently."""
    if not x.size:
        return x.copy()
    with np.errstate(invalid="ignore", over="ignore"):  # a difference below all floats is -inf, and its exponential 0
        result: Array = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True))
    return result


def _softmax(x: Array, *, axis: int = -1) -> Array:
    """Return exp(x) / Σ exp(x), the sum over `axis`."""
    result = shifted(x, axis)
    leaves.exp(result, out=result)
    result /= leaves.total(result, axis=axis, keepdims=True)
    return result


def _softmax_x(gradient: Array, result: Array, _: None, *, axis: int = -1) -> Array:
    product: Array = gradient * result
    product -= result * leaves.total(product, axis=axis, keepdims=True)
    return product


softmax = Primitive("softmax", _softmax, (_softmax_x,), reads=((RESULT,),))


@lru_cache(maxsize=8)
def later(rows: int, columns: int, dtype: str) -> Array:
    """Return -inf where a column is later than its row, 0 elsewhere, to be read only.

    The softmax of scores (..., rows, columns) to which it is added is 0 there.
    """
    mask = np.zeros((rows, columns), dtype)
    mask[~np.tri(rows, columns, dtype=np.bool_)] = -np.inf
    mask.flags.writeable = False
    return mask


def _log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Return x - log Σ exp(x), the sum over `axis`."""
    result = shifted(x, axis)
    if not x.size:
        return result
    result -= leaves.log(leaves.total(leaves.exp(result), axis=axis, keepdims=True))
    return result


def _log_softmax_x(gradient: Array, result: Array, _: None, *, axis: int = -1) -> Array:
    share: Array = leaves.exp(result)
    share *= leaves.total(gradient, axis=axis, keepdims=True)
    return np.subtract(gradient, share, out=share)


log_softmax = Primitive("log_softmax", _log_softmax, (_log_softmax_x,), reads=((RESULT,),))
