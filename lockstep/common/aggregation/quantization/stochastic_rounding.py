"""Random numbers that decide which way a value is rounded (rule R2); they do not depend on how its vector is cut.

They are drawn from Philox, keyed by seed, step and node, and counted by the value's position in the flat vector. A hash
of the position in NumPy's own arithmetic would cost about the same (docs/explanation/rounding.md), and need a proof.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node
from lockstep.common.numerics.random import Purpose, generator

#: Values whose numbers come from one count of Philox, 256 bits: a vector is cut at multiples of it.
SPAN = 16

#: Values whose numbers come from one 64-bit word.
_IN_A_WORD = 4

#: The last bit of each number: odd 65,536ths stand in the middle of 32,768 parts, so that their mean is a half.
_ODD = np.uint64(0x0001_0001_0001_0001)


@dataclass
class StochasticRounding:
    """The numbers of the values from `start` on, a multiple of `SPAN`, in one node of one step."""

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
