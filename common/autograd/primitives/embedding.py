"""Rows of a table, chosen by integers."""

import numpy as np

from common.autograd.primitives.primitive import Array, Primitive


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
    if flat.size:
        # Sorted, the uses of a row are neighbours, which reduceat sums at the speed of additions; np.add.at does not.
        order = np.argsort(flat, kind="stable")
        uses = flat[order]
        starts = np.flatnonzero(np.concatenate(([True], uses[1:] != uses[:-1])))
        result[uses[starts]] = np.add.reduceat(gradient.reshape(flat.size, shape[1])[order], starts, axis=0)
    return result


embedding = Primitive("embedding", _embedding, (None, _embedding_weight), keeps=True, reads=((), (0,)), writes=(1,))
