"""A planted bug: a book of slots that forgets that a worker may be writing into one again."""

from collections.abc import Collection
from dataclasses import dataclass, field

from common.aggregation.tree import Node
from ps.coordinator.coordinator import Coordinator
from ps.coordinator.scheduling.buffer_pool import BufferPool
from ps.run.plan import Round


@dataclass
class Careless(BufferPool):
    """Lets a slot be read for any lease that ever named it."""

    named: dict[int, int] = field(default_factory=dict)

    def lend(self, rank: int, node: Node, held: Collection[Node], read: Collection[int] = ()) -> tuple[int, int]:
        slot, number = super().lend(rank, node, held, read)
        self.named[number] = slot
        return slot, number

    def slot_of(self, rank: int, number: int) -> int | None:
        return self.named.get(number)


class CarelessCoordinator(Coordinator):
    """Goes by that book."""

    def _open(self, following: Round) -> None:
        super()._open(following)
        self.state.buffers = Careless()
