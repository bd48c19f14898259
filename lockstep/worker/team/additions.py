"""In which order the sums over some nodes are added up, and into which memory. Pure; made once for the same nodes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node, TreeSum

#: A number, or several at once.
Summed = TypeVar("Summed", float, NDArray[np.float64])


class Operand(NamedTuple):
    """The sums over a node, in the buffer of that number: first the given ones, then those for what is added."""

    node: Node
    buffer: int


class AddInto(NamedTuple):
    """Add two buffers into a third one, which may be either: the sums over the halves of a node."""

    node: Node
    left: int
    right: int
    out: int


class Additions(NamedTuple):
    """How the sums over a node are formed from given ones."""

    steps: tuple[AddInto, ...]
    #: The one or two buffers whose sum is what is asked for.
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
    """Return how nodes that follow one another, and are together one node, are added over the tree.

    With `joins_halves` the last two are added as well; otherwise that is left to whoever reads the terms.
    """
    steps, free, given = list[AddInto](), list[int](), len(nodes)
    made = 0

    def merge(left: Operand, right: Operand) -> Operand:
        nonlocal made
        node = Node(left.node.lo, right.node.hi)
        own = [one.buffer for one in (left, right) if one.buffer >= given]
        if own:
            out, *rest = own
            free.extend(rest)
        elif free:
            out = free.pop()
        else:
            out, made = given + made, made + 1
        steps.append(AddInto(node, left.buffer, right.buffer, out))
        return Operand(node, out)

    tree = TreeSum(micro_batches, merge, joins_halves=joins_halves)
    for buffer, node in enumerate(nodes):
        tree.add(node, Operand(node, buffer))
    whole = Node(nodes[0].lo, nodes[-1].hi)
    terms = tree.terms() if tree.is_whole() else [tree.held[whole]]
    return Additions(tuple(steps), tuple(term.buffer for term in terms), made)
