"""How the values of a job's nodes are rounded and travel: the type of the wire is a part of the tree (rule R7).

Every node's value is rounded, whoever computes it: a leaf's, and each sum of two halves up to the whole. So any tiling
of the pieces, and any way to send them, memory that is shared included, gives the same bits.
"""

from dataclasses import dataclass

import numpy as np

from common.aggregation.finiteness import first_not_finite
from common.aggregation.quantization.bfloat16 import BFloat16
from common.aggregation.quantization.float16 import Float16
from common.aggregation.quantization.format import NumberFormat, chunks
from common.aggregation.quantization.int8 import Int8
from common.aggregation.quantization.stochastic_rounding import StochasticRounding
from common.aggregation.slices import Slice
from common.aggregation.tree import Node, Vector

#: The types that are not float32, by their names in a job.
FORMS: dict[str, type[NumberFormat]] = {"float16": Float16, "bfloat16": BFloat16, "int8": Int8}

#: Bytes of a float32: what travels is a whole number of these words, as all arrays of the protocol are.
_WORD = 4


@dataclass(frozen=True, slots=True)
class RoundingKey:
    """Where values stand: in the sum of a node of a step, from element `start` of the flat vector on."""

    step: int
    node: Node
    start: int = 0


@dataclass(frozen=True)
class Quantization:
    """One type of the wire, for one job's vectors. Statistics behind the trained values are never rounded.

    They are few; and one that a forward does not observe comes back as its value times a count: rounded on the way, it
    would drift from step to step.
    """

    #: None for float32, in which everything stays as it is.
    form: NumberFormat | None = None
    seed: int = 0
    #: Number of trained values, which come first in the flat vector.
    parameter_size: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded."""
        return self.form is None

    def round(self, values: Vector, at: RoundingKey) -> None:
        """Round the value of a node, or a part of it that begins at a multiple of 4096, in place."""
        if self.form is None:
            return
        dither, trained = self._dither(at), self._trained(at.start, values.size)
        for part in chunks(trained):
            self.form.round(values[part], dither)

    def add(self, left: Vector, right: Vector, out: Vector, at: RoundingKey) -> None:
        """Write the value of a node into `out`, which may be either half: the sum of the two, rounded."""
        if self.form is None:
            np.add(left, right, out=out)
            return
        dither, trained = self._dither(at), self._trained(at.start, out.size)
        for part in chunks(trained):
            np.add(left[part], right[part], out=out[part])
            self.form.round(out[part], dither)
        np.add(left[trained:], right[trained:], out=out[trained:])

    def words(self, part: Slice) -> int:
        """Return the float32 words as which a part of the flat vector travels."""
        trained = self._trained(part.start, len(part))
        return self._packed(trained) + len(part) - trained

    def pack(self, values: Vector, start: int) -> Vector:
        """Return rounded values, those of the flat vector from `start` on, as words to be sent."""
        if self.form is None:
            return values
        trained = self._trained(start, values.size)
        split = self._packed(trained)
        words = np.zeros(split + values.size - trained, np.float32)
        self.form.encode(values[:trained], words[:split].view(np.uint8)[: self.form.size(trained)])
        words[split:] = values[trained:]
        return words

    def unpack(self, words: Vector, start: int, into: Vector) -> None:
        """Write the values that came as words into a vector of their number; `words` has as many as it says."""
        if self.form is None:
            into[:] = words
            return
        trained = self._trained(start, into.size)
        split = self._packed(trained)
        self.form.decode(words[:split].view(np.uint8)[: self.form.size(trained)], into[:trained])
        into[trained:] = words[split:]

    def is_finite(self, words: Vector, start: int, size: int) -> bool:
        """Tell whether so many values that came as words, those from `start` on, are all numbers; unpacks none."""
        if self.form is None:
            return first_not_finite(words) is None
        trained = self._trained(start, size)
        split = self._packed(trained)
        packed = words[:split].view(np.uint8)[: self.form.size(trained)]
        return self.form.is_finite(packed, trained) and first_not_finite(words[split:]) is None

    def _dither(self, at: RoundingKey) -> StochasticRounding:
        return StochasticRounding(self.seed, at.step, at.node, at.start)

    def _trained(self, start: int, size: int) -> int:
        """Return how many of so many values from `start` on are trained."""
        return max(0, min(size, self.parameter_size - start))

    def _packed(self, trained: int) -> int:
        """Return the words that so many rounded values take."""
        return trained if self.form is None else -(-self.form.size(trained) // _WORD)


#: Everything in float32.
EXACT = Quantization()


def bytes_a_value(name: str) -> float:
    """Return the bytes that a value of a long vector takes in the type of that name."""
    many = 4096
    return _WORD if name == "float32" else FORMS[name]().size(many) / many


def quantization_of(name: str, seed: int, parameter_size: int) -> Quantization:
    """Return the type of that name, for vectors with so many trained values."""
    return EXACT if name == "float32" else Quantization(FORMS[name](), seed, parameter_size)
