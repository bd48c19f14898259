"""Sums, means, extremes and variances over axes; `axis` is an integer, a tuple of them, or None for all."""

import math

import numpy as np

from lockstep.common.autograd.primitives.elementwise import masked
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.numerics import leaves

Axis = int | tuple[int, ...] | None
Shape = tuple[int, ...]


def _normalise(axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(each % ndim for each in (axis if isinstance(axis, tuple) else (axis,))) if ndim else ()


def _restore(reduced: Array, shape: Shape, axis: Axis, keepdims: bool) -> Array:
    """Return `reduced` with its reduced axes back as size 1, so that it broadcasts against `shape`."""
    if keepdims or reduced.ndim == len(shape):
        return reduced
    gone = _normalise(axis, len(shape))
    return reduced.reshape([1 if each in gone else size for each, size in enumerate(shape)])


def _count(shape: Shape, axis: Axis) -> int:
    return math.prod(shape[each] for each in _normalise(axis, len(shape)))


def _sum(x: Array, axis: Axis, keepdims: bool) -> tuple[Array, Shape]:
    return leaves.total(x, axis, keepdims), x.shape


def _sum_derivative(gradient: Array, shape: Shape, _: None, axis: Axis, keepdims: bool) -> Array:
    # A view of stride 0: whatever comes next reads a few numbers instead of a whole array.
    return np.broadcast_to(_restore(gradient, shape, axis, keepdims), shape, subok=True)


def _mean(x: Array, axis: Axis, keepdims: bool) -> tuple[Array, Shape]:
    means = leaves.mean(x, axis, keepdims)
    return (means if _count(x.shape, axis) else np.full_like(means, np.nan)), x.shape


def _mean_derivative(gradient: Array, shape: Shape, _: None, axis: Axis, keepdims: bool) -> Array:
    return _sum_derivative(gradient / max(_count(shape, axis), 1), shape, _, axis, keepdims)


def _extreme_derivative(gradient: Array, extreme: Array, x: Array, axis: Axis, keepdims: bool) -> Array:
    """Share the gradient evenly among all elements that attain the extreme (PyTorch's rule for `amax`)."""
    attained = x == _restore(extreme, x.shape, axis, keepdims)
    count = leaves.total(attained, _normalise(axis, x.ndim), keepdims=True)
    return masked(_restore(gradient, x.shape, axis, keepdims) / count.astype(gradient.dtype), attained)


def _extreme(name: str, ufunc: np.ufunc) -> Primitive:
    def forward(x: Array, axis: Axis, keepdims: bool) -> Array:
        extreme: Array = ufunc.reduce(x, axis=axis, keepdims=keepdims)
        return extreme

    return Primitive(name, forward, (_extreme_derivative,), reads=((0, RESULT),), is_opaque=True)


def _variance(x: Array, axis: Axis, correction: float, keepdims: bool) -> Array:
    squares = leaves.total(np.square(x - leaves.mean(x, axis, keepdims=True)), axis, keepdims)
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN of too few elements, as in PyTorch
        return np.asanyarray(squares / np.asanyarray(max(0, _count(x.shape, axis) - correction), squares.dtype))


def _variance_derivative(gradient: Array, _: None, x: Array, axis: Axis, correction: float, keepdims: bool) -> Array:
    centred = x - leaves.mean(x, axis, keepdims=True)
    count = max(0, _count(x.shape, axis) - correction)
    scale = _restore(gradient, x.shape, axis, keepdims) * (2 / count if count else math.nan)
    product: Array = centred * scale
    return product


# Called `reduce_...` if the usual name would hide a Python builtin from the rest of a module.
reduce_sum = Primitive("sum", _sum, (_sum_derivative,), keeps=True, reads=((),))
reduce_mean = Primitive("mean", _mean, (_mean_derivative,), keeps=True, reads=((),), is_opaque=True)
reduce_max = _extreme("max", np.maximum)
reduce_min = _extreme("min", np.minimum)
variance = Primitive("var", _variance, (_variance_derivative,), reads=((0,),), is_opaque=True)
