"""Rounds the sums of a job, and packs rounded ones as bytes: quantization is a part of the tree (rule R7).

The value of every node is rounded, in whichever process it is computed: of a leaf, and of each sum of two halves up to
the whole. So any tiling of the micro-batches and any way to send their sums, shared memory included, gives the same
bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.numerics.sums import first_not_finite

#: Values whose numbers come from one count of Philox, 256 bits: a vector is cut at multiples of it.
SPAN = 16

#: Values whose numbers come from one 64-bit word.
_IN_A_WORD = 4

#: The last bit of each number: odd 65,536ths stand in the middle of 32,768 parts, so that their mean is a half.
_ODD = np.uint64(0x0001_0001_0001_0001)


@dataclass
class StochasticRounding:
    """The random numbers that decide which way values are rounded (rule R2), however their vector is cut.

    They are those of the values from `start` on, a multiple of `SPAN`, in one node of one step: drawn from Philox,
    keyed by seed, step and node, and counted by the value's position in the flat vector. A hash of the position in
    NumPy's own arithmetic would cost about the same, and need a proof.
    """

    seed: int
    step: int
    node: Node
    start: int
    _rng: np.random.Generator | None = field(default=None, init=False)

    def draw(self, count: int) -> NDArray[np.uint16]:
        """Return the numbers of the next values, odd ones: a multiple of `SPAN` of them, except for the last call."""
        if self._rng is None:  # not every format needs one
            self._rng = generator(
                self.seed,
                Purpose.ROUND,
                at=self.step,
                micro_batch=self.node.lo,
                layer=self.node.hi,
                first=self.start // SPAN,
            )
        words: NDArray[np.uint64] = self._rng.bit_generator.random_raw(-(-count // _IN_A_WORD))
        np.bitwise_or(words, _ODD, out=words)
        return words.view(np.uint16)[:count]


Bytes = NDArray[np.uint8]

#: Values that are rounded together, so that scratch memory stays in cache: a multiple of any block.
CHUNK = 32_768


class NumberFormat(Protocol):
    """Rounds values, and encodes rounded ones as bytes and back.

    Values are float32 and begin in the flat vector at a multiple of 4096, so that slices agree.
    """

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


#: All bits of a value but its sign.
_HALF_MAGNITUDE = np.uint16(0x7FFF)

#: The largest finite float16.
LARGEST = np.float32(65_504)

#: The exponent bits of a float32; those of float16's smallest normal number, 2**-14, and of 2**15.
_EXPONENT, _NORMAL, _LARGE = np.uint32(0x7F800000), np.uint32(113 << 23), np.uint32(142 << 23)

#: Makes 1.5 * 2**(e + 13) of the bits of 2**e: float32 has 13 bits of mantissa more than float16.
_AWAY = np.uint32((13 << 23) | 0x00400000)

#: Of bfloat16: half of the last bit that is kept, less one; and the bits that are.
_HALF, _KEPT = np.uint32(0x7FFF), np.uint32(0xFFFF0000)

#: Replaces every NaN: the payload of another might round to an infinity.
_NAN = np.uint32(0x7FC00000)


@dataclass
class _Halves:
    """A format of two bytes: an exponent whose bits are all set is that of an infinity or NaN."""

    #: These bits.
    _not_finite: ClassVar[np.uint16]

    _scratch: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))

    def size(self, count: int) -> int:
        return 2 * count

    def is_finite(self, data: Bytes, count: int) -> bool:
        # As integers, magnitudes are in the order of their values.
        halves = data.view(np.uint16)
        return not any((halves[part] & _HALF_MAGNITUDE).max() >= self._not_finite for part in chunks(halves.size))


class Float16(_Halves):
    """float16 as IEEE 754 has it: rounds to nearest, ties to even.

    Finite values beyond the largest become that, infinities and NaNs stay.

    Sums are not scaled: what travels is a sum over samples, larger than the mean by their number, which is the scale
    that mixed precision multiplies a loss by. A larger sum becomes the largest value: an infinity for one gradient
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
    """bfloat16, float32's range with 8 bits of precision: rounds to nearest, ties to even.

    Infinities and NaNs stay what they are.

    A value beyond the largest bfloat16 by half of its last bit becomes infinite, as IEEE 754 has it: a float32 that
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


#: Values that share a scale. A byte of scale for 32 makes 0.258 of float32's bytes; a longer block saves at most 0.008
#: of them, and rounds more of its values by the size of a single large one.
INT8_BLOCK = 32

#: The largest number of scales: 127, of which 1.984375 is the part after the exponent.
MOST = 127

#: Of a float32.
_MANTISSA_BITS = np.uint32(23)

#: Carries into the exponent of a float32 whose mantissa is beyond that of `MOST`.
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

#: Makes a fraction of a random number of 16 bits.
_UNIT = np.float32(2.0**-16)

#: The exponent bytes of the scales of blocks.
Exponents = NDArray[np.uint32]


@dataclass
class Int8:
    """int8 with a scale per block of 32 values: like MXINT8 of the OCP Microscaling Formats 1.0 (2023).

    The scale is a power of two, and travels as the exponent byte of a float32. So every product with it is exact, and
    rounded values can be encoded without knowing how they were rounded.

    Each value is rounded up or down at random, so that its mean is the value itself (stochastic rounding).

    Rounding to nearest would lose all values below half a step of a block with one large value in it, and their sums
    over the steps: the mean has to be right, because nothing remembers what it lost (rule R7).
    """

    _bits: NDArray[np.uint32] = field(default_factory=lambda: np.empty(CHUNK, np.uint32))
    _starts: NDArray[np.intp] = field(default_factory=lambda: np.arange(0, CHUNK, INT8_BLOCK))
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
        largest = np.repeat(codes >= _LARGEST, INT8_BLOCK)[:count]
        return bool(codes.max() < _NOT_FINITE and not (steps[largest] < -MOST).any())

    def _exponents(self, values: Vector) -> Exponents:
        """Return the exponent bytes of the blocks' scales: the smallest with which no value is more than `MOST`."""
        whole = _blocks(values.size) * INT8_BLOCK
        bits = self._bits[:whole]
        np.bitwise_and(values.view(np.uint32), _MAGNITUDE, out=bits[: values.size])
        bits[values.size :] = 0
        # Half the time of `max(axis=1)`, whose inner loop is too short.
        top: Exponents = np.maximum.reduceat(bits, self._starts[: whole // INT8_BLOCK])
        exponents: Exponents = (top + _CARRY) >> _MANTISSA_BITS
        np.clip(exponents, _SMALLEST + _SHIFT, _LARGEST + _SHIFT, out=exponents)
        exponents -= _SHIFT
        if top.max() >= _INFINITE:
            exponents[top >= _INFINITE] = _NOT_FINITE
        return exponents


def _blocks(count: int) -> int:
    return -(-count // INT8_BLOCK)


def _of_blocks(part: slice) -> slice:
    """Return the positions of the blocks of a chunk."""
    return slice(part.start // INT8_BLOCK, _blocks(part.stop))


def _scale(exponents: Exponents) -> Vector:
    """Return the scales; of a block that is not finite, anything that is."""
    return (np.minimum(exponents, _LARGEST) << _MANTISSA_BITS).view(np.float32)


def _inverse(exponents: Exponents) -> Vector:
    """Return one over each scale."""
    return ((_BOTH - np.minimum(exponents, _LARGEST)) << _MANTISSA_BITS).view(np.float32)


def _multiply(values: Vector, factors: Vector, out: Vector) -> None:
    """Multiply each block with its factor."""
    whole = values.size // INT8_BLOCK * INT8_BLOCK
    in_blocks = (-1, INT8_BLOCK)
    np.multiply(
        values[:whole].reshape(in_blocks), factors[: whole // INT8_BLOCK, None], out=out[:whole].reshape(in_blocks)
    )
    if whole < values.size:
        np.multiply(values[whole:], factors[-1], out=out[whole:])


def _fill_not_finite(values: Vector, exponents: Exponents, by: float = np.nan) -> None:
    """Overwrite the blocks in which something is not finite."""
    if exponents.max() == _NOT_FINITE:
        for block in np.flatnonzero(exponents == _NOT_FINITE):
            values[block * INT8_BLOCK : (block + 1) * INT8_BLOCK] = by


#: The formats other than float32, by their names in a job.
FORMATS: dict[str, type[NumberFormat]] = {"float16": Float16, "bfloat16": BFloat16, "int8": Int8}

#: Bytes of a float32: all arrays of the protocol are a whole number of these words.
_WORD = 4


class RoundingKey(msgspec.Struct, frozen=True):
    """The values to be rounded: those of the sum of a node of a step, from element `start` of the flat vector on."""

    step: int
    node: Node
    start: int = 0


class Quantization(msgspec.Struct, frozen=True):
    """The format in which one job's vectors travel. Statistics, which follow the trained values, are never rounded.

    They are few; and one that a forward does not observe comes back as its value times a count: if it were rounded, it
    would drift from step to step.
    """

    #: None for float32, which changes nothing.
    format: NumberFormat | None = None
    seed: int = 0
    #: Number of trained values, which come first in the flat vector.
    parameter_size: int = 0

    @property
    def is_exact(self) -> bool:
        """True if nothing is rounded."""
        return self.format is None

    def round(self, values: Vector, at: RoundingKey) -> None:
        """Round the value of a node, or a part of it that begins at a multiple of 4096, in place."""
        if self.format is None:
            return
        rounding, trained = self._rounding(at), self._trained(at.start, values.size)
        for part in chunks(trained):
            self.format.round(values[part], rounding)

    def add(self, left: Vector, right: Vector, out: Vector, at: RoundingKey) -> None:
        """Write the value of a node into `out`, which may be either half: the sum of the two, rounded."""
        if self.format is None:
            np.add(left, right, out=out)
            return
        rounding, trained = self._rounding(at), self._trained(at.start, out.size)
        for part in chunks(trained):
            np.add(left[part], right[part], out=out[part])
            self.format.round(out[part], rounding)
        np.add(left[trained:], right[trained:], out=out[trained:])

    def words(self, part: Slice) -> int:
        """Return the number of float32 words in which a part of the flat vector travels."""
        trained = self._trained(part.start, len(part))
        return self._packed(trained) + len(part) - trained

    def pack(self, values: Vector, start: int) -> Vector:
        """Return rounded values, those of the flat vector from `start` on, as words to be sent."""
        if self.format is None:
            return values
        trained = self._trained(start, values.size)
        split = self._packed(trained)
        words = np.zeros(split + values.size - trained, np.float32)
        self.format.encode(values[:trained], words[:split].view(np.uint8)[: self.format.size(trained)])
        words[split:] = values[trained:]
        return words

    def unpack(self, words: Vector, start: int, into: Vector) -> None:
        """Write the values packed in `words`, of the length that `words()` gives, into a vector of their number."""
        if self.format is None:
            into[:] = words
            return
        trained = self._trained(start, into.size)
        split = self._packed(trained)
        self.format.decode(words[:split].view(np.uint8)[: self.format.size(trained)], into[:trained])
        into[trained:] = words[split:]

    def is_finite(self, words: Vector, start: int, size: int) -> bool:
        """Tell whether so many packed values, those from `start` on, are all finite; unpacks none."""
        if self.format is None:
            return first_not_finite(words) is None
        trained = self._trained(start, size)
        split = self._packed(trained)
        packed = words[:split].view(np.uint8)[: self.format.size(trained)]
        return self.format.is_finite(packed, trained) and first_not_finite(words[split:]) is None

    def _rounding(self, at: RoundingKey) -> StochasticRounding:
        return StochasticRounding(self.seed, at.step, at.node, at.start)

    def _trained(self, start: int, size: int) -> int:
        """Return how many of `size` values from `start` on are trained."""
        return max(0, min(size, self.parameter_size - start))

    def _packed(self, trained: int) -> int:
        """Return the words that so many rounded values take."""
        return trained if self.format is None else -(-self.format.size(trained) // _WORD)


#: Everything in float32.
EXACT = Quantization()


def bytes_per_value(name: str) -> float:
    """Return the bytes per value of a long vector in the format of that name."""
    many = 4096
    return _WORD if name == "float32" else FORMATS[name]().size(many) / many


def quantization_of(name: str, seed: int, parameter_size: int) -> Quantization:
    """Return the quantization of that name for vectors with so many trained values."""
    return EXACT if name == "float32" else Quantization(FORMATS[name](), seed, parameter_size)
