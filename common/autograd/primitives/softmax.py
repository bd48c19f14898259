"""Softmax and its logarithm along one axis, shifted by the maximum so that nothing overflows."""

import numpy as np

from common.autograd.primitives.primitive import RESULT, Array, Primitive


def shifted(x: Array, axis: int) -> Array:
    """Return `x` minus its maximum along `axis`, a new array. Infinite maxima give NaN, as in PyTorch, silently."""
    with np.errstate(invalid="ignore", over="ignore"):  # a difference below all floats is -inf, and its exponential 0
        result: Array = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True))
    return result


def _softmax(x: Array, *, axis: int = -1) -> Array:
    """Return exp(x) / Σ exp(x), the sum over `axis`."""
    result = shifted(x, axis)
    np.exp(result, out=result)
    result /= np.add.reduce(result, axis=axis, keepdims=True)
    return result


def _softmax_x(gradient: Array, result: Array, _: None, *, axis: int = -1) -> Array:
    product: Array = gradient * result
    product -= result * np.add.reduce(product, axis=axis, keepdims=True)
    return product


softmax = Primitive("softmax", _softmax, (_softmax_x,), reads=((RESULT,),))


def _log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Return x - log Σ exp(x), the sum over `axis`."""
    result = shifted(x, axis)
    result -= np.log(np.add.reduce(np.exp(result), axis=axis, keepdims=True))
    return result


def _log_softmax_x(gradient: Array, result: Array, _: None, *, axis: int = -1) -> Array:
    share: Array = np.exp(result)
    share *= np.add.reduce(gradient, axis=axis, keepdims=True)
    return np.subtract(gradient, share, out=share)


log_softmax = Primitive("log_softmax", _log_softmax, (_log_softmax_x,), reads=((RESULT,),))
