"""Clipping by a global norm that does not depend on how the gradient is cut into shards."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.sums import halved_sums

#: Elements whose squares are added up together; a vector may be cut at multiples of it.
BLOCK = 4096

#: Blocks that are added up at once: as float64 they fit into a second-level cache.
AT_ONCE = 8

# PyTorch's clip_grad_norm_ adds this to the norm that it divides by.
_EPSILON = 1e-6


def block_squares(vector: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum of squares of each block of 4096 elements, the last one perhaps shorter.

    The blocks of a whole vector are those of its slices, one after the other, if it is cut at multiples of 4096.
    """
    whole = vector.size - vector.size % BLOCK
    rows = vector[:whole].reshape(-1, BLOCK)
    sums = [_sums_of_squares(rows[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE)]
    if whole < vector.size:
        sums.append(_sums_of_squares(vector[np.newaxis, whole:]))
    return np.concatenate(sums) if sums else np.empty(0, np.float64)


def add_blocks(blocks: Iterable[float]) -> float:
    """Return the sum of what `block_squares` returned for all slices, rounded once."""
    # Not `sum`: since Python 3.12 that compensates, so that its bits depend on the version.
    return math.fsum(blocks)


def scale_for(squared_norm: float, max_norm: float) -> float:
    """Return the factor, at most 1, that brings a gradient of this squared norm to `max_norm` > 0.

    PyTorch's formula, max_norm / (norm + 1e-6). A norm that is not a number gives a factor that is not one.
    """
    scale = max_norm / (math.sqrt(squared_norm) + _EPSILON)
    return 1.0 if scale > 1.0 else scale


def _sums_of_squares(blocks: NDArray[np.float32]) -> NDArray[np.float64]:
    # The product of two float32 is exact in float64, so that only the additions round.
    return halved_sums(np.square(blocks, dtype=np.float64))
