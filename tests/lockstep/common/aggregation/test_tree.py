"""Rule R5: whoever sums what, in whatever order and however often, the root of the tree has the same bits."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.tree import (
    Node,
    TreeSum,
    Vector,
    VectorPool,
    VectorTree,
    is_node,
    largest_node_at,
)
from lockstep.common.numerics.random import Purpose, generator

SIZE = 5


def reference(vectors: Sequence[Vector], lo: int, hi: int) -> Vector:
    """The definition: split at `lo +` the largest power of two below `hi - lo`."""
    if hi - lo == 1:
        return vectors[lo]
    power = 1
    while power * 2 < hi - lo:
        power *= 2
    return reference(vectors, lo, lo + power) + reference(vectors, lo + power, hi)


def pieces_of(count: int) -> list[Vector]:
    """Vectors whose sum depends on the order of adding in nearly every element."""
    rng = generator(3, Purpose.CANARY, at=count)
    scales = 10.0 ** rng.integers(-4, 4, size=(count, SIZE))
    return list((rng.standard_normal((count, SIZE)) * scales).astype(np.float32))


def nodes_of(micro_batches: int) -> list[Node]:
    """Every node of the tree, by the definition."""
    found, pending = [], [Node(0, micro_batches)]
    while pending:
        node = pending.pop()
        found.append(node)
        if len(node) > 1:
            pending += node.halves()
    return found


def sum_of(tree: VectorTree) -> Vector:
    """Add the one or two terms of the whole sum."""
    first, *others = tree.terms()
    return first + others[0] if others else first


class PoisoningPool(VectorPool):
    """Whoever still reads what was given back, or what was not yet written, reads NaN."""

    def take(self) -> Vector:
        vector = super().take()
        vector.fill(np.nan)
        return vector

    def give(self, vector: Vector) -> None:
        assert all(vector is not free for free in self.free), "given back twice"
        vector.fill(np.nan)
        super().give(vector)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[Node]]:
    """A number of micro_batches, and nodes in some order, with overlaps and repeats, that cover them all in the end."""
    micro_batches = draw(st.integers(1, 70))
    nodes = nodes_of(micro_batches)
    some = draw(st.lists(st.sampled_from(nodes), max_size=20))
    leaves = draw(st.permutations([node for node in nodes if len(node) == 1]))
    mixed = draw(st.permutations([*some, *leaves[: micro_batches // 2]]))
    return micro_batches, [*mixed, *leaves]


def add_owned(tree: VectorTree, node: Node, vector: Vector) -> bool:
    """Add a copy of a vector in one of the pool."""
    own = tree.pool.take()
    np.copyto(own, vector)
    return tree.add_own(node, own)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(arrivals(), st.sampled_from(["kept", "owned"]))
def test_any_tiling_order_and_duplicates_give_the_same_bits(arriving: tuple[int, list[Node]], how: str) -> None:
    micro_batches, nodes = arriving
    vectors = pieces_of(micro_batches)
    tree = VectorTree(micro_batches, PoisoningPool(SIZE))
    known: set[int] = set()
    for node in nodes:
        value = reference(vectors, node.lo, node.hi).copy()
        members = set(range(node.lo, node.hi))
        is_new = add_owned(tree, node, value) if how == "owned" else tree.add(node, value)
        assert is_new == (not members <= known)
        known |= members if is_new else set()
        if how != "kept":
            value.fill(np.nan)
    assert tree.tree.is_whole()
    assert sum_of(tree).tobytes() == reference(vectors, 0, micro_batches).tobytes()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(arrivals())
def test_numbers_are_summed_as_vectors_are(arriving: tuple[int, list[Node]]) -> None:
    micro_batches, nodes = arriving
    numbers = [float(vector[0]) / 3 for vector in pieces_of(micro_batches)]
    tree: TreeSum[float] = TreeSum(micro_batches, lambda left, right: left + right)

    def expected(node: Node) -> float:
        return numbers[node.lo] if len(node) == 1 else sum(map(expected, node.halves()))

    for node in nodes:
        tree.add(node, expected(node))
    assert tree.total() == expected(Node(0, micro_batches))


def test_the_pieces_tell_apart_orders_of_adding() -> None:
    vectors = pieces_of(13)
    in_order = vectors[0].copy()
    for vector in vectors[1:]:
        in_order += vector
    assert in_order.tobytes() != reference(vectors, 0, 13).tobytes()


def test_a_pool_serves_many_rounds_with_the_vectors_of_the_first() -> None:
    pool = PoisoningPool(SIZE)
    vectors = pieces_of(16)
    tree = VectorTree(16, pool)
    counts = []
    for step in range(4):
        order = generator(step, Purpose.CANARY).permutation(16)
        for piece in sorted(order[:12]) + list(order[12:]):
            add_owned(tree, Node(int(piece), int(piece) + 1), vectors[piece])
        assert sum_of(tree).tobytes() == reference(vectors, 0, 16).tobytes()
        tree.reset()
        counts.append(len(pool.free))
    in_order = [Node(piece, piece + 1) for piece in range(16)]
    for node in in_order:
        add_owned(tree, node, vectors[node.lo])
    tree.reset()
    assert len(pool.free) == counts[-1] <= 8


def test_added_vectors_that_are_not_copied_stay_as_they_are() -> None:
    vectors = pieces_of(8)
    before = [vector.tobytes() for vector in vectors]
    tree = VectorTree(8, PoisoningPool(SIZE))
    for piece in (3, 0, 1, 2, 7, 6, 5, 4):
        tree.add(Node(piece, piece + 1), vectors[piece])
    tree.reset()
    assert [vector.tobytes() for vector in vectors] == before


def test_the_sum_of_a_node_can_be_read_before_its_sibling_is_there() -> None:
    vectors = pieces_of(8)
    tree = VectorTree(8, PoisoningPool(SIZE))
    add_owned(tree, Node(5, 6), vectors[5])
    add_owned(tree, Node(4, 5), vectors[4])
    assert tree.tree.held[Node(4, 6)].vector.tobytes() == reference(vectors, 4, 6).tobytes()
    with pytest.raises(KeyError):
        tree.terms()


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 8, 11, 64])
def test_is_node_holds_for_the_nodes_alone(micro_batches: int) -> None:
    expected = {(node.lo, node.hi) for node in nodes_of(micro_batches)}
    found = {
        (lo, hi)
        for lo in range(-1, micro_batches + 2)
        for hi in range(-1, micro_batches + 2)
        if is_node(lo, hi, micro_batches)
    }
    assert found == expected
    assert len(expected) == 2 * micro_batches - 1


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 8, 11])
def test_largest_node_at_is_the_largest_that_fits(micro_batches: int) -> None:
    for lo in range(micro_batches):
        for limit in range(lo + 1, micro_batches + 1):
            for most in range(1, micro_batches + 1):
                fitting = [n for n in nodes_of(micro_batches) if n.lo == lo and n.hi <= limit and len(n) <= most]
                assert largest_node_at(lo, limit, micro_batches, most) == max(fitting, key=len)


@pytest.mark.parametrize(("lo", "limit"), [(-1, 2), (2, 2), (3, 2), (0, 9), (8, 9)])
def test_no_node_is_found_outside(lo: int, limit: int) -> None:
    with pytest.raises(ValueError, match=rf"^\[{lo}, {limit}\) holds no node of the tree over 8 micro-batches$"):
        largest_node_at(lo, limit, 8, 8)


@pytest.mark.parametrize("node", [Node(1, 3), Node(0, 3), Node(0, 9), Node(4, 7), Node(-1, 1)])
def test_what_is_no_node_is_refused_and_changes_nothing(node: Node) -> None:
    tree: TreeSum[int] = TreeSum(8, lambda left, right: left + right)
    text = rf"^\[{node.lo}, {node.hi}\) is not a node of the tree over 8 micro-batches$"
    with pytest.raises(ValueError, match=text):
        tree.add(node, 1)
    assert not tree.held
    assert tree.add(Node(0, 8), 1)


def test_a_sum_takes_the_place_of_its_parts_which_are_dropped() -> None:
    dropped: list[int] = []
    tree: TreeSum[int] = TreeSum(16, lambda left, right: left + right, dropped.append)
    for node, value in ((Node(0, 1), 1), (Node(8, 9), 2), (Node(2, 4), 3), (Node(4, 5), 4)):
        tree.add(node, value)
    assert tree.add(Node(0, 4), 5)
    assert tree.held == {Node(8, 9): 2, Node(4, 5): 4, Node(0, 4): 5}
    assert dropped == [1, 3]
    assert tree.add(Node(0, 16), 6)
    assert tree.held == {Node(0, 16): 6}
    assert dropped == [1, 3, 2, 4, 5]


def test_a_sum_of_vectors_of_the_pool_stays_in_one_of_them_and_gives_the_others_back() -> None:
    vectors, pool = pieces_of(4), PoisoningPool(SIZE)
    tree = VectorTree(4, pool)

    def owned(piece: int) -> Vector:
        vector = pool.take()
        np.copyto(vector, vectors[piece])
        return vector

    def free() -> list[int]:
        return [id(vector) for vector in pool.free]

    first, second = owned(0), owned(1)
    assert tree.add_own(Node(1, 2), second)
    assert tree.add_own(Node(0, 1), first)
    assert tree.tree.held[Node(0, 2)].vector is first
    assert free() == [id(second)]
    # One that came already, one that is added to the caller's, and one to which the caller's is added.
    assert not tree.add_own(Node(0, 1), owned(0))
    assert free() == [id(second)]
    tree.add(Node(3, 4), vectors[3])
    assert tree.add_own(Node(2, 3), third := owned(2))
    assert third is second
    assert tree.tree.held[Node(2, 4)].vector is third
    assert free() == []
    assert [id(term) for term in tree.terms()] == [id(first), id(third)]
    assert sum_of(tree).tobytes() == reference(vectors, 0, 4).tobytes()
    tree.reset()
    tree.add(Node(0, 1), vectors[0])
    assert tree.add_own(Node(1, 2), second := owned(1))
    assert tree.tree.held[Node(0, 2)].vector is second


def test_a_vector_that_is_lent_is_back_afterwards() -> None:
    pool = VectorPool(SIZE)
    with suppress(KeyError), pool.lent() as vector:
        assert (vector.shape, vector.dtype, pool.free) == ((SIZE,), np.dtype(np.float32), [])
        raise KeyError
    assert pool.take() is vector


def test_a_cleared_tree_takes_the_same_pieces_again() -> None:
    tree: TreeSum[int] = TreeSum(3, lambda left, right: left + right)
    tree.add(Node(0, 2), 1)
    tree.clear()
    assert not tree.covers(Node(0, 1))
    assert tree.add(Node(0, 3), 7)
    assert tree.total() == 7


def test_nodes_are_told_as_the_pieces_that_they_hold() -> None:
    assert [str(Node(3, 4)), str(Node(4, 8))] == ["3", "4-7"]


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
@pytest.mark.parametrize("joins", [False, True])
def test_the_terms_add_up_to_the_whole_sum(micro_batches: int, joins: bool) -> None:
    def add(_: Node, left: Vector, right: Vector, out: Vector) -> None:
        np.add(left, right, out=out)

    tree, vectors = VectorTree(micro_batches, VectorPool(SIZE), add if joins else None), pieces_of(micro_batches)
    for piece, vector in enumerate(vectors):
        tree.add(Node(piece, piece + 1), vector)
    assert len(tree.terms()) == (1 if joins else min(2, micro_batches))
    assert sum_of(tree).tobytes() == reference(vectors, 0, micro_batches).tobytes()
