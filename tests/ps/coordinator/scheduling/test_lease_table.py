"""The books over a round's pieces: against a plain model, whatever is done in whatever order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.aggregation.tree import Node, is_node
from ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, overlap

RANKS = st.integers(0, 3)


class PiecesMachine(RuleBasedStateMachine):
    """Books the same in a set of done pieces and a list of leases."""

    @initialize(total=st.integers(1, 20))
    def begin(self, total: int) -> None:
        self.pieces = LeaseTable(total)
        self.done: set[int] = set()
        self.held: list[HeldLease] = []
        self.failed: dict[int, list[int]] = {}

    def free(self) -> list[int]:
        taken = {piece for held in self.held for piece in range(held.node.lo, held.node.hi)}
        return [piece for piece in range(self.pieces.total) if piece not in taken | self.done]

    @rule(rank=RANKS, most=st.integers(1, 20), deadline=st.integers(0, 9), alone=st.booleans())
    def take(self, rank: int, most: int, deadline: int, alone: bool) -> None:
        allowed = [piece for piece in self.free() if alone or rank not in self.failed.get(piece, [])]
        node = self.pieces.take(rank, most, deadline, is_alone=alone)
        assert (node is None) == (not allowed)
        if node is not None:
            assert node.lo == allowed[0]
            assert set(range(node.lo, node.hi)) <= set(allowed)
            assert len(node) <= most
            assert is_node(node.lo, node.hi, self.pieces.total)
            self.held.append(HeldLease(node, rank, deadline))

    @rule(lo=st.integers(-1, 20), length=st.integers(-1, 20))
    def accept(self, lo: int, length: int) -> None:
        node = Node(lo, lo + length)
        members = set(range(node.lo, node.hi))
        is_new = is_node(node.lo, node.hi, self.pieces.total) and not members & self.done
        assert self.pieces.accept(node) == is_new
        if is_new:
            self.done |= members
            self.held = [held for held in self.held if not overlap(held.node, node)]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def accept_what_is_held(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.held)).node
        assert self.pieces.accept(node)
        assert not self.pieces.accept(node)
        self.done |= set(range(node.lo, node.hi))
        self.held = [held for held in self.held if not overlap(held.node, node)]

    @rule(rank=RANKS)
    def release(self, rank: int) -> None:
        assert self.pieces.release(rank) == [held.node for held in self.held if held.rank == rank]
        self.held = [held for held in self.held if held.rank != rank]

    @rule(rank=RANKS, deadline=st.integers(0, 9))
    def extend(self, rank: int, deadline: int) -> None:
        self.pieces.extend(rank, deadline)
        self.held = [HeldLease(held.node, rank, deadline) if held.rank == rank else held for held in self.held]

    @precondition(lambda self: self.held)
    @rule(rank=RANKS, data=st.data())
    def fail(self, rank: int, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.held)).node
        is_held = any(held.rank == rank and held.node == node for held in self.held)
        outcome = self.pieces.fail(node, rank)
        if not is_held:
            assert outcome is None
            return
        self.held = [held for held in self.held if held.node != node]
        for piece in range(node.lo, node.hi):
            self.failed.setdefault(piece, []).append(rank)
        assert outcome == any(len(self.failed[piece]) >= 2 for piece in range(node.lo, node.hi))

    @rule(now=st.integers(0, 9))
    def expire(self, now: int) -> None:
        assert sorted(self.pieces.expired(now)) == sorted({held.rank for held in self.held if held.deadline <= now})

    @invariant()
    def agree(self) -> None:
        self.pieces.validate()
        assert self.pieces.free() == len(self.free())
        assert self.pieces.are_done() == (len(self.done) == self.pieces.total)
        assert self.pieces.next_deadline() == min((held.deadline for held in self.held), default=None)
        for rank in range(4):
            assert self.pieces.holding(rank) == [held for held in self.held if held.rank == rank]


PiecesMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestPieces = PiecesMachine.TestCase


def test_a_piece_that_failed_goes_to_another() -> None:
    pieces = LeaseTable(4)
    node = pieces.take(0, 1, 9.0, is_alone=False)
    assert node == Node(0, 1)
    assert pieces.fail(node, 0) is False
    assert pieces.take(0, 4, 9.0, is_alone=False) == Node(1, 2)
    assert pieces.take(1, 4, 9.0, is_alone=False) == Node(0, 1)


def test_a_piece_that_failed_goes_to_the_same_worker_if_that_is_alone() -> None:
    pieces = LeaseTable(1)
    pieces.take(0, 1, 9.0, is_alone=True)
    pieces.fail(Node(0, 1), 0)
    assert pieces.take(0, 1, 9.0, is_alone=False) is None
    assert pieces.take(0, 1, 9.0, is_alone=True) == Node(0, 1)
    assert pieces.fail(Node(0, 1), 0) is True


def test_a_failure_of_a_piece_that_others_have_done_does_not_count() -> None:
    pieces = LeaseTable(2)
    pieces.take(0, 1, 9.0, is_alone=False)
    pieces.accept(Node(0, 1))
    assert pieces.fail(Node(0, 1), 0) is None
    assert pieces.fail(Node(0, 2**31), 0) is None
    assert not pieces.failed_on


def test_a_late_result_ends_the_lease_that_shares_pieces_with_it() -> None:
    pieces = LeaseTable(4)
    assert pieces.take(0, 4, 9.0, is_alone=True) == Node(0, 4)
    assert pieces.accept(Node(0, 2))
    assert pieces.holding(0) == []
    assert pieces.free() == 2


@pytest.mark.parametrize("corrupt", ["held twice", "not marked"])
def test_validate_finds_a_planted_contradiction(corrupt: str) -> None:
    pieces = LeaseTable(4)
    pieces.take(0, 1, 9.0, is_alone=False)
    if corrupt == "held twice":
        pieces.held[1] = [HeldLease(Node(0, 1), 1, 9.0)]
    else:
        pieces.held.clear()
    with pytest.raises(AssertionError):
        pieces.validate()


def test_four_thousand_pieces_are_no_trouble() -> None:
    pieces = LeaseTable(4096)
    for piece in range(4096):
        assert pieces.take(piece % 8, 1, 9.0, is_alone=False) == Node(piece, piece + 1)
        assert pieces.accept(Node(piece, piece + 1))
    assert pieces.are_done()
