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


def _causal_softmax(x: Array) -> Array:
    """Return the softmax of each row over the columns up to its own: row i of (..., t, s) sees the first i + 1.

    Others come out as 0, so that the derivative is that of softmax.
    """
    if x.ndim < 2:
        raise ValueError(f"causal_softmax got shape {x.shape!r}, expected (..., t, s)")
    return _softmax(x + _later(x.shape[-2], x.shape[-1], x.dtype.str))


@lru_cache(maxsize=8)
def _later(rows: int, columns: int, dtype: str) -> Array:
    """Return -inf where a column is later than its row, 0 elsewhere, to be read only."""
    mask = np.zeros((rows, columns), dtype)
    mask[~np.tri(rows, columns, dtype=np.bool_)] = -np.inf
    mask.flags.writeable = False
    return mask


causal_softmax = Primitive(
    "causal_softmax", _causal_softmax, (lambda g, result, _: _softmax_x(g, result, None),), reads=((RESULT,),)
)


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
