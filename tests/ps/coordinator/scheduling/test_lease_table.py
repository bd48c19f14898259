"""The lease table against a plain model, whatever is done in whatever order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.aggregation.tree import Node, is_node
from ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, overlap

RANKS = st.integers(0, 3)


def members(node: Node) -> set[int]:
    return set(range(node.lo, node.hi))


class LeaseTableMachine(RuleBasedStateMachine):
    """Records the same in a set of done micro-batches and a list of leases."""

    @initialize(total=st.integers(1, 20))
    def begin(self, total: int) -> None:
        self.table = LeaseTable(total)
        self.done: set[int] = set()
        self.held: list[HeldLease] = []
        self.failed: dict[int, list[int]] = {}

    def free(self) -> list[int]:
        taken = {micro_batch for held in self.held for micro_batch in range(held.node.lo, held.node.hi)}
        return [micro_batch for micro_batch in range(self.table.total) if micro_batch not in taken | self.done]

    @rule(rank=RANKS, most=st.integers(1, 20), deadline=st.integers(0, 9), alone=st.booleans())
    def take(self, rank: int, most: int, deadline: int, alone: bool) -> None:
        allowed = [micro_batch for micro_batch in self.free() if alone or rank not in self.failed.get(micro_batch, [])]
        node = self.table.lease(rank, most, deadline, is_alone=alone)
        assert (node is None) == (not allowed)
        if node is not None:
            assert node.lo == allowed[0]
            assert set(range(node.lo, node.hi)) <= set(allowed)
            assert len(node) <= most
            assert is_node(node.lo, node.hi, self.table.total)
            self.held.append(HeldLease(node, rank, deadline))

    @rule(lo=st.integers(-1, 20), length=st.integers(-1, 20))
    def accept(self, lo: int, length: int) -> None:
        node = Node(lo, lo + length)
        is_new = is_node(node.lo, node.hi, self.table.total) and not members(node) & self.done
        assert self.table.accept(node) == is_new
        if is_new:
            self.done |= members(node)
            self.held = [held for held in self.held if not members(held.node) & members(node)]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def accept_what_is_held(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.held)).node
        assert self.table.accept(node)
        assert not self.table.accept(node)
        self.done |= members(node)
        self.held = [held for held in self.held if not members(held.node) & members(node)]

    @rule(rank=RANKS)
    def release(self, rank: int) -> None:
        assert self.table.release(rank) == [held.node for held in self.held if held.rank == rank]
        self.held = [held for held in self.held if held.rank != rank]

    @rule(rank=RANKS, deadline=st.integers(0, 9))
    def extend(self, rank: int, deadline: int) -> None:
        self.table.extend(rank, deadline)
        self.held = [HeldLease(held.node, rank, deadline) if held.rank == rank else held for held in self.held]

    @precondition(lambda self: self.held)
    @rule(rank=RANKS, data=st.data())
    def fail(self, rank: int, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.held)).node
        is_held = any(held.rank == rank and held.node == node for held in self.held)
        outcome = self.table.record_failure(node, rank)
        if not is_held:
            assert outcome is None
            return
        self.held = [held for held in self.held if held.node != node]
        for micro_batch in range(node.lo, node.hi):
            self.failed.setdefault(micro_batch, []).append(rank)
        assert outcome == any(len(self.failed[micro_batch]) >= 2 for micro_batch in range(node.lo, node.hi))

    @rule(now=st.integers(0, 9))
    def expire(self, now: int) -> None:
        assert sorted(self.table.expired(now)) == sorted({held.rank for held in self.held if held.deadline <= now})

    @invariant()
    def agree(self) -> None:
        self.table.validate()
        assert self.table.free() == len(self.free())
        assert self.table.is_complete() == (len(self.done) == self.table.total)
        assert self.table.next_deadline() == min((held.deadline for held in self.held), default=None)
        for rank in range(4):
            assert self.table.held_by(rank) == [held for held in self.held if held.rank == rank]


LeaseTableMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestLeaseTable = LeaseTableMachine.TestCase


def test_a_micro_batch_that_failed_goes_to_another() -> None:
    table = LeaseTable(4)
    node = table.lease(0, 1, 9.0, is_alone=False)
    assert node == Node(0, 1)
    assert table.record_failure(node, 0) is False
    assert table.lease(0, 4, 9.0, is_alone=False) == Node(1, 2)
    assert table.lease(1, 4, 9.0, is_alone=False) == Node(0, 1)


def test_a_micro_batch_that_failed_goes_to_the_same_worker_if_that_is_alone() -> None:
    table = LeaseTable(1)
    table.lease(0, 1, 9.0, is_alone=True)
    table.record_failure(Node(0, 1), 0)
    assert table.lease(0, 1, 9.0, is_alone=False) is None
    assert table.lease(0, 1, 9.0, is_alone=True) == Node(0, 1)
    assert table.record_failure(Node(0, 1), 0) is True


def test_a_failure_of_a_micro_batch_that_others_have_done_does_not_count() -> None:
    table = LeaseTable(2)
    table.lease(0, 1, 9.0, is_alone=False)
    table.accept(Node(0, 1))
    assert table.record_failure(Node(0, 1), 0) is None
    assert table.record_failure(Node(0, 2**31), 0) is None
    assert not table.failed_on


def test_a_late_result_ends_the_lease_that_shares_micro_batches_with_it() -> None:
    table = LeaseTable(4)
    assert table.lease(0, 4, 9.0, is_alone=True) == Node(0, 4)
    assert table.accept(Node(0, 2))
    assert table.held_by(0) == []
    assert table.free() == 2


def planted(what: str) -> LeaseTable:
    """Return a table of which a micro-batch is held, with a contradiction."""
    table = LeaseTable(4)
    table.lease(0, 1, 9.0, is_alone=False)
    match what:
        case "twice":
            table.held[1] = [HeldLease(Node(0, 1), 1, 9.0)]
        case "unmarked":
            table.held.clear()
        case "empty":
            table.held[1] = []
        case "later":
            table.held[0] = [HeldLease(Node(0, 1), 0, 10.0)]
    return table


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("twice", "HeldLease(node=Node(lo=0, hi=1), rank=1, deadline=9.0) is done or held"),
        ("unmarked", "a micro-batch is marked as held that no lease has"),
        ("empty", "rank 1 holds an empty list"),
        ("later", "a lease expires at another time than is recorded"),
    ],
)
def test_validate_finds_a_planted_contradiction(what: str, told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        planted(what).validate()
    assert str(caught.value) == told


def test_four_thousand_micro_batches_are_no_trouble() -> None:
    table = LeaseTable(4096)
    for micro_batch in range(4096):
        assert table.lease(micro_batch % 8, 1, 9.0, is_alone=False) == Node(micro_batch, micro_batch + 1)
        assert table.accept(Node(micro_batch, micro_batch + 1))
    assert table.is_complete()


def test_what_failed_on_the_only_worker_may_still_be_assigned_to_it() -> None:
    table = LeaseTable(2)
    table.lease(0, 1, 9.0, is_alone=True)
    table.record_failure(Node(0, 1), 0)
    assert table.unassignable([0]) == []
    assert table.unassignable([0, 1]) == []
    table.lease(1, 1, 9.0, is_alone=False)
    table.record_failure(Node(0, 1), 1)
    assert table.unassignable([0, 1]) == [0]


def test_what_is_accepted_by_itself_is_not_accepted_as_part_of_a_node() -> None:
    table = LeaseTable(4, single=frozenset({1}))
    assert [table.may_accept(node) for node in (Node(0, 4), Node(0, 2), Node(2, 4), Node(1, 2))] == [
        False,
        False,
        True,
        True,
    ]
    assert not table.accept(Node(0, 2))
    assert table.free() == 4


def test_all_that_hold_a_part_of_a_node_lose_it_and_who_has_done_its_part_holds_nothing() -> None:
    table = LeaseTable(4)
    for rank in range(4):
        table.lease(rank, 1, 9.0, is_alone=False)
    table.accept(Node(0, 1))
    assert table.holders(Node(0, 4)) == [1, 2, 3]
    table = LeaseTable(4)
    for rank in range(4):
        table.lease(rank, 1, 9.0, is_alone=False)
    assert table.accept(Node(0, 4))
    assert not table.held
    table.validate()


@pytest.mark.parametrize("other", [Node(0, 2), Node(4, 6)])
def test_nodes_that_are_neighbours_do_not_overlap(other: Node) -> None:
    node = Node(2, 4)
    assert not overlap(node, other)
    assert not overlap(other, node)
    assert overlap(node, Node(0, 8))
    assert overlap(Node(3, 4), node)


def test_parts_of_a_lease_are_granted_to_its_worker_alone_even_when_it_has_ended() -> None:
    table = LeaseTable(8)
    assert table.lease(0, 2, 9.0, is_alone=False) == Node(0, 2)
    assert table.lease(1, 4, 9.0, is_alone=False) == Node(2, 4)
    table.release(0)
    nodes = [Node(0, 2), Node(0, 1), Node(1, 2), Node(0, 4), Node(1, 3), Node(2, 3), Node(4, 5)]
    assert [node for node in nodes if table.was_granted(0, node)] == [Node(0, 2), Node(0, 1), Node(1, 2)]
    assert [node for node in nodes if table.was_granted(1, node)] == [Node(2, 3)]


def test_a_failure_and_a_result_concern_the_holders_of_their_own_micro_batches_only() -> None:
    table = LeaseTable(4)
    for rank in range(3):
        table.lease(rank, 1, 9.0, is_alone=False)
    assert table.holders(Node(2, 4)) == [2]
    assert table.record_failure(Node(2, 3), 2) is False
    assert table.failed_on == {2: [2]}


def test_a_worker_alone_gets_a_node_whole_although_it_failed_on_a_part_of_it() -> None:
    table = LeaseTable(4)
    table.lease(0, 1, 9.0, is_alone=False)
    table.lease(1, 1, 9.0, is_alone=False)
    table.record_failure(Node(1, 2), 1)
    table.release(0)
    assert table.lease(1, 4, 9.0, is_alone=False) == Node(0, 1)
    table.release(1)
    assert table.lease(1, 4, 9.0, is_alone=True) == Node(0, 4)


def test_leases_are_postponed_one_and_all() -> None:
    table = LeaseTable(4)
    for rank, deadline in ((0, 9.0), (1, 7.0), (0, 8.0)):
        table.lease(rank, 1, deadline, is_alone=False)
    table.postpone(5.0)
    assert [[lease.deadline for lease in table.held_by(rank)] for rank in range(2)] == [[14.0, 13.0], [12.0]]
    assert (table.next_deadline(), table.expired(12.0), table.expired(11.9)) == (12.0, [1], [])
    assert table.release(2) == []
    table.validate()
