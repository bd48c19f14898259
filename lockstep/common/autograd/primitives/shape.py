"""The same elements in another shape, order or frame, or some of them: chosen, replaced, looked up in a table.

Results are views if NumPy can give one.
"""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics.leaves import add_rows

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


#: Whatever NumPy takes between brackets.
Index = Any


def may_repeat(index: Index) -> bool:
    """Tell whether `index` can choose one element twice: only integers in an array or a list can."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | np.ndarray) and np.asarray(part).dtype != np.bool_ for part in parts)


def _take(x: Array, index: Index) -> tuple[Array, Shape]:
    return x[index], x.shape


def _take_derivative(gradient: Array, shape: Shape, _: None, index: Index) -> Array:
    """Put the gradient back where its elements came from; elements taken twice add up."""
    whole = np.zeros(shape, gradient.dtype)
    if may_repeat(index):
        np.add.at(whole, index, gradient)
    else:
        whole[index] = gradient
    return whole


def _put(x: Array, values: Array, index: Index) -> tuple[Array, Shape]:
    """Return a copy of `x` with `values` at `index`; if an index repeats, the last value stays (as in NumPy)."""
    replaced = x.copy("K")
    replaced[index] = values
    return replaced, np.shape(values)


def _put_by_target(gradient: Array, shape: Shape, x: None, values: None, index: Index) -> Array:
    rest = gradient.copy("K")
    rest[index] = 0
    return rest


def _put_by_values(gradient: Array, shape: Shape, x: None, values: None, index: Index) -> Array:
    """Return the gradient at `index`, of the last value only if an element was replaced more than once."""
    if not may_repeat(index):
        return gradient[index]
    serials = np.empty(gradient.shape, np.int64)
    order = np.arange(gradient[index].size).reshape(gradient[index].shape)
    serials[index] = order
    return np.where(serials[index] == order, gradient[index], 0)


def _embedding(indices: Array, weight: Array) -> tuple[Array, tuple[int, ...]]:
    """Return the rows of `weight` (entries, features) at `indices` (any shape): (*indices.shape, features).

    Raises TypeError for indices that are not integers, IndexError for one outside [0, entries).
    """
    if not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"embedding got indices of type {indices.dtype}, expected integers")
    if weight.ndim != 2:
        raise ValueError(f"embedding got a weight of shape {weight.shape!r}, expected (entries, features)")
    wrong = (indices < 0) | (indices >= len(weight))
    if wrong.any():
        raise IndexError(
            f"embedding got index {int(indices[wrong][0])!r}, expected one from 0 to {len(weight) - 1} "
            f"({len(weight)} entries)"
        )
    return weight[indices], weight.shape


def _embedding_weight(
    gradient: Array, shape: tuple[int, ...], indices: Array, _: None, out: Array | None = None
) -> Array:
    """Add up the gradients of each row, in the order in which it was used."""
    result = np.empty(shape, gradient.dtype) if out is None else out
    result.fill(0)
    flat = indices.reshape(-1).astype(np.int64, copy=False)
    return add_rows(gradient.reshape(flat.size, shape[1]), flat, out=result)


take = Primitive("index", _take, (_take_derivative,), keeps=True, reads=((),), is_opaque=True)
put = Primitive("index_put", _put, (_put_by_target, _put_by_values), keeps=True, reads=((), ()), is_opaque=True)
embedding = Primitive(
    "embedding", _embedding, (None, _embedding_weight), keeps=True, reads=((), (0,)), writes=(1,), is_opaque=True
)
