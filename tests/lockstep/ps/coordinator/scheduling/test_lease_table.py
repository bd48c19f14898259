"""The lease table against a plain model, whatever is done in whatever order."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, is_node
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, overlap

RANKS = st.integers(0, 3)

#: Micro-batches that are leased by themselves; and what an audit computes again, with those that may not.
SINGLE = st.frozensets(st.integers(0, 19), max_size=3)
AUDITED = st.dictionaries(st.integers(0, 19), st.frozensets(RANKS), max_size=6)


def members(node: Node) -> set[int]:
    return set(range(node.lo, node.hi))


def nodes_of(total: int) -> list[Node]:
    """Return all nodes of a tree."""
    return [Node(lo, hi) for lo in range(total) for hi in range(lo + 1, total + 1) if is_node(lo, hi, total)]


def number_of(lease: HeldLease) -> int:
    return lease.number


class LeaseTableMachine(RuleBasedStateMachine):
    """Records the same in a set of done micro-batches and a list of leases, some of which are of the same ones."""

    @initialize(total=st.integers(1, 20), single=st.just(frozenset[int]()) | SINGLE, audited=st.just(None) | AUDITED)
    def begin(self, total: int, single: frozenset[int], audited: dict[int, frozenset[int]] | None) -> None:
        """A table is that of a round, some of whose micro-batches go by themselves, or of an audit of a few of them."""
        self.excluded = {one: ranks for one, ranks in (audited or {}).items() if one < total}
        self.count = 0 if audited is None else 7
        if audited is None:
            self.table = LeaseTable(total, single=single)
        else:
            self.table = LeaseTable.for_audit(total, self.excluded, numbers=count(8))
        self.single = single if audited is None else frozenset(self.excluded)
        self.done: set[int] = set() if audited is None else set(range(total)) - self.single
        self.nodes = nodes_of(total)
        self.held: list[HeldLease] = []
        self.granted: list[HeldLease] = []
        self.failed: dict[int, list[int]] = {}

    def may_be_one(self, node: Node) -> bool:
        """Tell whether micro-batches may be leased, and accepted, together."""
        return is_node(node.lo, node.hi, self.table.total) and (len(node) == 1 or not members(node) & self.single)

    def allowed(self, rank: int, *, is_alone: bool) -> list[int]:
        """Return what a worker may be given: not what it computed before, and not what failed on it."""
        return [
            one
            for one in self.free()
            if rank not in self.excluded.get(one, ()) and (is_alone or rank not in self.failed.get(one, []))
        ]

    def taken(self, rank: int | None = None) -> set[int]:
        """Return what anybody holds, or one worker."""
        return {one for held in self.held if rank in (None, held.rank) for one in members(held.node)}

    def free(self) -> list[int]:
        return sorted(set(range(self.table.total)) - self.taken() - self.done)

    def grant(self, lease: HeldLease, rank: int, deadline: float, now: float) -> None:
        self.count += 1
        assert lease == HeldLease(lease.node, rank, deadline, self.count, now)
        self.granted.append(lease)
        self.held.append(lease)

    def end_overlapping(self, node: Node) -> list[HeldLease]:
        ended = [held for held in self.held if members(held.node) & members(node)]
        self.held = [held for held in self.held if held not in ended]
        return ended

    @rule(rank=RANKS, most=st.integers(1, 20), deadline=st.integers(0, 9), now=st.integers(0, 9), alone=st.booleans())
    def take(self, rank: int, most: int, deadline: int, now: int, alone: bool) -> None:
        """A lease begins with the first micro-batch that may be given, and is as large as may be."""
        allowed = self.allowed(rank, is_alone=alone)
        lease = self.table.lease(rank, most, deadline, now, is_alone=alone)
        assert (lease is None) == (not allowed)
        if lease is not None:
            begin_there = [node for node in self.nodes if node.lo == allowed[0] and len(node) <= most]
            may_be = [node for node in begin_there if members(node) <= set(allowed) and self.may_be_one(node)]
            assert lease.node == max(may_be, key=len)
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
            node = min((one for one in self.nodes if members(node) < members(one)), key=len, default=node)
        excluded = {one for one, ranks in self.excluded.items() if rank in ranks}
        may = members(node) <= self.taken() - self.taken(rank) - set(self.failed) - excluded
        assert self.table.may_copy(rank, node) == may
        if may:
            self.grant(self.table.copy(rank, node, deadline, now), rank, deadline, now)

    @rule(lo=st.integers(-1, 20), length=st.integers(-1, 20), data=st.data(), is_node=st.booleans())
    def accept(self, lo: int, length: int, data: st.DataObject, is_node: bool) -> None:
        node = data.draw(st.sampled_from(self.nodes)) if is_node else Node(lo, lo + length)
        is_new = self.may_be_one(node) and not members(node) & self.done
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

    @rule(rank=RANKS, others=st.sets(RANKS))
    def ask(self, rank: int, others: set[int]) -> None:
        """What was ever granted stays so, with its parts; what no worker may be given is known."""
        granted = [members(lease.node) for lease in self.granted if lease.rank == rank]
        for node in self.nodes:
            assert self.table.was_granted(rank, node) == any(members(node) <= whole for whole in granted)
            holding = [holder for one in range(node.lo, node.hi) for holder in self.holders(one)]
            assert self.table.holders(node) == list(dict.fromkeys(holding))
        for ranks in ([rank], sorted(others)):
            may = {one for other in ranks for one in self.allowed(other, is_alone=len(ranks) == 1)}
            assert self.table.unassignable(ranks) == [one for one in self.free() if one not in may]

    def holders(self, micro_batch: int) -> list[int]:
        """Return who holds a micro-batch, the first one first."""
        return [held.rank for held in self.held if micro_batch in members(held.node)]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held))
        self.table.hand_back(lease.rank, data.draw(st.integers(lease.node.lo, lease.node.hi - 1)))
        self.held.remove(lease)

    @rule(by=st.integers(0, 3))
    def postpone(self, by: int) -> None:
        self.table.postpone(by)
        self.held = [replace(held, deadline=held.deadline + by) for held in self.held]

    @rule(rank=RANKS)
    def release(self, rank: int) -> None:
        assert self.table.release(rank) == [held.node for held in self.held if held.rank == rank]
        self.held = [held for held in self.held if held.rank != rank]

    @rule(rank=RANKS, deadline=st.integers(0, 9))
    def extend(self, rank: int, deadline: int) -> None:
        self.table.extend(rank, deadline)
        self.held = [replace(held, deadline=deadline) if held.rank == rank else held for held in self.held]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held))
        outcome = self.table.record_failure(lease)
        self.held.remove(lease)
        for micro_batch in members(lease.node):
            self.failed.setdefault(micro_batch, []).append(lease.rank)
        assert outcome == any(len(self.failed[micro_batch]) >= 2 for micro_batch in members(lease.node))

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
        assert self.table.is_restricted() == bool(self.failed or self.excluded)
        assert self.table.deadlines.soonest() == min((held.deadline for held in self.held), default=None)
        now = {held.number: held for held in self.held}
        for lease in self.granted:
            assert self.table.numbered(lease.rank, lease.number) == now.get(lease.number)
            assert self.table.is_held(lease) is (lease.number in now)
        for rank in range(4):
            assert self.table.held_by(rank) == [held for held in self.held if held.rank == rank]


LeaseTableMachine.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=100, stateful_step_count=40
)
TestLeaseTable = LeaseTableMachine.TestCase


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 20), st.data())
def test_nodes_overlap_if_they_share_a_micro_batch(total: int, data: st.DataObject) -> None:
    one, other = (data.draw(st.sampled_from(nodes_of(total))) for _ in range(2))
    assert overlap(one, other) == bool(members(one) & members(other))


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
