"""How the sums of a job are rounded and sent: quantization is a part of the tree (rule R7).

The value of every node is rounded, whoever computes it: of a leaf, and of each sum of two halves up to the whole. So
any tiling of the micro-batches and any way to send their sums, shared memory included, gives the same bits.
"""

import msgspec
import numpy as np

from lockstep.common.aggregation.quantization.format import NumberFormat, chunks
from lockstep.common.aggregation.quantization.halves import BFloat16, Float16
from lockstep.common.aggregation.quantization.int8 import Int8
from lockstep.common.aggregation.quantization.stochastic_rounding import StochasticRounding
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.finiteness import first_not_finite

#: The formats other than float32, by their names in a job.
FORMATS: dict[str, type[NumberFormat]] = {"float16": Float16, "bfloat16": BFloat16, "int8": Int8}

#: Bytes of a float32: all arrays of the protocol are a whole number of these words.
_WORD = 4


class RoundingKey(msgspec.Struct, frozen=True):
    """Which values are rounded: those of the sum of a node of a step, from element `start` of the flat vector on."""

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
        """Whether nothing is rounded."""
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
