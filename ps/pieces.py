"""The pieces of one round: which are free, who holds which until when, which are done. Pure."""

from dataclasses import dataclass, field

from common.reduction import Node, is_node, largest_node_at


@dataclass(frozen=True, slots=True)
class Held:
    """A node leased to the worker `rank` until `deadline`, in seconds of the coordinator's clock."""

    node: Node
    rank: int
    deadline: float


@dataclass
class Pieces:
    """The books over the pieces `[0, total)` of a round."""

    total: int
    #: Per piece, whether its sum has been accepted.
    done: list[bool] = field(init=False)
    #: No piece is in `held` twice, and none that is done.
    held: list[Held] = field(default_factory=list)
    #: Ranks on which a piece raised, in order.
    failed_on: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = [False] * self.total

    def free(self) -> list[int]:
        """Return the pieces that are neither done nor held, in order."""
        taken = {piece for held in self.held for piece in range(held.node.lo, held.node.hi)}
        return [piece for piece in range(self.total) if not self.done[piece] and piece not in taken]

    def take(self, rank: int, most: int, deadline: float, *, is_alone: bool) -> Node | None:
        """Lease the first free node of at most `most` pieces to `rank`, None where there is none for it.

        A worker on which a piece has failed gets that piece again only if it `is_alone`.
        """
        free = [piece for piece in self.free() if is_alone or rank not in self.failed_on.get(piece, ())]
        if not free:
            return None
        end = free[0]
        while end < self.total and end in free and end - free[0] < most:
            end += 1
        node = largest_node_at(free[0], end, self.total, most)
        self.held.append(Held(node, rank, deadline))
        return node

    def holding(self, rank: int) -> list[Held]:
        """Return what a worker holds."""
        return [held for held in self.held if held.rank == rank]

    def accept(self, node: Node) -> bool:
        """Mark a node as done; return False, changing nothing, where it is no node or a piece of it is done."""
        if not is_node(node.lo, node.hi, self.total) or any(self.done[node.lo : node.hi]):
            return False
        self.done[node.lo : node.hi] = [True] * len(node)
        self.held = [held for held in self.held if not overlap(held.node, node)]
        return True

    def release(self, rank: int) -> list[Node]:
        """Make what a worker holds free again, and return it."""
        released = [held.node for held in self.held if held.rank == rank]
        self.held = [held for held in self.held if held.rank != rank]
        return released

    def fail(self, node: Node, rank: int) -> bool:
        """Book that computing a node raised on `rank`; return whether it has now raised twice."""
        self.held = [held for held in self.held if not (held.rank == rank and overlap(held.node, node))]
        for piece in range(node.lo, node.hi):
            self.failed_on.setdefault(piece, []).append(rank)
        return any(len(self.failed_on[piece]) >= 2 for piece in range(node.lo, node.hi))

    def expired(self, now: float) -> list[Held]:
        """Return the leases whose deadline has passed."""
        return [held for held in self.held if held.deadline <= now]

    def next_deadline(self) -> float | None:
        """Return when the next lease runs out."""
        return min((held.deadline for held in self.held), default=None)

    def are_done(self) -> bool:
        """Tell whether the round is over."""
        return all(self.done)


def overlap(one: Node, other: Node) -> bool:
    """Tell whether two nodes share a piece."""
    return one.lo < other.hi and other.lo < one.hi
