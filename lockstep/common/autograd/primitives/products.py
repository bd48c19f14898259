"""Products of two matrices in the blocks that the BLAS multiplies fastest.

OpenBLAS copies both operands into an order of its own before it multiplies, and for a thin product (a batch of 32, the
6 maps of a convolution) that costs as much as multiplying. Where it has kernels that read the operands in place, they
take small products only: the blocks here are the largest that they take. Which blocks follows from the shapes and from
the kernel, which is a part of the numerics fingerprint, so the bits do too.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lockstep.common.autograd.primitives.memory import copied, empty
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.runtime.blas import blas_kernel

#: The kernels of OpenBLAS that multiply small matrices in place.
_IN_PLACE = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})
#: Multiply-adds up to which they do.
_SMALL = 1_000_000
#: Elements of the result up to which they do if the right operand is read along its columns.
_SMALL_ACROSS = 1_152
#: Products no side of which is this short gain nothing: 64 columns took 8 % longer in blocks.
_THIN = 32
#: The same if the right operand is read along its columns, when copying it costs most.
_THIN_ACROSS = 128
#: Blocks narrower than this would be slower than the whole.
_NARROWEST = 16

#: Sums of at most so many terms are too short to be worth reading the right operand along its columns. Copying it first
#: saves many small blocks: 120 x 16 x 400 takes 20 instead of 112 us, 128 x 16 x 3136 0.2 instead of 0.9 ms.
_FEW_TERMS = 256

#: Without such kernels, results of at most so many rows, at least so many columns, and sums of at least so many terms
#: are faster computed transposed: 10 x 128 x 784 takes 17 instead of 27 us, and 5 to turn it round.
_FLAT = (12, 128, 96)

#: Ranges of rows, columns, and of the axis that is summed over.
Block = tuple[slice, slice, tuple[slice, ...]]


def multiply(left: Array, right: Array, out: Array | None = None) -> Array:
    """Return `left` (m, k) times `right` (k, n), written to `out` (m, n) where given.

    Vectors, stacks of matrices, and what is not float32 on both sides go to NumPy as they are.
    """
    if left.ndim != 2 or right.ndim != 2 or left.dtype != np.float32 or right.dtype != np.float32:
        whole: Array = np.matmul(left, right, out=out)
        return whole
    result = empty((left.shape[0], right.shape[1]), left) if out is None else out
    is_in_place = blas_kernel() in _IN_PLACE
    if is_in_place and left.shape[1] <= _FEW_TERMS and right.strides[0] < right.strides[1]:
        right = copied(right)
    blocks = _blocks_for(left, right) if is_in_place else ()
    if blocks:
        multiply_in_blocks(left, right, blocks, result)
    elif not is_in_place and is_flat(left, right):
        np.copyto(result, np.matmul(right.T, left.T).T)
    else:
        np.matmul(left, right, out=result)
    return result


def is_flat(left: Array, right: Array) -> bool:
    """Tell whether a product whose right operand is read along its rows is faster computed transposed."""
    rows, columns, terms = _FLAT
    return (
        1 < left.shape[0] <= rows
        and right.shape[1] >= columns
        and right.shape[0] >= terms
        and right.strides[0] > right.strides[1]
    )


def multiply_in_blocks(left: Array, right: Array, blocks: Sequence[Block], out: Array) -> None:
    """Fill `out` (m, n) with `left` (m, k) times `right` (k, n), a block at a time, sums over k in order."""
    for rows, columns, sums in blocks:
        target = out[rows, columns]
        if len(sums) == 1:
            np.matmul(left[rows], right[:, columns], out=target)
        else:
            _multiply_in_parts(left[rows], right[:, columns], sums, target)


def _multiply_in_parts(left: Array, right: Array, parts: Sequence[slice], out: Array) -> None:
    """Fill `out` with the sum of the products of parts of the inner axis, all of one length but perhaps the last.

    All products are made by one call and added by another: with a call for each, calling took as long as computing.
    """
    length = parts[0].stop
    full = len(parts) - (parts[-1].stop - parts[-1].start < length)
    products = empty((len(parts), *out.shape), left)
    lefts = left[:, : full * length].reshape(len(left), full, length).swapaxes(0, 1)
    np.matmul(lefts, right[: full * length].reshape(full, length, right.shape[1]), out=products[:full])
    if full < len(parts):
        np.matmul(left[:, parts[-1]], right[parts[-1]], out=products[full])
    if out.size > 1:
        np.add.reduce(products, axis=0, out=out, initial=-0.0)  # which, unlike 0, added to anything leaves its bits
    else:  # numbers that lie next to each other would not be added in order
        np.copyto(out, products[0])
        for product in products[1:]:
            np.add(out, product, out=out)


def _blocks_for(left: Array, right: Array) -> tuple[Block, ...]:
    is_across = right.strides[0] < right.strides[1]
    return (blocks_across if is_across else blocks_along)(left.shape[0], left.shape[1], right.shape[1])


@lru_cache(maxsize=4096)
def blocks_along(rows: int, inner: int, columns: int) -> tuple[Block, ...]:
    """Cut a product (rows, inner) by (inner, columns) whose right operand is read along its rows; () for no cuts."""
    if rows * inner * columns <= _SMALL or min(rows, inner, columns) > _THIN:
        return ()
    whole = (slice(None),)
    height = _SMALL // (inner * columns)
    if height >= _NARROWEST:
        return tuple((part, slice(None), whole) for part in _parts(rows, height))
    width = _SMALL // (rows * inner)
    if width >= _NARROWEST:
        return tuple((slice(None), part, whole) for part in _parts(columns, width))
    return ()


@lru_cache(maxsize=4096)
def blocks_across(rows: int, inner: int, columns: int) -> tuple[Block, ...]:
    """Cut a product (rows, inner) by (inner, columns) whose right operand is read along its columns; () for no cuts."""
    is_small = rows * columns <= _SMALL_ACROSS and rows * inner * columns <= _SMALL
    if is_small or min(rows, columns) > _THIN_ACROSS:
        return ()
    # A smaller block of the result is better than several sums for each of its elements, but not a tiny one.
    area = min(_SMALL_ACROSS, max(_SMALL_ACROSS // 4, _SMALL // max(1, inner)))
    sums = (slice(None),) if area * inner <= _SMALL else tuple(_parts(inner, _SMALL // _SMALL_ACROSS))
    area = area if len(sums) == 1 else _SMALL_ACROSS
    height = area // columns if columns <= _THIN else min(rows, _THIN)
    width = columns if columns <= _THIN else area // height
    return tuple((r, c, sums) for r in _parts(rows, height) for c in _parts(columns, width))


def _parts(size: int, limit: int) -> list[slice]:
    """Cut [0, size) into the fewest parts of at most `limit`, near equal, by whole vectors of eight where they fit."""
    length = limit // 8 * 8 or limit
    parts = -(-size // length)
    even = -(-size // parts)
    step = min(length, -(-even // 8) * 8)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
