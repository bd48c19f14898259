"""float16: 11 bits of precision between 6e-8 and 65,504, as IEEE 754 has it and NumPy converts."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization.format import CHUNK, Bytes, Halves
from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.tree import Vector

#: The largest finite value.
LARGEST = np.float32(65_504)

#: The exponent bits of a float32; those of float16's smallest normal number, 2**-14, and of 2**15.
_EXPONENT, _NORMAL, _LARGE = np.uint32(0x7F800000), np.uint32(113 << 23), np.uint32(142 << 23)

#: What makes 1.5 * 2**(e + 13) of the bits of 2**e: float32 has 13 bits of mantissa more than float16.
_AWAY = np.uint32((13 << 23) | 0x00400000)


@dataclass
class Float16(Halves):
    """Round to nearest, ties to even; finite values beyond the largest become that, infinities and NaNs stay.

    Sums are not scaled: what travels is a sum over samples, larger than the mean by their number, which is the scale
    that mixed precision multiplies a loss by. What is too large is held at the largest: an infinity for one gradient
    that is too steep would take all weights with it, while a bounded one only climbs more slowly, as clipping lets it.
    """

    _not_finite = np.uint16(0x7C00)

    _bits: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))

    def round(self, values: Vector, rounding: StochasticRounding) -> None:
        # To add a number so large that float32 has float16's last bit left, and take it off again, is what rounds: five
        # passes in cache. NumPy's conversion to float16 and back takes five times as long, in software.
        bits = self._bits[: values.size]
        np.bitwise_and(values.view(np.uint32), _EXPONENT, out=bits)
        if bits.max(initial=0) >= _LARGE:
            _saturate(values)
            np.bitwise_and(values.view(np.uint32), _EXPONENT, out=bits)
        np.maximum(bits, _NORMAL, out=bits)
        np.add(bits, _AWAY, out=bits)
        away = bits.view(np.float32)
        np.add(values, away, out=values)
        np.subtract(values, away, out=values)

    def encode(self, values: Vector, into: Bytes) -> None:
        np.copyto(into.view(np.float16), values, casting="same_kind")

    def decode(self, data: Bytes, into: Vector) -> None:
        np.copyto(into, data.view(np.float16))


def _saturate(values: Vector) -> None:
    """Hold what is finite at the largest value."""
    large = np.isfinite(values) & (np.abs(values) > LARGEST)
    values[large] = np.copysign(LARGEST, values[large])
