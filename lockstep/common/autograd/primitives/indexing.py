"""Choosing elements by slices, integers and masks, replacing them, and looking up the rows of a table."""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics.leaves import add_rows

#: Whatever NumPy takes between brackets.
Index = Any
Shape = tuple[int, ...]


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
    flat = indices.reshape(-1)
    add_rows(gradient.reshape(flat.size, shape[1]), flat, result)
    return result


take = Primitive("index", _take, (_take_derivative,), keeps=True, reads=((),), is_opaque=True)
put = Primitive("index_put", _put, (_put_by_target, _put_by_values), keeps=True, reads=((), ()), is_opaque=True)
embedding = Primitive(
    "embedding", _embedding, (None, _embedding_weight), keeps=True, reads=((), (0,)), writes=(1,), is_opaque=True
)
