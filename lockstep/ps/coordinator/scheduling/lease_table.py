"""The leases of one round: micro-batches that are free, that workers hold until a deadline, or that are done. Pure.

Several workers may hold a micro-batch at the same time: the first answer counts, and ends the leases of the others. An
evaluation's chunks are leased in the same way, and are called micro-batches here too.

Leases that others were faster with are withdrawn, and awaited until their workers answer. A worker that is stopped has
done so within a micro-batch, and can be given work meanwhile. One that is not may stand still: it gets nothing before
it has answered, and if it does not answer in the time of the lease, it is late as with any other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, is_node, largest_node_at
from lockstep.ps.coordinator.timer_queue import TimerQueue
from lockstep.ps.run.plan import Round

#: The states of a micro-batch. Bytes, since a round may have thousands of them, and `bytearray` searches in C.
FREE, HELD, DONE = range(3)


class HeldLease(msgspec.Struct, frozen=True):
    """A node leased to the worker `rank` until `deadline`, in seconds of the coordinator's clock."""

    node: Node
    rank: int
    deadline: float
    #: Its name among all that the server leases; in the order of granting.
    number: int = 0
    #: When it was granted.
    began: float = 0.0


@dataclass
class LeaseTable:
    """A worker computes the micro-batches `[0, total)` of a round."""

    total: int
    #: By rank, what a worker holds, in the order it was leased: none is empty, and no two of its leases overlap.
    held: dict[int, list[HeldLease]] = field(default_factory=dict)
    #: The numbers of leases that are not granted yet, from 1: those of other rounds are others.
    numbers: Iterator[int] = field(default_factory=partial(count, 1))
    #: All leases ever granted, with their ranks: results of any other micro-batches were not asked for.
    granted: set[tuple[int, Node]] = field(default_factory=set)
    #: By micro-batch, the ranks on which it raised, in order.
    failed_on: dict[int, list[int]] = field(default_factory=dict)
    #: Micro-batches that are leased, and accepted, by themselves only.
    single: frozenset[int] = frozenset()
    #: By micro-batch, the ranks that never get it.
    excluded: dict[int, frozenset[int]] = field(default_factory=dict)
    #: For each micro-batch, `HELD` if a lease in `held` has it, `DONE` if its sum was accepted, else `FREE`.
    _states: bytearray = field(init=False)
    #: For each micro-batch that is held, the ranks that hold it, the first one first.
    _holders: list[tuple[int, ...]] = field(init=False)
    #: By rank, when the first of its leases expires.
    deadlines: TimerQueue[int] = field(default_factory=TimerQueue)
    #: Numbers of micro-batches that are free, and that are not done.
    _free: int = field(init=False)
    _open: int = field(init=False)

    def __post_init__(self) -> None:
        self._states, self._holders = bytearray(self.total), [()] * self.total
        self._free = self._open = self.total

    @classmethod
    def for_audit(cls, total: int, excluded: dict[int, frozenset[int]], numbers: Iterator[int]) -> "LeaseTable":
        """Return a table of the micro-batches in `excluded` alone, none of which goes to a rank given there."""
        table = cls(total, single=frozenset(excluded), excluded=excluded, numbers=numbers)
        for micro_batch in set(range(total)) - table.single:
            table.skip(micro_batch)
        return table

    def free(self) -> int:
        """Return the number of micro-batches that are neither done nor held."""
        return self._free

    def is_complete(self) -> bool:
        """Tell whether all micro-batches are done."""
        return self._open == 0

    def lease(self, rank: int, most: int, deadline: float, now: float = 0.0, *, is_alone: bool) -> HeldLease | None:
        """Lease the first free node of at most `most` micro-batches to `rank`; None if no such node is free for it.

        A worker on which a micro-batch has failed gets that one again only if it `is_alone`.
        """
        start = self._states.find(FREE)
        while start >= 0 and not self._is_free_for(rank, start, is_alone):
            start = self._states.find(FREE, start + 1)
        if start < 0:
            return None
        end = self._end_of_free(rank, start, most, is_alone)
        node = largest_node_at(start, end, self.total, most)
        self._set_state(node, HELD)
        self._holders[node.lo : node.hi] = [(rank,)] * len(node)
        return self._grant(rank, node, deadline, now)

    def _end_of_free(self, rank: int, start: int, most: int, is_alone: bool) -> int:
        """Return the end of what may be leased together from `start` on, at most so many micro-batches."""
        if start in self.single:
            return start + 1
        states = self._states[start : start + most]
        stop = start + len(states) - len(states.lstrip(bytes([FREE])))
        if not self.single and not self.is_restricted():
            return stop
        end = start + 1
        while end < stop and end not in self.single and self._is_free_for(rank, end, is_alone):
            end += 1
        return end

    def may_copy(self, rank: int, node: Node) -> bool:
        """Tell whether a worker may be leased a node that others hold all of, and on which nothing has failed."""
        return all(
            self._states[one] == HELD
            and rank not in self._holders[one]
            and rank not in self.excluded.get(one, ())
            and one not in self.failed_on
            for one in range(node.lo, node.hi)
        )

    def copy(self, rank: int, node: Node, deadline: float, now: float) -> HeldLease:
        """Lease a node to `rank` as well that `may_copy` allows."""
        for one in range(node.lo, node.hi):
            self._holders[one] += (rank,)
        return self._grant(rank, node, deadline, now)

    def _grant(self, rank: int, node: Node, deadline: float, now: float) -> HeldLease:
        self.granted.add((rank, node))
        lease = HeldLease(node, rank, deadline, next(self.numbers), now)
        self._set_held(rank, [*self.held_by(rank), lease])
        return lease

    def _set_held(self, rank: int, leases: list[HeldLease]) -> None:
        """Replace all that a worker holds."""
        if leases:
            self.held[rank] = leases
            self.deadlines.set(rank, min(lease.deadline for lease in leases))
        else:
            self.held.pop(rank, None)
            self.deadlines.drop(rank)

    def _is_free_for(self, rank: int, micro_batch: int, is_alone: bool) -> bool:
        if self._states[micro_batch] != FREE or rank in self.excluded.get(micro_batch, ()):
            return False
        return is_alone or rank not in self.failed_on.get(micro_batch, ())

    def unassignable(self, ranks: Sequence[int]) -> list[int]:
        """Return the free micro-batches that none of `ranks` may be given."""
        free = [micro_batch for micro_batch in range(self.total) if self._states[micro_batch] == FREE]
        is_alone = len(ranks) == 1
        return [one for one in free if not any(self._is_free_for(rank, one, is_alone) for rank in ranks)]

    def skip(self, micro_batch: int) -> None:
        """Mark a free micro-batch as done although no worker computes it."""
        self._set_state(Node(micro_batch, micro_batch + 1), DONE)

    def _set_state(self, node: Node, state: int) -> None:
        """Change the state of micro-batches none of which is done: that is for good."""
        self._free += (len(node) if state == FREE else 0) - self._states[node.lo : node.hi].count(FREE)
        self._open -= len(node) if state == DONE else 0
        self._states[node.lo : node.hi] = bytes([state]) * len(node)

    def held_by(self, rank: int) -> list[HeldLease]:
        """Return a worker's leases."""
        return self.held.get(rank, [])

    def was_granted(self, rank: int, node: Node) -> bool:
        """Tell whether a worker was ever leased these micro-batches, perhaps among others."""
        if (rank, node) in self.granted:
            return True
        return any(who == rank and one.lo <= node.lo and node.hi <= one.hi for who, one in self.granted)

    def may_accept(self, node: Node) -> bool:
        """Tell whether this is a node of the tree none of whose micro-batches is done."""
        if not is_node(node.lo, node.hi, self.total) or DONE in self._states[node.lo : node.hi]:
            return False
        return len(node) == 1 or self.single.isdisjoint(range(node.lo, node.hi))

    def accept(self, node: Node) -> list[HeldLease] | None:
        """Mark a node as done; return the leases that end with it, which are all that overlap it.

        Their results would be refused. None, with nothing changed, if it is not a node or part of it is done.
        """
        if not self.may_accept(node):
            return None
        ended = [lease for rank in self.holders(node) for lease in self._end_leases(rank, node)]
        self._set_state(node, DONE)
        return ended

    def holders(self, node: Node) -> list[int]:
        """Return the ranks that hold part of a node. To ask each worker would be quadratic in them, over a round."""
        held = (rank for one in range(node.lo, node.hi) if self._states[one] == HELD for rank in self._holders[one])
        return list(dict.fromkeys(held))

    def release(self, rank: int) -> list[Node]:
        """Let the leases of a worker end, and return their nodes; parts that no other worker holds are free again."""
        return [lease.node for lease in self._end_leases(rank, Node(0, self.total))]

    def numbered(self, rank: int, number: int) -> HeldLease | None:
        """Return the lease of that number which a worker holds, None if it has ended."""
        return next((held for held in self.held_by(rank) if held.number == number), None)

    def is_held(self, lease: HeldLease) -> bool:
        """Tell whether a lease has not ended."""
        return self.numbered(lease.rank, lease.number) is not None

    def is_restricted(self) -> bool:
        """Tell whether not every worker may be given every micro-batch."""
        return bool(self.failed_on or self.excluded)

    def extend(self, rank: int, deadline: float) -> None:
        """Let what a worker holds expire at `deadline`: it has shown progress, and works through its leases in turn."""
        if rank in self.held:
            self._set_held(rank, [replace(lease, deadline=deadline) for lease in self.held[rank]])

    def postpone(self, by_s: float) -> None:
        """Let all leases expire later."""
        for rank, leases in list(self.held.items()):
            self._set_held(rank, [replace(lease, deadline=lease.deadline + by_s) for lease in leases])

    def hand_back(self, rank: int, micro_batch: int) -> None:
        """End a worker's lease of a micro-batch that is not done with its answer."""
        self._end_leases(rank, Node(micro_batch, micro_batch + 1))

    def record_failure(self, lease: HeldLease) -> bool:
        """Record that computing a lease raised; return whether a micro-batch has now raised twice."""
        self._end_leases(lease.rank, lease.node)
        micro_batches = range(lease.node.lo, lease.node.hi)
        for micro_batch in micro_batches:
            self.failed_on.setdefault(micro_batch, []).append(lease.rank)
        return any(len(self.failed_on[micro_batch]) >= 2 for micro_batch in micro_batches)

    def _end_leases(self, rank: int, node: Node) -> list[HeldLease]:
        """End a worker's leases that overlap `node`, and return them."""
        leases = self.held_by(rank)
        ended = [lease for lease in leases if overlap(lease.node, node)]
        if ended:
            for lease in ended:
                self._drop_holder(rank, lease.node)
            self._set_held(rank, [lease for lease in leases if not overlap(lease.node, node)])
        return ended

    def _drop_holder(self, rank: int, node: Node) -> None:
        """Make free again the part of a node that no worker but `rank` holds."""
        if self._holders[node.lo : node.hi] == [(rank,)] * len(node):
            self._set_state(node, FREE)
            return
        for one in range(node.lo, node.hi):
            self._holders[one] = tuple(holder for holder in self._holders[one] if holder != rank)
            if not self._holders[one]:
                self._set_state(Node(one, one + 1), FREE)

    def validate(self) -> None:
        """Raise AssertionError if the table contradicts itself: for tests, after each event."""
        expected = bytearray(state if state == DONE else FREE for state in self._states)
        holders: list[set[int]] = [set() for _ in range(self.total)]
        for rank, leases in self.held.items():
            assert leases, f"rank {rank} holds an empty list"
            for lease in leases:
                assert lease.rank == rank
                assert is_node(lease.node.lo, lease.node.hi, self.total), lease
                for one in range(lease.node.lo, lease.node.hi):
                    assert expected[one] != DONE, f"{lease} is done"
                    assert rank not in holders[one], f"rank {rank} holds micro-batch {one} twice"
                    expected[one] = HELD
                    holders[one].add(rank)
        assert self._states == expected, "a micro-batch is marked as held that no lease has"
        recorded = [self._holders[one] if expected[one] == HELD else () for one in range(self.total)]
        assert [sorted(one) for one in recorded] == [sorted(one) for one in holders], (
            "holders are not those of the leases"
        )
        first = {rank: min(lease.deadline for lease in leases) for rank, leases in self.held.items()}
        assert self.deadlines.times == first, "a lease expires at another time than is recorded"
        assert (self._free, self._open) == (expected.count(FREE), self.total - expected.count(DONE))


