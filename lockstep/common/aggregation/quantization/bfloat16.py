"""bfloat16: float32's range with 8 bits of precision, by arithmetic on the bits: NumPy has no such type."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization.format import CHUNK, Bytes, Halves, chunks
from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.tree import Vector

#: Half of the last bit that is kept, less one; and the bits that are.
_HALF, _KEPT = np.uint32(0x7FFF), np.uint32(0xFFFF0000)

#: What every NaN becomes: the payload of another might round to an infinity.
_NAN = np.uint32(0x7FC00000)


@dataclass
class BFloat16(Halves):
    """Round to nearest, ties to even; infinities and NaNs stay what they are.

    What is beyond the largest bfloat16 by half of its last bit becomes infinite, as IEEE 754 has it: a float32 that
    large has four parts in a thousand to go until it does as well.
    """

    _not_finite = np.uint16(0x7F80)

    _scratch: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))

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
