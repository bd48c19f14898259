"""What a type of the wire has to do: round values, and put rounded ones into bytes and back. Knows no job, no node."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.aggregation.quantization.stochastic_rounding import StochasticRounding
from common.aggregation.tree import Vector

Bytes = NDArray[np.uint8]

#: Values that are rounded together, so that what is needed on the way stays in cache: a multiple of any block.
CHUNK = 32_768


#: All bits of a value of two bytes but its sign.
_MAGNITUDE = np.uint16(0x7FFF)


class NumberFormat(Protocol):
    """One type. Values are float32, and begin in the flat vector at a multiple of 4096: what is cut there agrees."""

    def round(self, values: Vector, dither: StochasticRounding) -> None:
        """Round at most `CHUNK` values in place; what is rounded already stays as it is."""
        ...

    def size(self, count: int) -> int:
        """Return the bytes that so many values take."""
        ...

    def encode(self, values: Vector, into: Bytes) -> None:
        """Put rounded values into `size` bytes, exactly."""
        ...

    def decode(self, data: Bytes, into: Vector) -> None:
        """Put the values in `size` bytes into a vector, exactly."""
        ...

    def is_finite(self, data: Bytes, count: int) -> bool:
        """Tell whether the values in `size(count)` bytes, whoever wrote these, are all numbers."""
        ...


def is_below(data: Bytes, odd: np.uint16) -> bool:
    """Tell whether no value of two bytes has all the exponent bits of `odd`: as magnitudes they are in order."""
    halves = data.view(np.uint16)
    return not any((halves[part] & _MAGNITUDE).max() >= odd for part in chunks(halves.size))


def chunks(count: int) -> Iterator[slice]:
    """Yield the chunks of so many values."""
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
