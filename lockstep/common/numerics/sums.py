"""Sums in float64 whose order is fixed, for figures and for the norm of a gradient: additions of arrays alone.

NumPy's own sums add in an order that depends on its version, on the processor and on how an array lies in memory. The
kernels' sums are of float32. `math.fsum`, which rounds once, is as good for a few numbers. A dot product finds values
that are not finite.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

T = TypeVar("T")


def over_tree(count: int, value: Callable[[int], T], add: Callable[[T, T], T], first: int = 0) -> T:
    """Return the sum of the values of `count` numbers from `first` on, over the tree (rule R5).

    The first half of it is the largest power of two below the count. Each value is asked for when it is added.
    """
    if count == 1:
        return value(first)
    half = 1 << (count - 1).bit_length() - 1
    left = over_tree(half, value, add, first)
    return add(left, over_tree(count - half, value, add, first + half))


def halved_sums(rows: NDArray[Any]) -> Doubles:
    """Return the sum of each row, (rows,), in float64: the second half of a row is added to the first, until one is
    left. Of an odd number, the one in the middle waits.
    """
    left = rows.shape[1]
    if not left:
        return np.zeros(len(rows))
    sums = rows.astype(np.float64)
    while left > 1:
        half = (left + 1) // 2
        sums[:, : left - half] += sums[:, half:left]
        left = half
    return sums[:, 0].copy()


def halved_sum(values: NDArray[Any]) -> float:
    """Return the sum of all values in their order, as `halved_sums` adds them."""
    return float(halved_sums(values.reshape(1, -1))[0])


def first_not_finite(vector: NDArray[Any]) -> int | None:
    """Return the position of the first infinity or NaN, None if all values are finite.

    One dot product covers all of them, at 40 GB/s; only if it overflows is each value examined.
    """
    if math.isfinite(np.vdot(vector, vector)):  # which, unlike `dot`, warns of nothing
        return None
    found = np.flatnonzero(~np.isfinite(vector))
    return int(found[0]) if found.size else None
