"""The sums over an order: over its nodes, and, slice by slice, over all of it. A shell around arithmetic.

The nodes of an order may have been computed by any process. Their sums are added along the tree, piece by piece, so
that a slice has the bits of one process whichever nodes it is put together from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization import Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, TreeSum, Vector, VectorPool
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.protocol.team_memory import COUNT, IGNORED, LOSS_SUM, METRICS, WEIGHT, divisors_of
from lockstep.worker.compute import Compute
from lockstep.worker.team.memory import RESULT, Copies, TeamMemory
from lockstep.worker.team.pace import Pace
from lockstep.worker.team.progress import ComputeNode, Order

#: Values that are added up at once, so that they stay in a second-level cache: a multiple of clipping's BLOCK.
PIECE = 262_144

#: A number, or several at once.
Summed = TypeVar("Summed", float, NDArray[np.float64])


class AddInto(NamedTuple):
    """Add two buffers into a third one, which may be either: the sums over the halves of a node."""

    node: Node
    left: int
    right: int
    out: int


class Additions(NamedTuple):
    """The additions that form the sums over a node from given ones, by the numbers of buffers: the given ones first."""

    steps: tuple[AddInto, ...]
    #: The one or two buffers whose sum is the result.
    terms: tuple[int, ...]
    #: Number of buffers besides the given ones.
    buffers: int

    def total(self, values: Sequence[Summed]) -> Summed:
        """Return the sum of one value for each of the given nodes, added over the tree; halves have to be joined."""
        held: list[Any] = [*values, *([None] * self.buffers)]
        for one in self.steps:
            held[one.out] = held[one.left] + held[one.right]
        found: Summed = held[self.terms[0]]
        return found


@lru_cache(maxsize=256)
def additions_of(nodes: tuple[Node, ...], micro_batches: int, *, joins_halves: bool) -> Additions:
    """Return the additions of nodes that follow one another, and are together one node of the tree.

    With `joins_halves` the last two are added as well; otherwise that is left to the reader of the terms.
    """
    steps, free, given = list[AddInto](), list[int](), len(nodes)
    made = 0

    def merge(left: tuple[Node, int], right: tuple[Node, int]) -> tuple[Node, int]:
        nonlocal made
        node = Node(left[0].lo, right[0].hi)
        own = [buffer for _, buffer in (left, right) if buffer >= given]
        if own:
            out, *rest = own
            free.extend(rest)
        elif free:
            out = free.pop()
        else:
            out, made = given + made, made + 1
        steps.append(AddInto(node, left[1], right[1], out))
        return node, out

    tree = TreeSum(micro_batches, merge, joins_halves=joins_halves)
    for buffer, node in enumerate(nodes):
        tree.add(node, (node, buffer))
    whole = Node(nodes[0].lo, nodes[-1].hi)
    terms = tree.terms() if tree.is_whole() else [tree.held[whole]]
    return Additions(tuple(steps), tuple(buffer for _, buffer in terms), made)


class Operands(msgspec.Struct, frozen=True):
    """The sums over some nodes, which together are one node of the tree over so many micro-batches, in order."""

    step: int
    nodes: tuple[Node, ...]
    #: Each of the whole size.
    vectors: Sequence[Vector]
    micro_batches: int


@dataclass
class SliceAdder:
    """Adds up slices. Arithmetic only."""

    wire: Quantization
    _pools: dict[int, VectorPool] = field(default_factory=dict)

    def pieces(self, operands: Operands, whole: Slice) -> Iterator[tuple[Slice, list[Vector]]]:
        """Yield each piece of a slice with the one or two vectors whose sum is that over the node.

        They are valid until the next; it is one vector if sums are rounded.
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
        if is_training:
            _, tally = compute.train(order.step, part.node)
        else:
            tally = compute.evaluate(part.node, order.work)
        ended, after = clock.now(), clock.times()
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
        return Operands(order.step, copies.nodes, vectors, self.pace.micro_batches_of(order.work)), copies

    def tally_of(self, order: Order, copies: Copies) -> Tally:
        """Return the tally of an order: a floating-point sum too, added over the same tree."""
        figures = self.memory.figures(copies)
        losses, count = figures[:, LOSS_SUM : COUNT + 1].T.tolist()
        ignored, weights = figures[:, IGNORED : WEIGHT + 1].T.tolist()
        additions = additions_of(copies.nodes, self.pace.micro_batches_of(order.work), joins_halves=True)
        divisors, samples = divisors_of(count, ignored, weights), int(sum(count))
        weight = None if divisors is None else additions.total(divisors)
        # Memory has room for sums of metrics even if there are no samples, and so no metrics.
        metrics = tuple(additions.total(list(figures[:, METRICS:])).tolist()) if samples else ()
        return Tally(additions.total(losses), samples, int(sum(ignored)), weight, metrics)

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
