"""Which lease each slot of sums was last named in: the vectors that workers write in memory which they share. Pure.

A worker writes a lease's sums into the slot that the lease names. It works through its leases in turn, some of which
may have ended here long ago. So what is in a slot is a result's only while no later lease has named that slot: the
worker may be writing that one's sums by now.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import SLOTS

#: Leases that a worker may hold: the next one is there when it finishes one. Each needs a slot for its sums.
WINDOW = SLOTS


@dataclass(frozen=True, slots=True)
class BufferLoan:
    """The lease that a slot was last named in."""

    #: The lease's, 0 if there was none.
    number: int = 0
    #: Its micro-batches.
    node: Node | None = None


@dataclass
class BufferPool:
    """The slots of all workers in one round."""

    #: By rank, for each slot.
    lent: dict[int, list[BufferLoan]] = field(default_factory=dict)

    def lend(self, rank: int, number: int, node: Node, held: Collection[Node], read: Collection[int] = ()) -> int:
        """Return a slot for the sums of a lease, which is later than all before; `held` and `read` as in `needed`.

        Of the slots that are not needed, it is the one that was named longest ago: its lease has ended here, and the
        worker is more likely to be done with it than with the other.
        """
        needed = self.needed(rank, held, read)
        slots = self.lent.setdefault(rank, [BufferLoan()] * SLOTS)
        free = [slot for slot in range(SLOTS) if slot not in needed]
        assert free, f"rank {rank} holds {held}, and {read} are read: no slot is free"
        slot = min(free, key=lambda slot: slots[slot].number)
        slots[slot] = BufferLoan(number, node)
        return slot

    def needed(self, rank: int, held: Collection[Node], read: Collection[int]) -> list[int]:
        """Return the slots of a worker that cannot be named now.

        They are those of the nodes that it holds (if two were named for one node, the later one) and those of leases
        with the numbers in `read`, whose results have come and whose sums are still being read.
        """
        slots = self.lent.get(rank, ())
        return [
            slot
            for slot, lent in enumerate(slots)
            if lent.number in read
            or (lent.node in held and lent.number == max(one.number for one in slots if one.node == lent.node))
        ]

    def slot_of(self, rank: int, number: int) -> int | None:
        """Return the slot that holds the sums of a lease whose result has come, None if it may not any more."""
        numbers = [lent.number for lent in self.lent.get(rank, ())]
        return numbers.index(number) if number and number in numbers else None
