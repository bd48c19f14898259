"""A cheap checksum of the weights after each step: the sum of their words, over a window that moves on. Pure.

A SHA-256 of every step's weights would cost more than their update. The sum modulo 2**64 reads 50 GB/s, and no single
stray bit leaves it as it was; over half a MiB it takes 8 us. If the weights are larger, each step sums up the next
window, so that a stray bit shows after as many steps as there are windows even if no loss shows it.
"""

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Vector

#: Values of a window: even, so that any cut between windows is one between words.
WINDOW = 131_072

#: Checksums are below it, and those of parts are added up modulo it.
MODULUS = 2**64


def window_of(step: int, size: int) -> slice:
    """Return the part of `size` weights that is summed up after the update of `step`."""
    start = step % -(-size // WINDOW) * WINDOW
    return slice(start, min(start + WINDOW, size))


def checksum_after(step: int, weights: Vector) -> int:
    """Return the checksum of the weights after the update of `step`."""
    return checksum_of(weights[window_of(step, weights.size)])


def checksum_of(part: Vector) -> int:
    """Return the checksum of a window, a contiguous vector: below 2**64. Those of its even parts add up to it."""
    even = part.size & ~1
    words: NDArray[np.uint64] = part[:even].view(np.uint64)
    odd = int(part[even:].view(np.uint32)[0]) if part.size > even else 0
    return (int(np.add.reduce(words)) + odd) % MODULUS
