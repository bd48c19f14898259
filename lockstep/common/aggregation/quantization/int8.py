"""int8 with a scale for each block of 32 values: in the manner of MXINT8 of the OCP Microscaling Formats 1.0 (2023).

The scale is a power of two, and travels as the exponent byte of a float32. So every product with it is exact, and what
is rounded can be encoded by whoever has the values, without knowing how they were rounded.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization.format import CHUNK, Bytes, chunks
from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.tree import Vector

#: Values that share a scale. A byte of scale for 32 makes 0.258 of float32's bytes; a longer block saves at most 0.008
#: of them, and rounds more of its values by the size of a single large one.
BLOCK = 32

#: The largest number of scales: 127, of which 1.984375 is the part after the exponent.
MOST = 127

#: Of a float32.
_MANTISSA_BITS = np.uint32(23)

#: What carries into the exponent of a float32 whose mantissa is beyond that of `MOST`.
_CARRY = np.uint32(0x1FFFF)

#: 127 is below 2 ** (6 + 1): the exponent of the scale is by so much smaller than that of the block's largest value.
_SHIFT = 6

#: The exponent bytes of scales: the smallest of a normal number, and the one with which `MOST` is still finite.
_SMALLEST, _LARGEST = 1, 248

#: The code of a block that holds an infinity or NaN: all of it is NaN then, as in the format's standard.
_NOT_FINITE = 255

_MAGNITUDE, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)

#: Twice the exponent byte of 1: a scale's and its inverse's add up to it.
_BOTH = 254

#: What makes a fraction of a random number of 16 bits.
_UNIT = np.float32(2.0**-16)

#: The exponent bytes of the scales of blocks.
Exponents = NDArray[np.uint32]


@dataclass
class Int8:
    """Round each value up or down at random, so that its mean is the value itself (stochastic rounding).

    To round to nearest would lose for good what is below half a step of a block with one large value in it, and its sum
    over the steps with it: the mean has to be right, since nothing remembers what was lost (rule R7).
    """

    _bits: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))
    _starts: NDArray[np.intp] = field(default_factory=lambda: np.arange(0, CHUNK, BLOCK))
    _scratch: Vector = field(default_factory=lambda: np.empty(CHUNK, np.float32))
    _up: Vector = field(default_factory=lambda: np.empty(CHUNK, np.float32))

    def round(self, values: Vector, rounding: StochasticRounding) -> None:
        exponents = self._exponents(values)
        scratch, up = self._scratch[: values.size], self._up[: values.size]
        _multiply(values, _inverse(exponents), scratch)
        np.multiply(rounding.draw(values.size), _UNIT, out=up)
        np.add(scratch, up, out=scratch)
        np.floor(scratch, out=scratch)
        if exponents.max() >= _LARGEST:
            np.clip(scratch, -MOST, MOST, out=scratch)
        _multiply(scratch, _scale(exponents), values)
        _fill_not_finite(values, exponents)

    def size(self, count: int) -> int:
        return _blocks(count) + count

    def encode(self, values: Vector, into: Bytes) -> None:
        codes, steps = into[: _blocks(values.size)], into[_blocks(values.size) :].view(np.int8)
        for part in chunks(values.size):
            exponents = self._exponents(values[part])
            codes[_of_blocks(part)] = exponents
            scratch = self._scratch[: part.stop - part.start]
            _multiply(values[part], _inverse(exponents), scratch)
            _fill_not_finite(scratch, exponents, 0.0)
            np.copyto(steps[part], scratch, casting="unsafe")

    def decode(self, data: Bytes, into: Vector) -> None:
        codes, steps = data[: _blocks(into.size)], data[_blocks(into.size) :].view(np.int8)
        for part in chunks(into.size):
            np.copyto(into[part], steps[part])
            exponents = codes[_of_blocks(part)].astype(np.uint32)
            _multiply(into[part], _scale(exponents), into[part])
            _fill_not_finite(into[part], exponents)

    def is_finite(self, data: Bytes, count: int) -> bool:
        codes, steps = data[: _blocks(count)], data[_blocks(count) :].view(np.int8)
        if not count or codes.max() < _LARGEST:
            return True
        # The largest scale takes 127 to a number, and -128, which `encode` never writes, to an infinity.
        largest = np.repeat(codes >= _LARGEST, BLOCK)[:count]
        return bool(codes.max() < _NOT_FINITE and not (steps[largest] < -MOST).any())

    def _exponents(self, values: Vector) -> Exponents:
        """Return the exponent bytes of the blocks' scales: the smallest with which no value is more than `MOST`."""
        whole = _blocks(values.size) * BLOCK
        bits = self._bits[:whole]
        np.bitwise_and(values.view(np.uint32), _MAGNITUDE, out=bits[: values.size])
        bits[values.size :] = 0
        # Half the time of `max(axis=1)`, whose inner loop is too short.
        top: Exponents = np.maximum.reduceat(bits, self._starts[: whole // BLOCK])
        exponents: Exponents = (top + _CARRY) >> _MANTISSA_BITS
        np.clip(exponents, _SMALLEST + _SHIFT, _LARGEST + _SHIFT, out=exponents)
        exponents -= _SHIFT
        if top.max() >= _INFINITE:
            exponents[top >= _INFINITE] = _NOT_FINITE
        return exponents


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _of_blocks(part: slice) -> slice:
    """Return the positions of the blocks of a chunk."""
    return slice(part.start // BLOCK, _blocks(part.stop))


def _scale(exponents: Exponents) -> Vector:
    """Return the scales; of a block that is not finite, anything that is."""
    return (np.minimum(exponents, _LARGEST) << _MANTISSA_BITS).view(np.float32)


def _inverse(exponents: Exponents) -> Vector:
    """Return one over each scale."""
    return ((_BOTH - np.minimum(exponents, _LARGEST)) << _MANTISSA_BITS).view(np.float32)


def _multiply(values: Vector, factors: Vector, out: Vector) -> None:
    """Multiply each block with its factor."""
    whole = values.size // BLOCK * BLOCK
    in_blocks = (-1, BLOCK)
    np.multiply(values[:whole].reshape(in_blocks), factors[: whole // BLOCK, None], out=out[:whole].reshape(in_blocks))
    if whole < values.size:
        np.multiply(values[whole:], factors[-1], out=out[whole:])


def _fill_not_finite(values: Vector, exponents: Exponents, by: float = np.nan) -> None:
    """Overwrite the blocks in which something is not finite."""
    if exponents.max() == _NOT_FINITE:
        for block in np.flatnonzero(exponents == _NOT_FINITE):
            values[block * BLOCK : (block + 1) * BLOCK] = by
