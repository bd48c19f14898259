"""What a number format has to do: round values, and encode rounded ones as bytes and back. Knows no job."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.tree import Vector

Bytes = NDArray[np.uint8]

#: Values that are rounded together, so that scratch memory stays in cache: a multiple of any block.
CHUNK = 32_768


class NumberFormat(Protocol):
    """One format. Values are float32 and begin in the flat vector at a multiple of 4096, so that slices agree."""

    def round(self, values: Vector, rounding: StochasticRounding) -> None:
        """Round at most `CHUNK` values in place; rounded values stay as they are."""
        ...

    def size(self, count: int) -> int:
        """Return the bytes that so many values take."""
        ...

    def encode(self, values: Vector, into: Bytes) -> None:
        """Write rounded values into `size` bytes, exactly."""
        ...

    def decode(self, data: Bytes, into: Vector) -> None:
        """Write the values in `size` bytes into a vector, exactly."""
        ...

    def is_finite(self, data: Bytes, count: int) -> bool:
        """Tell whether the values in `size(count)` bytes of any origin are all finite."""
        ...


def chunks(count: int) -> Iterator[slice]:
    """Yield the chunks of so many values."""
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
