"""The lease table against a plain model, whatever is done in whatever order."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, is_node
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, overlap

RANKS = st.integers(0, 3)


def members(node: Node) -> set[int]:
    return set(range(node.lo, node.hi))


def nodes_of(total: int) -> list[Node]:
    """Return all nodes of a tree."""
    return [Node(lo, hi) for lo in range(total) for hi in range(lo + 1, total + 1) if is_node(lo, hi, total)]


def number_of(lease: HeldLease) -> int:
    return lease.number


def taken(lease: HeldLease | None) -> Node | None:
    """Return the micro-batches of what was leased."""
    return None if lease is None else lease.node


def fail(table: LeaseTable, rank: int) -> bool:
    """Let the first lease of a worker raise."""
    return table.record_failure(table.held_by(rank)[0])


class LeaseTableMachine(RuleBasedStateMachine):
    """Records the same in a set of done micro-batches and a list of leases, some of which are of the same ones."""

    @initialize(total=st.integers(1, 20))
    def begin(self, total: int) -> None:
        self.table = LeaseTable(total)
        self.done: set[int] = set()
        self.held: list[HeldLease] = []
        self.count = 0
        self.failed: dict[int, list[int]] = {}

    def taken(self, rank: int | None = None) -> set[int]:
        """Return what anybody holds, or one worker."""
        return {one for held in self.held if rank in (None, held.rank) for one in members(held.node)}

    def free(self) -> list[int]:
        return [one for one in range(self.table.total) if one not in self.taken() | self.done]

    def grant(self, lease: HeldLease, rank: int, deadline: float, now: float) -> None:
        self.count += 1
        assert lease == HeldLease(lease.node, rank, deadline, self.count, now)
        assert self.table.was_granted(rank, lease.node)
        self.held.append(lease)

    def end_overlapping(self, node: Node) -> list[HeldLease]:
        ended = [held for held in self.held if members(held.node) & members(node)]
        self.held = [held for held in self.held if held not in ended]
        return ended

    @rule(rank=RANKS, most=st.integers(1, 20), deadline=st.integers(0, 9), now=st.integers(0, 9), alone=st.booleans())
    def take(self, rank: int, most: int, deadline: int, now: int, alone: bool) -> None:
        allowed = [micro_batch for micro_batch in self.free() if alone or rank not in self.failed.get(micro_batch, [])]
        lease = self.table.lease(rank, most, deadline, now, is_alone=alone)
        assert (lease is None) == (not allowed)
        if lease is not None:
            node = lease.node
            assert node.lo == allowed[0]
            assert set(range(node.lo, node.hi)) <= set(allowed)
            assert len(node) <= most
            assert is_node(node.lo, node.hi, self.table.total)
            self.grant(lease, rank, deadline, now)

    @precondition(lambda self: self.held)
    @rule(rank=RANKS, deadline=st.integers(0, 9), now=st.integers(0, 9), data=st.data())
    def copy(self, rank: int, deadline: int, now: int, data: st.DataObject) -> None:
        """Lease as well what others hold, or what a part or a parent of it is."""
        node = data.draw(st.sampled_from(self.held)).node
        change = data.draw(st.sampled_from(["same", "half", "parent"]))
        if change == "half" and len(node) > 1:
            node = data.draw(st.sampled_from(node.halves()))
        elif change == "parent":
            around = [one for one in nodes_of(self.table.total) if members(node) < members(one)]
            node = min(around, key=len, default=node)
        may = members(node) <= self.taken() - self.taken(rank) - set(self.failed)
        assert self.table.may_copy(rank, node) == may
        if may:
            self.grant(self.table.copy(rank, node, deadline, now), rank, deadline, now)

    @rule(lo=st.integers(-1, 20), length=st.integers(-1, 20))
    def accept(self, lo: int, length: int) -> None:
        node = Node(lo, lo + length)
        is_new = is_node(node.lo, node.hi, self.table.total) and not members(node) & self.done
        assert self.table.may_accept(node) == is_new
        ended = self.table.accept(node)
        assert (ended is not None) == is_new
        if ended is not None:
            self.done |= members(node)
            assert sorted(ended, key=number_of) == sorted(self.end_overlapping(node), key=number_of)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def accept_what_is_held(self, data: st.DataObject) -> None:
        """The first answer ends the leases of all that are at the same, and the second one counts no more."""
        lease = data.draw(st.sampled_from(self.held))
        ended = self.table.accept(lease.node)
        assert ended is not None
        assert lease in ended
        assert sorted(ended, key=number_of) == sorted(self.end_overlapping(lease.node), key=number_of)
        assert self.table.accept(lease.node) is None
        self.done |= members(lease.node)

    @rule(rank=RANKS)
    def release(self, rank: int) -> None:
        assert self.table.release(rank) == [held.node for held in self.held if held.rank == rank]
        self.held = [held for held in self.held if held.rank != rank]

    @rule(rank=RANKS, deadline=st.integers(0, 9))
    def extend(self, rank: int, deadline: int) -> None:
        self.table.extend(rank, deadline)
        self.held = [replace(held, deadline=deadline) if held.rank == rank else held for held in self.held]

    @precondition(lambda self: self.held)
    @rule(rank=RANKS, data=st.data())
    def fail(self, rank: int, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.held)).node
        of_rank = [held for held in self.held if held.rank == rank and held.node == node]
        if not of_rank:
            return
        outcome = self.table.record_failure(of_rank[0])
        self.held = [held for held in self.held if held not in of_rank]
        for micro_batch in range(node.lo, node.hi):
            self.failed.setdefault(micro_batch, []).append(rank)
        assert outcome == any(len(self.failed[micro_batch]) >= 2 for micro_batch in range(node.lo, node.hi))

    @rule(now=st.integers(0, 9))
    def expire(self, now: int) -> None:
        assert sorted(self.table.deadlines.due(now)) == sorted(
            {held.rank for held in self.held if held.deadline <= now}
        )

    @invariant()
    def agree(self) -> None:
        self.table.validate()
        assert self.table.free() == len(self.free())
        assert self.table.is_complete() == (len(self.done) == self.table.total)
        assert self.table.is_restricted() == bool(self.failed)
        assert self.table.deadlines.soonest() == min((held.deadline for held in self.held), default=None)
        assert all(self.table.is_held(held) for held in self.held)
        for rank in range(4):
            assert self.table.held_by(rank) == [held for held in self.held if held.rank == rank]
        for one in range(self.table.total):
            assert self.table.holders(Node(one, one + 1)) == [
                held.rank for held in self.held if one in members(held.node)
            ]


LeaseTableMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestLeaseTable = LeaseTableMachine.TestCase


def test_a_micro_batch_that_failed_goes_to_another() -> None:
    table = LeaseTable(4)
    assert table.lease(0, 1, 9.0, 8.0, is_alone=False) == HeldLease(Node(0, 1), 0, 9.0, number=1, began=8.0)
    assert fail(table, 0) is False
    assert taken(table.lease(0, 4, 9.0, is_alone=False)) == Node(1, 2)
    assert taken(table.lease(1, 4, 9.0, is_alone=False)) == Node(0, 1)


def test_a_micro_batch_that_failed_goes_to_the_same_worker_if_that_is_alone() -> None:
    table = LeaseTable(1)
    table.lease(0, 1, 9.0, is_alone=True)
    fail(table, 0)
    assert table.lease(0, 1, 9.0, is_alone=False) is None
    assert taken(table.lease(0, 1, 9.0, is_alone=True)) == Node(0, 1)
    assert fail(table, 0) is True


def planted(what: str) -> LeaseTable:
    """Return a table of which a micro-batch is held, with a contradiction."""
    table = LeaseTable(4)
    table.lease(0, 1, 9.0, is_alone=False)
    match what:
        case "done":
            table.accept(Node(1, 2))
            table.held[0].append(HeldLease(Node(1, 2), 0, 9.0))
        case "twice":
            table.held[0].append(HeldLease(Node(0, 1), 0, 9.0))
        case "unlisted":
            table.held[1] = [HeldLease(Node(0, 1), 1, 9.0)]
        case "elsewhere":
            table.held[1] = table.held.pop(0)
        case "not a node":
            table.held[1] = [HeldLease(Node(1, 3), 1, 9.0)]
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
        ("done", "HeldLease(node=Node(lo=1, hi=2), rank=0, deadline=9.0, number=0, began=0.0) is done"),
        ("twice", "rank 0 holds micro-batch 0 twice"),
        ("unlisted", "holders are not those of the leases"),
        ("elsewhere", ""),
        ("not a node", "HeldLease(node=Node(lo=1, hi=3), rank=1, deadline=9.0, number=0, began=0.0)"),
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
        assert taken(table.lease(micro_batch % 8, 1, 9.0, is_alone=False)) == Node(micro_batch, micro_batch + 1)
        assert table.accept(Node(micro_batch, micro_batch + 1))
    assert table.is_complete()


def test_what_failed_on_the_only_worker_may_still_be_assigned_to_it() -> None:
    table = LeaseTable(2)
    table.lease(0, 1, 9.0, is_alone=True)
    fail(table, 0)
    assert table.unassignable([0]) == []
    assert table.unassignable([0, 1]) == []
    table.lease(1, 1, 9.0, is_alone=False)
    fail(table, 1)
    assert table.unassignable([0, 1]) == [0]


def test_what_is_accepted_by_itself_is_not_accepted_as_part_of_a_node() -> None:
    table = LeaseTable(4, single=frozenset({1}))
    assert [table.may_accept(node) for node in (Node(0, 4), Node(0, 2), Node(2, 4), Node(1, 2))] == [
        False,
        False,
        True,
        True,
    ]
    assert table.accept(Node(0, 2)) is None
    assert table.free() == 4


@pytest.mark.parametrize("other", [Node(0, 2), Node(4, 6)])
def test_nodes_that_are_neighbours_do_not_overlap(other: Node) -> None:
    node = Node(2, 4)
    assert not overlap(node, other)
    assert not overlap(other, node)
    assert overlap(node, Node(0, 8))
    assert overlap(Node(3, 4), node)


def test_parts_of_a_lease_are_granted_to_its_worker_alone_even_when_it_has_ended() -> None:
    table = LeaseTable(8)
    assert taken(table.lease(0, 2, 9.0, is_alone=False)) == Node(0, 2)
    assert taken(table.lease(1, 4, 9.0, is_alone=False)) == Node(2, 4)
    table.release(0)
    nodes = [Node(0, 2), Node(0, 1), Node(1, 2), Node(0, 4), Node(1, 3), Node(2, 3), Node(4, 5)]
    assert [node for node in nodes if table.was_granted(0, node)] == [Node(0, 2), Node(0, 1), Node(1, 2)]
    assert [node for node in nodes if table.was_granted(1, node)] == [Node(2, 3)]


def test_a_worker_alone_gets_a_node_whole_although_it_failed_on_a_part_of_it() -> None:
    table = LeaseTable(4)
    table.lease(0, 1, 9.0, is_alone=False)
    table.lease(1, 1, 9.0, is_alone=False)
    fail(table, 1)
    table.release(0)
    assert taken(table.lease(1, 4, 9.0, is_alone=False)) == Node(0, 1)
    table.release(1)
    assert taken(table.lease(1, 4, 9.0, is_alone=True)) == Node(0, 4)


def test_leases_are_postponed_one_and_all() -> None:
    table = LeaseTable(4)
    for rank, deadline in ((0, 9.0), (1, 7.0), (0, 8.0)):
        table.lease(rank, 1, deadline, is_alone=False)
    table.postpone(5.0)
    assert [[lease.deadline for lease in table.held_by(rank)] for rank in range(2)] == [[14.0, 13.0], [12.0]]
    assert (table.deadlines.soonest(), table.deadlines.due(12.0), table.deadlines.due(11.9)) == (12.0, [1], [])
    assert table.release(2) == []
    table.validate()


# Second copies


def copied() -> LeaseTable:
    """Return a table of which ranks 0 and 1 hold the first two micro-batches, and rank 2 the next two."""
    table = LeaseTable(8)
    table.lease(0, 2, 9.0, is_alone=False)
    table.copy(1, Node(0, 2), 8.0, 3.0)
    table.lease(2, 2, 9.0, is_alone=False)
    return table


def test_what_is_done_or_has_failed_is_not_leased_twice() -> None:
    table = copied()
    table.accept(Node(2, 3))
    assert not table.may_copy(3, Node(2, 3))
    assert fail(table, 0) is False
    assert table.holders(Node(0, 2)) == [1]
    assert not table.may_copy(3, Node(0, 2))


def test_an_audit_is_not_copied_to_whoever_computed_it() -> None:
    table = LeaseTable.for_audit(4, {1: frozenset({0}), 2: frozenset({1})}, count(8))
    assert table.lease(1, 4, 9.0, is_alone=False) == HeldLease(Node(1, 2), 1, 9.0, number=8)
    assert [table.may_copy(rank, Node(1, 2)) for rank in range(3)] == [False, False, True]


def test_a_part_that_is_done_ends_the_larger_lease_of_which_the_rest_is_free_unless_others_hold_it() -> None:
    table = LeaseTable(8)
    first = table.lease(0, 4, 9.0, is_alone=False)
    second = table.copy(1, Node(0, 1), 9.0, 0.0)
    third = table.copy(2, Node(2, 4), 9.0, 0.0)
    assert table.accept(Node(0, 1)) == [first, second]
    assert (table.free(), table.held) == (5, {2: [third]})
    assert taken(table.lease(3, 4, 9.0, is_alone=False)) == Node(1, 2)
    assert table.is_held(third)
    assert not table.is_held(second)


def test_a_table_is_restricted_if_anything_failed_or_is_not_for_everybody() -> None:
    table = LeaseTable(4)
    assert not table.is_restricted()
    table.lease(0, 1, 9.0, is_alone=False)
    fail(table, 0)
    assert table.is_restricted()
    assert LeaseTable.for_audit(4, {1: frozenset({0})}, count(1)).is_restricted()