def overlap(one: Node, other: Node) -> bool:
    """Tell whether two nodes share a micro-batch."""
    return one.lo < other.hi and other.lo < one.hi


class WithdrawnLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that its worker is to stop computing."""

    #: One of several steps has no micro-batches.
    lease: HeldLease
    #: Its round, and when that began.
    round: Round
    round_began: float
    #: Since when its worker had brought nothing, and when the answer should be there. It is late if the lease expires.
    began: float
    due: float

    def times(self, now: float) -> tuple[float, float]:
        """Return how many seconds after its round had begun it was leased, and it is now."""
        return self.lease.began - self.round_began, now - self.round_began

    def postponed(self, by_s: float) -> "WithdrawnLease":
        """Return the same, all of whose times are later."""
        lease = replace(self.lease, deadline=self.lease.deadline + by_s)
        return replace(self, lease=lease, began=self.began + by_s, due=self.due + by_s)


@dataclass
class Withdrawals:
    """The leases that were withdrawn and are not answered."""

    #: By rank: none is empty.
    open: dict[int, dict[int, WithdrawnLease]] = field(default_factory=dict)
    #: By rank, when the first of them expires.
    deadlines: TimerQueue[int] = field(default_factory=TimerQueue)

    def add(self, withdrawn: WithdrawnLease) -> None:
        """Record that a lease was withdrawn."""
        lease = withdrawn.lease
        self.open.setdefault(lease.rank, {})[lease.number] = withdrawn
        self._set_deadline(lease.rank)

    def answer(self, rank: int, number: int) -> WithdrawnLease | None:
        """Record that a worker is past a lease; return that, None if no answer was awaited."""
        leases = self.open.get(rank)
        withdrawn = None if leases is None else leases.pop(number, None)
        if withdrawn is not None:
            self._set_deadline(rank)
        return withdrawn

    def has_any(self, rank: int) -> bool:
        """Tell whether a worker is still to answer."""
        return rank in self.open

    def stands_still(self, rank: int, now: float) -> bool:
        """Tell whether a worker should have answered by now."""
        leases = self.open.get(rank)
        return leases is not None and any(withdrawn.due <= now for withdrawn in leases.values())

    def began(self, rank: int) -> float | None:
        """Return since when a worker had brought nothing when a lease was withdrawn; None if it has answered all."""
        return min((withdrawn.began for withdrawn in self.open.get(rank, {}).values()), default=None)

    def remove(self, rank: int) -> None:
        """Expect no answer of a worker any more."""
        self.open.pop(rank, None)
        self.deadlines.drop(rank)

    def postpone(self, by_s: float) -> None:
        """Do not count some seconds in which the server did not run."""
        for rank, leases in self.open.items():
            leases.update({number: one.postponed(by_s) for number, one in leases.items()})
            self._set_deadline(rank)

    def _set_deadline(self, rank: int) -> None:
        leases = self.open.get(rank)
        if leases:
            self.deadlines.set(rank, min(one.lease.deadline for one in leases.values()))
        else:
            self.remove(rank)
