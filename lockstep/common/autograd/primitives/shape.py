"""The same elements in another shape, order or frame. Results are views where NumPy can give one."""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive

Shape = tuple[int, ...]
#: `(before, after)` for each axis.
Widths = tuple[tuple[int, int], ...]


def _inner(shape: Shape, widths: Widths) -> tuple[slice, ...]:
    return tuple(slice(before, before + size) for size, (before, _) in zip(shape, widths, strict=True))


def _pad(x: Array, widths: Widths, value: float) -> tuple[Array, Shape]:
    shape = tuple(size + before + after for size, (before, after) in zip(x.shape, widths, strict=True))
    padded = np.empty_like(x, shape=shape)  # keeps the order of the axes in memory, which np.pad does not
    np.copyto(padded, value)
    inside: Any = (..., *_inner(x.shape, widths))
    np.copyto(padded[inside], x)
    return padded, x.shape


def _reshape(x: Array, shape: Shape) -> tuple[Array, Shape]:
    return x.reshape(shape), x.shape


def _squeeze(x: Array, axis: int | tuple[int, ...] | None) -> tuple[Array, Shape]:
    return np.squeeze(x, axis), x.shape


def _concatenate(*arrays: Array, axis: int) -> tuple[Array, list[int]]:
    """Return the arrays joined along `axis`, and where each begins, with the end as the last."""
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + array.shape[axis])
    return np.concatenate(arrays, axis), starts


def _concatenate_derivative(index: int, gradient: Array, starts: list[int], *_: None, axis: int) -> Array:
    part = slice(starts[index], starts[index + 1])
    return gradient[(slice(None),) * (axis % gradient.ndim) + (part,)]


def _stack_derivative(index: int, gradient: Array, _: Array, *__: None, axis: int) -> Array:
    return gradient[(slice(None),) * (axis % gradient.ndim) + (index,)]


reshape = Primitive("reshape", _reshape, (lambda g, before, x, shape: g.reshape(before),), keeps=True, reads=((),))
squeeze = Primitive("squeeze", _squeeze, (lambda g, before, x, axis: g.reshape(before),), keeps=True, reads=((),))
unsqueeze = Primitive(
    "unsqueeze", lambda x, axis: np.expand_dims(x, axis), (lambda g, _, x, axis: np.squeeze(g, axis),), reads=((),)
)
permute = Primitive(
    "permute",
    lambda x, axes: x.transpose(axes),
    (lambda g, _, x, axes: g.transpose(np.argsort([axis % g.ndim for axis in axes])),),
    reads=((),),
)
transpose = Primitive(
    "transpose",
    lambda x, first, second: x.swapaxes(first, second),
    (lambda g, _, x, first, second: g.swapaxes(first, second),),
    reads=((),),
)
# The engine sums the gradient down to the argument's shape.
broadcast_to = Primitive(
    "broadcast_to", lambda x, shape: np.broadcast_to(x, shape, subok=True), (lambda g, _, x, shape: g,), reads=((),)
)
pad = Primitive("pad", _pad, (lambda g, before, x, widths, value: g[_inner(before, widths)],), keeps=True, reads=((),))
concatenate = Primitive("concatenate", _concatenate, _concatenate_derivative, keeps=True, reads=(), is_opaque=True)
stack = Primitive("stack", lambda *arrays, axis: np.stack(arrays, axis), _stack_derivative, reads=(), is_opaque=True)
