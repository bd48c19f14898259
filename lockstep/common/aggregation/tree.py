"""The binary tree over the micro-batches of a step (rule R5); does not know the values that are added.

Floating-point addition is not associative, so the order of adding must not depend on which worker answers first. The
tree over `[lo, hi)` splits at `lo +` the largest power of two below `hi - lo`; a sum is formed only from the two halves
of a node. Whatever nodes the micro-batches arrive in, in whatever order and however often, the root has the same bits.

The chunks of an evaluation are leased and added up the same way as micro-batches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.kernels.calls import LINE_BYTES, aligned

T = TypeVar("T")

#: A flat vector of weights or of sums.
Vector = NDArray[np.float32]

#: The number of float32 in a line of the cache.
LINE = LINE_BYTES // 4

#: Writes the value of a node, given those of its two halves, into the last vector, which may be either of them.
Addition = Callable[["Node", Vector, Vector, Vector], None]


class Node(msgspec.Struct, frozen=True, order=True):
    """The micro-batches `[lo, hi)`, 0 ≤ lo < hi."""

    lo: int
    hi: int

    def __len__(self) -> int:
        return self.hi - self.lo

    def __str__(self) -> str:
        return f"{self.lo}" if self.hi - self.lo == 1 else f"{self.lo}-{self.hi - 1}"

    def halves(self) -> tuple["Node", "Node"]:
        """Return the two halves of a node of at least two micro-batches: the first is the larger, a power of two."""
        middle = self.lo + (1 << (len(self) - 1).bit_length() - 1)
        return Node(self.lo, middle), Node(middle, self.hi)

    def moved(self, by: int) -> "Node":
        """Return a node of as many micro-batches, so many later: in any node, as in the tree over as many."""
        return Node(self.lo + by, self.hi + by)


@lru_cache(maxsize=4096)
def _climb(node: Node, micro_batches: int) -> tuple[tuple[Node, Node], ...]:
    """Return the way from a node up to the root: each parent with the sibling that the sum below it waits for.

    `ValueError` if it is not in the tree.
    """
    at, steps = Node(0, micro_batches), list[tuple[Node, Node]]()
    while at != node:
        if len(at) < 2:
            raise ValueError(f"[{node.lo}, {node.hi}) is not a node of the tree over {micro_batches} micro-batches")
        first, second = at.halves()
        below, sibling = (first, second) if node.lo < first.hi else (second, first)
        steps.append((at, sibling))
        at = below
    return tuple(reversed(steps))


@lru_cache(maxsize=4096)
def largest_node_at(lo: int, limit: int, micro_batches: int, most: int) -> Node:
    """Return the largest node that begins at `lo`, ends by `limit` and has at most `most` ≥ 1 micro-batches.

    `ValueError` unless 0 ≤ lo < limit ≤ micro_batches.
    """
    if not 0 <= lo < limit <= micro_batches:
        raise ValueError(f"[{lo}, {limit}) holds no node of the tree over {micro_batches} micro-batches")
    at = Node(0, micro_batches)
    while not (at.lo == lo and at.hi <= limit and len(at) <= most):
        first, second = at.halves()
        at = first if lo < first.hi else second
    return at


def is_node(lo: int, hi: int, micro_batches: int) -> bool:
    """Tell whether `[lo, hi)` is a whole node of the tree over `micro_batches` micro-batches."""
    return 0 <= lo < hi <= micro_batches and largest_node_at(lo, hi, micro_batches, micro_batches) == Node(lo, hi)


@dataclass
class TreeSum(Generic[T]):
    """The sum of `micro_batches` values over the tree, formed as they arrive.

    `merge(left, right)` adds the two halves of a node; it may reuse either, neither is read again. `drop(value)` is
    called with a value that is no longer needed.
    """

    micro_batches: int
    merge: Callable[[T, T], T]
    drop: Callable[[T], None] = lambda value: None
    #: Whether the two halves of the whole are added too: otherwise that is left to the reader of the terms.
    joins_halves: bool = True
    #: Sums of nodes whose sibling has not arrived, or of the two halves of the whole; no two overlap.
    held: dict[Node, T] = field(default_factory=dict)
    #: A byte per micro-batch, 1 if a node of `held` has it: searching `held` would be quadratic in their number.
    _known: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self._known = bytearray(self.micro_batches)

    def covers(self, node: Node) -> bool:
        """Tell whether all micro-batches of `node` have arrived already."""
        return 0 not in self._known[node.lo : node.hi]

    def add(self, node: Node, value: T) -> bool:
        """Add the sum of a node; return False, with nothing changed, if all its micro-batches have arrived already.

        If some have, the sum replaces theirs, which are a part of it. Otherwise a sum that a worker sent before it died
        would block a worker that computes more than that at once. `ValueError` if it is not a node.
        """
        climb = _climb(node, self.micro_batches)
        if self.covers(node):
            return False
        if 1 in self._known[node.lo : node.hi]:
            for part in [held for held in self.held if node.lo <= held.lo and held.hi <= node.hi]:
                self.drop(self.held.pop(part))
        self._known[node.lo : node.hi] = b"\1" * len(node)
        for parent, sibling in climb if self.joins_halves else climb[:-1]:
            if sibling not in self.held:
                break
            other = self.held.pop(sibling)
            value = self.merge(value, other) if node.lo < sibling.lo else self.merge(other, value)
            node = parent
        self.held[node] = value
        return True

    def is_whole(self) -> bool:
        """Tell whether all micro-batches have arrived."""
        return 0 not in self._known

    def total(self) -> T:
        """Return the sum over all micro-batches of a tree that joins the halves; `KeyError` before it is whole."""
        return self.held[Node(0, self.micro_batches)]

    def terms(self) -> list[T]:
        """Return the terms of the whole sum, in order: the sum itself, or those of its two halves."""
        whole = Node(0, self.micro_batches)
        return [self.held[whole]] if whole in self.held else [self.held[half] for half in whole.halves()]

    def clear(self) -> None:
        """Drop all sums."""
        if not self.held:
            return
        for value in self.held.values():
            self.drop(value)
        self.held.clear()
        self._known = bytearray(self.micro_batches)


def new_vector(size: int) -> Vector:
    """Return zeros that begin at a line of the cache, as vectors in shared memory do.

    The arrays of a model have to: kernels of PyTorch have other bits at another alignment, and NumPy promises 16 bytes
    only.
    """
    return aligned(4 * size, np.zeros).view(np.float32)


@dataclass
class VectorPool:
    """Vectors of one size for reuse: fresh pages are the most expensive thing in NumPy training."""

    size: int
    free: list[Vector] = field(default_factory=list)

    def take(self) -> Vector:
        """Return a vector with unspecified contents."""
        if self.free:
            return self.free.pop()
        return np.empty(self.size, dtype=np.float32)

    def give(self, vector: Vector) -> None:
        """Add a vector that is not used any more, to be taken again."""
        self.free.append(vector)

    @contextmanager
    def lent(self) -> Iterator[Vector]:
        """Lend a vector with unspecified contents, for as long as the context lasts."""
        vector = self.take()
        try:
            yield vector
        finally:
            self.give(vector)


class Summand(msgspec.Struct, frozen=True):
    """The value of a node in a tree; `is_owned` if it came from the pool, so that it may be overwritten."""

    node: Node
    vector: Vector
    is_owned: bool


@dataclass
class VectorTree:
    """A tree sum of float32 vectors of one size that allocates nothing once it is warm."""

    micro_batches: int
    pool: VectorPool
    #: How the value of a node is formed from its halves if not by addition, as when sums are rounded (rule R7).
    addition: Addition | None = None
    tree: TreeSum[Summand] = field(init=False)

    def __post_init__(self) -> None:
        # A plain last addition is left to the reader of the terms: it saves a pass over memory.
        self.tree = TreeSum(self.micro_batches, self._merge, self._drop, joins_halves=self.addition is not None)

    def _merge(self, left: Summand, right: Summand) -> Summand:
        node = Node(left.node.lo, right.node.hi)
        into = left.vector if left.is_owned else right.vector if right.is_owned else self.pool.take()
        if self.addition is None:
            np.add(left.vector, right.vector, out=into)
        else:
            self.addition(node, left.vector, right.vector, into)
        if left.is_owned and right.is_owned:
            self.pool.give(right.vector)
        return Summand(node, into, is_owned=True)

    def _drop(self, summand: Summand) -> None:
        if summand.is_owned:
            self.pool.give(summand.vector)

    def add(self, node: Node, vector: Vector) -> bool:
        """Add the sum of a node, which must stay unchanged until `reset`; as `TreeSum.add`."""
        return self.tree.add(node, Summand(node, vector, is_owned=False))

    def add_own(self, node: Node, vector: Vector) -> bool:
        """Add the sum of a node in a vector of the pool, which is no longer the caller's; as `TreeSum.add`."""
        is_new = self.tree.add(node, Summand(node, vector, is_owned=True))
        if not is_new:
            self.pool.give(vector)
        return is_new

    def terms(self) -> list[Vector]:
        """Return the one or two vectors whose sum is the whole, in this order, to be read until `reset`."""
        return [summand.vector for summand in self.tree.terms()]

    def reset(self) -> None:
        """Drop all sums, returning owned vectors to the pool."""
        self.tree.clear()
