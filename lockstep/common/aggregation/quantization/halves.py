"""The formats of two bytes: float16 as IEEE 754 has it, and bfloat16, float32's range with 8 bits of precision."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization.format import CHUNK, Bytes, chunks
from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.tree import Vector

#: All bits of a value but its sign.
_MAGNITUDE = np.uint16(0x7FFF)

#: The largest finite float16.
LARGEST = np.float32(65_504)

#: The exponent bits of a float32; those of float16's smallest normal number, 2**-14, and of 2**15.
_EXPONENT, _NORMAL, _LARGE = np.uint32(0x7F800000), np.uint32(113 << 23), np.uint32(142 << 23)

#: What makes 1.5 * 2**(e + 13) of the bits of 2**e: float32 has 13 bits of mantissa more than float16.
_AWAY = np.uint32((13 << 23) | 0x00400000)

#: Of bfloat16: half of the last bit that is kept, less one; and the bits that are.
_HALF, _KEPT = np.uint32(0x7FFF), np.uint32(0xFFFF0000)

#: What every NaN becomes: the payload of another might round to an infinity.
_NAN = np.uint32(0x7FC00000)


@dataclass
class _Halves:
    """What the two share: an exponent whose bits are all set is that of an infinity or NaN."""

    #: These bits.
    _not_finite: ClassVar[np.uint16]

    _scratch: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))

    def size(self, count: int) -> int:
        return 2 * count

    def is_finite(self, data: Bytes, count: int) -> bool:
        # As integers, magnitudes are in the order of their values.
        halves = data.view(np.uint16)
        return not any((halves[part] & _MAGNITUDE).max() >= self._not_finite for part in chunks(halves.size))


class Float16(_Halves):
    """Round to nearest, ties to even; finite values beyond the largest become that, infinities and NaNs stay.

    Sums are not scaled: what travels is a sum over samples, larger than the mean by their number, which is the scale
    that mixed precision multiplies a loss by. What is too large is held at the largest: an infinity for one gradient
    that is too steep would take all weights with it, while a bounded one only climbs more slowly, as clipping lets it.
    """

    _not_finite = np.uint16(0x7C00)

    def round(self, values: Vector, rounding: StochasticRounding) -> None:
        # To add a number so large that float32 has float16's last bit left, and take it off again, is what rounds: five
        # passes in cache. NumPy's conversion to float16 and back takes five times as long, in software.
        bits = self._scratch[: values.size]
        np.bitwise_and(values.view(np.uint32), _EXPONENT, out=bits)
        if bits.max(initial=0) >= _LARGE:
            large = np.isfinite(values) & (np.abs(values) > LARGEST)
            values[large] = np.copysign(LARGEST, values[large])
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


# By arithmetic on the bits: NumPy has no such type.
class BFloat16(_Halves):
    """Round to nearest, ties to even; infinities and NaNs stay what they are.

    What is beyond the largest bfloat16 by half of its last bit becomes infinite, as IEEE 754 has it: a float32 that
    large has four parts in a thousand to go until it does as well.
    """

    _not_finite = np.uint16(0x7F80)

    def round(self, values: Vector, rounding: StochasticRounding) -> None:
        bits, scratch = values.view(np.uint32), self._scratch[: values.size]
        nan = np.isnan(values)
        if nan.any():
            bits[nan] = _NAN
        np.right_shift(bits, 16, out=scratch)
        np.bitwise_and(scratch, 1, out=scratch)
        np.add(scratch, _HALF, out=scratch)
        np.add(bits, scratch, out=bits)
        np.bitwise_and(bits, _KEPT, out=bits)

    def encode(self, values: Vector, into: Bytes) -> None:
        bits, halves = values.view(np.uint32), into.view(np.uint16)
        for part in chunks(values.size):
            scratch = self._scratch[: part.stop - part.start]
            np.right_shift(bits[part], 16, out=scratch)
            halves[part] = scratch

    def decode(self, data: Bytes, into: Vector) -> None:
        bits = into.view(np.uint32)
        np.copyto(bits, data.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
