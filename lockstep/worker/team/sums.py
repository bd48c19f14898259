"""The sums over an order: over its nodes, and, slice by slice, over all of it. A shell around arithmetic.

The nodes of an order may have been computed by any process. Their sums are added along the tree, piece by piece, so
that a slice has the bits of one process whichever nodes it is put together from.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from lockstep.common.aggregation.quantization import Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Addition, Node, TreeSum, Vector, VectorPool, VectorTree
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.worker.compute import Compute
from lockstep.worker.team.memory import RESULT, Copies, TeamMemory
from lockstep.worker.team.pace import Pace
from lockstep.worker.team.progress import ComputeNode, Order

#: Values that are added up at once, so that they stay in a second-level cache: a multiple of clipping's BLOCK.
PIECE = 262_144


class Operands(msgspec.Struct, frozen=True):
    """The sums over some nodes, which together are one node of the tree, in order."""

    step: int
    nodes: tuple[Node, ...]
    #: Each of the whole size.
    vectors: Sequence[Vector]


@dataclass
class SliceAdder:
    """Adds up slices. Arithmetic only."""

    wire: Quantization
    _pools: dict[int, VectorPool] = field(default_factory=dict)

    def pieces(self, operands: Operands, whole: Slice) -> Iterator[tuple[Slice, list[Vector]]]:
        """Yield each piece of a slice with the one or two vectors whose sum is that over the node.

        They are valid until the next; it is one vector if sums are rounded.
        """
        first, last = operands.nodes[0].lo, operands.nodes[-1].hi
        for piece in whole.cut_evenly(PIECE):
            pool = self._pools.setdefault(len(piece), VectorPool(len(piece)))
            tree = VectorTree(last - first, pool, self._addition(operands.step, first, piece.start))
            for node, vector in zip(operands.nodes, operands.vectors, strict=True):
                tree.add(node.moved(-first), piece.of(vector))
            yield piece, tree.terms()
            tree.reset()

    def _addition(self, step: int, first: int, start: int) -> Addition | None:
        """Return how two halves of a node result in its value, from element `start` on: None if they are only added."""

        def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
            self.wire.add(left, right, out, RoundingKey(step, node.moved(first), start))

        return None if self.wire.is_exact else add

    def total(self, operands: Operands, whole: Slice, out: Vector) -> None:
        """Write a slice of the sums over the node into its place in `out`, of the whole size."""
        with np.errstate(all="ignore"):  # the reader of the sums finds what overflows
            for piece, terms in self.pieces(operands, whole):
                if len(terms) == 1:
                    np.copyto(piece.of(out), terms[0])
                else:
                    np.add(terms[0], terms[1], out=piece.of(out))


@dataclass
class OrderSums:
    """Computes and adds up what a process contributes to the sums of orders, and reads those of all."""

    compute: Compute
    memory: TeamMemory
    pace: Pace
    adder: SliceAdder = field(init=False)

    def __post_init__(self) -> None:
        self.adder = SliceAdder(self.compute.wire)

    def add_node(self, order: Order, part: ComputeNode) -> None:
        """Compute the sums over a node, or the tally of an evaluation's, and show them."""
        compute, clock, is_training = self.compute, self.pace.clock, order.work in OF_A_STEP
        began, before = clock.now(), clock.times()
        compute.turn(order.step, into=part.row)
        try:
            if is_training:
                _, tally = compute.train(order.step, part.node)
            else:
                tally = compute.evaluate(part.node, order.work)
        finally:
            ended, after = clock.now(), clock.times()
            self.pace.record_waits(ended - began, after.ran - before.ran)
        if is_training or not self.pace.is_measured:  # an evaluation takes less than half of the time
            self.pace.record(len(part.node), ended - began, before, after)
        losses = compute.losses if is_training else ()
        self.memory.show_row(part, order.number, tally, losses, (began, ended))

    def operands(self, order: Order) -> tuple[Operands, Copies] | None:
        """Return the sums over an order's parts, and which copies these are; None if they are not all there."""
        copies = self.memory.sums_of(order)
        if copies is None:
            return None
        vectors = [self.memory.vector(copy.process, copy.row) for copy in copies.copies]
        return Operands(order.step, copies.nodes, vectors), copies

    def tally_of(self, order: Order, copies: Copies) -> Tally:
        """Return the tally of an order: a floating-point sum too, added over the same tree."""
        tree = TreeSum[Tally](len(order.node), operator.add)
        for node, tally in zip(copies.nodes, self.memory.tallies(copies), strict=True):
            tree.add(node.moved(-order.node.lo), tally)
        return tree.total()

    def add_slice(self, operands: Operands, whole: Slice) -> bool:
        """Write a slice of the sums over an order into memory of this process; return whether they are finite."""
        self.memory.own.reserve(RESULT)
        result = self.memory.vector(self.memory.process, RESULT)
        self.adder.total(operands, whole, result)
        return first_not_finite(whole.of(result)) is None

    def gather(self, order: Order, out: Vector) -> None:
        """Write the sums over an order, whose slices are all there, into a vector of the whole size."""
        for slice_, whole in enumerate(self.memory.shape.slices):
            process = self.memory.maker_of(self.memory.marks.added, slice_, order.number)
            np.copyto(whole.of(out), whole.of(self.memory.vector(process, RESULT)))
