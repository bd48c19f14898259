"""Sums over an order: any tiling has the bits of the tree, whole or slice by slice, however sums are rounded."""

from collections.abc import Mapping

import numpy as np
import pytest

from lockstep.common.aggregation.quantization import Quantization, RoundingKey, quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK
from lockstep.worker.team.sums import PIECE, Operands, SliceAdder

#: The step whose sums are added up, in the tree over seven micro-batches.
STEP = 5


def sum_over(whole: Node, parts: Mapping[Node, Vector], wire: Quantization) -> Vector:
    """Return the sum over a node, given those over nodes that it is put together from."""
    if whole in parts:
        return parts[whole]
    left, right = (sum_over(half, parts, wire) for half in whole.halves())
    found = np.empty_like(left)
    wire.add(left, right, found, RoundingKey(STEP, whole))
    return found


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "nodes",
    [
        (Node(0, 7),),
        (Node(0, 4), Node(4, 7)),
        (Node(0, 1), Node(1, 2), Node(2, 4), Node(4, 6), Node(6, 7)),
        (Node(0, 2), Node(2, 4), Node(4, 5), Node(5, 6), Node(6, 7)),
        # Not all of the step.
        (Node(4, 5), Node(5, 6), Node(6, 7)),
        (Node(2, 3), Node(3, 4)),
    ],
)
def test_slices_have_the_bits_of_the_whole_vector(nodes: tuple[Node, ...], name: str) -> None:
    size, rng = PIECE + 3 * BLOCK + 17, generator(7, Purpose.SIMULATE)
    wire = quantization_of(name, 3, size - 9)
    vectors = [(rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size)).astype(np.float32) for _ in nodes]
    for vector, node in zip(vectors, nodes, strict=True):
        wire.round(vector, RoundingKey(STEP, node))
    before = [vector.copy() for vector in vectors]
    expected = sum_over(Node(nodes[0].lo, nodes[-1].hi), dict(zip(nodes, before, strict=True)), wire)
    adder, out = SliceAdder(wire), np.empty(size, np.float32)
    for _ in range(2):  # the second time with vectors that are full of other numbers
        out[:] = np.nan
        for whole in (Slice(2 * BLOCK, size), Slice(0, 2 * BLOCK)):
            adder.total(Operands(STEP, nodes, vectors), whole, out)
        assert out.tobytes() == expected.tobytes()
    assert all(np.array_equal(one, other) for one, other in zip(vectors, before, strict=True))
