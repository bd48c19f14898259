"""Adds slices of the sums over an order along the tree, from any available copy. Arithmetic only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from lockstep.common.aggregation.quantization import Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector, VectorPool
from lockstep.worker.team.additions import Additions, additions_of

#: Values that are added up at once, so that they stay in a second-level cache: a multiple of clipping's BLOCK.
PIECE = 262_144


class Operands(msgspec.Struct, frozen=True):
    """The sums over some nodes, which together are one node of the tree over so many micro-batches, in order."""

    step: int
    nodes: tuple[Node, ...]
    #: Each of the whole size.
    vectors: Sequence[Vector]
    micro_batches: int


@dataclass
class SliceAdder:
    """Adds up slices."""

    wire: Quantization
    _pools: dict[int, VectorPool] = field(default_factory=dict)

    def pieces(self, operands: Operands, whole: Slice) -> Iterator[tuple[Slice, list[Vector]]]:
        """Yield each piece of a slice with the one or two vectors whose sum is that over the node.

        They are valid until the next; it is one where sums are rounded.
        """
        exact = self.wire.is_exact
        additions = additions_of(operands.nodes, operands.micro_batches, joins_halves=not exact)
        for piece in whole.cut_evenly(PIECE):
            pool = self._pools.setdefault(len(piece), VectorPool(len(piece)))
            lent = [pool.take() for _ in range(additions.buffers)]
            buffers = [piece.of(vector) for vector in operands.vectors] + lent
            self._add(additions, buffers, operands.step, piece.start)
            yield piece, [buffers[term] for term in additions.terms]
            pool.free += lent

    def _add(self, additions: Additions, buffers: Sequence[Vector], step: int, start: int) -> None:
        for one in additions.steps:
            left, right, out = buffers[one.left], buffers[one.right], buffers[one.out]
            if self.wire.is_exact:
                np.add(left, right, out=out)
            else:
                self.wire.add(left, right, out, RoundingKey(step, one.node, start))

    def total(self, operands: Operands, whole: Slice, out: Vector) -> None:
        """Write a slice of the sums over the node into its place in `out`, of the whole size."""
        with np.errstate(all="ignore"):  # the reader of the sums finds what overflows
            for piece, terms in self.pieces(operands, whole):
                if len(terms) == 1:
                    np.copyto(piece.of(out), terms[0])
                else:
                    np.add(terms[0], terms[1], out=piece.of(out))
