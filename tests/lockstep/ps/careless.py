"""A planted bug: a book of slots that forgets that a worker may be writing into one again."""

from collections.abc import Collection
from dataclasses import dataclass, field

from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.scheduling.round_state import BufferPool
from lockstep.ps.run.plan import Round


@dataclass
class Careless(BufferPool):
    """Lets a slot be read for any lease that ever named it."""

    named: dict[int, int] = field(default_factory=dict)

    def lend(self, rank: int, number: int, needed: Collection[int] = ()) -> int:
        self.named[number] = super().lend(rank, number, needed)
        return self.named[number]

    def slot_of(self, rank: int, number: int) -> int | None:
        return self.named.get(number)


class CarelessCoordinator(Coordinator):
    """Goes by that book."""

    def open_round(self, following: Round) -> None:
        super().open_round(following)
        self.state.buffers = Careless()
