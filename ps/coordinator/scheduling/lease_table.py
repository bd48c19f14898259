"""The pieces of one round: which are free, who holds which until when, which are done. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.aggregation.tree import Node, is_node, largest_node_at
from ps.run.timer_queue import TimerQueue

#: How a piece stands. Bytes, since a round may have thousands of pieces, and `bytearray` looks through them in C.
FREE, HELD, DONE = range(3)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A node leased to the worker `rank` until `deadline`, in seconds of the coordinator's clock."""

    node: Node
    rank: int
    deadline: float


@dataclass
class LeaseTable:
    """The books over the pieces `[0, total)` of a round."""

    total: int
    #: By rank, what a worker holds, in the order it was leased: none is empty, and no two leases overlap.
    held: dict[int, list[HeldLease]] = field(default_factory=dict)
    #: All that was ever leased, and to which rank: what comes of other pieces was not asked for.
    given: set[tuple[int, Node]] = field(default_factory=set)
    #: Ranks on which a piece raised, in order.
    failed_on: dict[int, list[int]] = field(default_factory=dict)
    #: Pieces that are leased, and accepted, by themselves only.
    alone: frozenset[int] = frozenset()
    #: By piece, a rank that never gets it.
    barred: dict[int, int] = field(default_factory=dict)
    #: For each piece, `HELD` where a lease in `held` has it, `DONE` where its sum was accepted, else `FREE`.
    _standing: bytearray = field(init=False)
    #: For each piece that is held, the rank that holds it.
    _holder: list[int] = field(init=False)
    #: By rank, when the first of its leases runs out.
    _deadlines: TimerQueue[int] = field(default_factory=TimerQueue)
    #: Numbers of pieces that are free, and that are not done.
    _free: int = field(init=False)
    _open: int = field(init=False)

    def __post_init__(self) -> None:
        self._standing, self._holder = bytearray(self.total), [0] * self.total
        self._free = self._open = self.total

    @classmethod
    def once_more(cls, total: int, barred: dict[int, int]) -> "LeaseTable":
        """Return the books over the pieces in `barred` alone, none of which goes to the rank that it is barred for."""
        pieces = cls(total, alone=frozenset(barred), barred=barred)
        for piece in set(range(total)) - pieces.alone:
            pieces.drop(piece)
        return pieces

    def free(self) -> int:
        """Return the number of pieces that are neither done nor held."""
        return self._free

    def are_done(self) -> bool:
        """Tell whether the round is over."""
        return self._open == 0

    def take(self, rank: int, most: int, deadline: float, *, is_alone: bool) -> Node | None:
        """Lease the first free node of at most `most` pieces to `rank`, None where there is none for it.

        A worker on which a piece has failed gets that piece again only if it `is_alone`.
        """
        start = self._standing.find(FREE)
        while start >= 0 and not self._is_free_for(rank, start, is_alone):
            start = self._standing.find(FREE, start + 1)
        if start < 0:
            return None
        end = start + 1
        if start not in self.alone:
            while end - start < most and end < self.total and self._is_free_for(rank, end, is_alone):
                if end in self.alone:
                    break
                end += 1
        node = largest_node_at(start, end, self.total, most)
        self.given.add((rank, node))
        self._mark(node, HELD)
        self._holder[node.lo : node.hi] = [rank] * len(node)
        self._hold(rank, [*self.holding(rank), HeldLease(node, rank, deadline)])
        return node

    def _hold(self, rank: int, leases: list[HeldLease]) -> None:
        """Let these be all that a worker holds."""
        if leases:
            self.held[rank] = leases
            self._deadlines.set(rank, min(held.deadline for held in leases))
        else:
            self.held.pop(rank, None)
            self._deadlines.drop(rank)

    def _is_free_for(self, rank: int, piece: int, is_alone: bool) -> bool:
        if self._standing[piece] != FREE or self.barred.get(piece) == rank:
            return False
        return is_alone or rank not in self.failed_on.get(piece, ())

    def hopeless(self, ranks: Sequence[int]) -> list[int]:
        """Return the free pieces that none of `ranks` can be given."""
        free = [piece for piece in range(self.total) if self._standing[piece] == FREE]
        is_alone = len(ranks) == 1
        return [piece for piece in free if not any(self._is_free_for(rank, piece, is_alone) for rank in ranks)]

    def drop(self, piece: int) -> None:
        """Mark a free piece as done, which nobody is to compute."""
        self._mark(Node(piece, piece + 1), DONE)

    def _mark(self, node: Node, standing: int) -> None:
        before = self._standing[node.lo : node.hi]
        self._standing[node.lo : node.hi] = bytes([standing]) * len(node)
        self._free += (len(node) if standing == FREE else 0) - before.count(FREE)
        self._open -= (len(node) if standing == DONE else 0) - before.count(DONE)

    def holding(self, rank: int) -> list[HeldLease]:
        """Return what a worker holds."""
        return self.held.get(rank, [])

    def were_given(self, rank: int, node: Node) -> bool:
        """Tell whether a worker was ever asked for these pieces, perhaps among others."""
        if (rank, node) in self.given:
            return True
        return any(who == rank and one.lo <= node.lo and node.hi <= one.hi for who, one in self.given)

    def may_accept(self, node: Node) -> bool:
        """Tell whether this is a node of which no piece is done."""
        if not is_node(node.lo, node.hi, self.total) or DONE in self._standing[node.lo : node.hi]:
            return False
        return len(node) == 1 or self.alone.isdisjoint(range(node.lo, node.hi))

    def accept(self, node: Node) -> bool:
        """Mark a node as done; return False, changing nothing, where it is no node or a piece of it is done.

        Leases that share a piece with it end: what they would bring would be refused.
        """
        if not self.may_accept(node):
            return False
        for rank in self.holders(node):
            self._drop(rank, node)
        self._mark(node, DONE)
        return True

    def holders(self, node: Node) -> list[int]:
        """Return who holds a piece of a node. To ask each worker would be quadratic in them, over a round."""
        held = (self._holder[piece] for piece in range(node.lo, node.hi) if self._standing[piece] == HELD)
        return list(dict.fromkeys(held))

    def release(self, rank: int) -> list[Node]:
        """Make what a worker holds free again, and return it."""
        return self._drop(rank, Node(0, self.total))

    def extend(self, rank: int, deadline: float) -> None:
        """Let what a worker holds run out at `deadline`: it was just heard, and works through its leases in turn."""
        if rank in self.held:
            self._hold(rank, [HeldLease(held.node, rank, deadline) for held in self.held[rank]])

    def put_off(self, by_s: float) -> None:
        """Let all that is held run out later."""
        for rank, leases in list(self.held.items()):
            self._hold(rank, [HeldLease(held.node, rank, held.deadline + by_s) for held in leases])

    def fail(self, node: Node, rank: int) -> bool | None:
        """Book that computing a node raised on `rank`; return whether a piece has now raised twice.

        None, with nothing changed, where `rank` does not hold just this node: others are on it, or have done it.
        """
        if all(held.node != node for held in self.holding(rank)):
            return None
        self._drop(rank, node)
        for piece in range(node.lo, node.hi):
            self.failed_on.setdefault(piece, []).append(rank)
        return any(len(self.failed_on[piece]) >= 2 for piece in range(node.lo, node.hi))

    def _drop(self, rank: int, node: Node) -> list[Node]:
        """End a worker's leases that share a piece with `node`, and return them."""
        dropped = [held.node for held in self.holding(rank) if overlap(held.node, node)]
        for one in dropped:
            self._mark(one, FREE)
        self._hold(rank, [held for held in self.holding(rank) if not overlap(held.node, node)])
        return dropped

    def expired(self, now: float) -> list[int]:
        """Return the ranks that hold a lease whose deadline has passed."""
        return self._deadlines.due(now)

    def next_deadline(self) -> float | None:
        """Return when the next lease runs out."""
        return self._deadlines.soonest()

    def validate(self) -> None:
        """Raise AssertionError where the books contradict one another: for tests, after each step."""
        expected = bytearray(piece if piece == DONE else FREE for piece in self._standing)
        for rank, leases in self.held.items():
            assert leases, f"rank {rank} holds an empty list"
            for held in leases:
                assert held.rank == rank
                assert is_node(held.node.lo, held.node.hi, self.total), held
                assert expected[held.node.lo : held.node.hi] == bytes(len(held.node)), f"{held} is done or held twice"
                expected[held.node.lo : held.node.hi] = bytes([HELD]) * len(held.node)
        assert self._standing == expected, "a piece is marked as held that no lease has"
        first = {rank: min(held.deadline for held in leases) for rank, leases in self.held.items()}
        assert self._deadlines.times == first, "a lease runs out at another time than is booked"
        assert (self._free, self._open) == (expected.count(FREE), self.total - expected.count(DONE))


def overlap(one: Node, other: Node) -> bool:
    """Tell whether two nodes share a piece."""
    return one.lo < other.hi and other.lo < one.hi
