"""Sums over an order: any tiling has the bits of the tree, whole or slice by slice, however sums are rounded."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.quantization import RoundingKey, quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, TreeSum, Vector, VectorPool, VectorTree, largest_node_at
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK
from lockstep.worker.team.sums import PIECE, Operands, SliceAdder, additions_of


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Node, tuple[Node, ...], int]:
    """Return a node of a tree, nodes that it is put together from, and the micro-batches of the tree."""
    micro_batches = draw(st.integers(1, 40))
    lo = draw(st.integers(0, micro_batches - 1))
    whole = largest_node_at(lo, micro_batches, micro_batches, draw(st.integers(1, micro_batches)))
    nodes, at = [], whole.lo
    while at < whole.hi:
        nodes.append(largest_node_at(at, whole.hi, micro_batches, draw(st.integers(1, len(whole)))))
        at = nodes[-1].hi
    return whole, tuple(nodes), micro_batches


def expression(whole: Node) -> str:
    """Return how a node is added up over the tree."""
    return str(whole) if len(whole) == 1 else "({}+{})".format(*map(expression, whole.halves()))


class Sum(str):
    """What is written down of a sum."""

    __slots__ = ()

    def __add__(self, other: str) -> "Sum":
        return Sum(f"({self:s}+{other:s})")


@settings(derandomize=True, deadline=None)
@given(tilings())
def test_numbers_are_added_up_over_the_tree_too(tiling: tuple[Node, tuple[Node, ...], int]) -> None:
    whole, nodes, micro_batches = tiling
    additions = additions_of(nodes, micro_batches, joins_halves=True)
    sums: Any = [Sum(expression(node)) for node in nodes]
    assert additions.total(sums) == expression(whole)


@settings(derandomize=True, deadline=None)
@given(tilings(), st.booleans())
def test_any_tiling_is_added_up_over_the_tree(tiling: tuple[Node, tuple[Node, ...], int], joins_halves: bool) -> None:
    whole, nodes, micro_batches = tiling
    additions = additions_of(nodes, micro_batches, joins_halves=joins_halves)
    buffers = [expression(node) for node in nodes] + ["?"] * additions.buffers
    for step in additions.steps:
        assert step.out >= len(nodes), "what is given is not written"
        buffers[step.out] = f"({buffers[step.left]}+{buffers[step.right]})"
        assert buffers[step.out] == expression(step.node)
    terms = [buffers[term] for term in additions.terms]
    assert terms[0] == expression(whole) if len(terms) == 1 else f"({terms[0]}+{terms[1]})" == expression(whole)
    is_joined = joins_halves or len(nodes) == 1 or len(whole) < micro_batches
    assert not (is_joined and len(terms) > 1)
    assert additions.buffers <= max(0, len(nodes) - 1)


def vectors_of(nodes: tuple[Node, ...], size: int) -> list[Vector]:
    """Return some sums for each micro-batch, already added over each node."""
    rng = generator(7, Purpose.SIMULATE)
    found = []
    for node in nodes:
        tree = TreeSum[Vector](len(node), lambda left, right: left + right)
        for micro_batch in range(len(node)):
            values = rng.standard_normal(size).astype(np.float32) * np.float32(10.0) ** rng.integers(-3, 3, size)
            tree.add(Node(micro_batch, micro_batch + 1), values.astype(np.float32))
        found.append(tree.total())
    return found


@pytest.mark.parametrize("wire", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "nodes",
    [
        (Node(0, 7),),
        (Node(0, 4), Node(4, 7)),
        (Node(0, 1), Node(1, 2), Node(2, 4), Node(4, 6), Node(6, 7)),
        (Node(0, 2), Node(2, 4), Node(4, 5), Node(5, 6), Node(6, 7)),
    ],
)
def test_slices_have_the_bits_of_the_whole_vector(nodes: tuple[Node, ...], wire: str) -> None:
    size, micro_batches, step = PIECE + 3 * BLOCK + 17, 7, 5
    adder = SliceAdder(quantization_of(wire, 3, size - 9))
    vectors = vectors_of(nodes, size)
    for vector, node in zip(vectors, nodes, strict=True):
        adder.wire.round(vector, RoundingKey(step, node, 0))
    before = [vector.copy() for vector in vectors]

    def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
        adder.wire.add(left, right, out, RoundingKey(step, node, 0))

    tree = VectorTree(micro_batches, VectorPool(size), None if adder.wire.is_exact else add)
    for vector, node in zip(vectors, nodes, strict=True):
        tree.add(node, vector)
    expected, out = np.add.reduce(tree.terms()), np.full(size, np.nan, np.float32)
    for _ in range(2):  # the second time with vectors that are full of other numbers
        out[:] = np.nan
        for whole in (Slice(2 * BLOCK, size), Slice(0, 2 * BLOCK)):
            adder.total(Operands(step, nodes, vectors, micro_batches), whole, out)
        assert out.tobytes() == expected.tobytes()
    assert all(np.array_equal(one, other) for one, other in zip(vectors, before, strict=True))
