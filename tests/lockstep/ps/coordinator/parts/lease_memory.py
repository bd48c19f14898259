"""The memory of a multi-step lease, in which a test makes the steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.tally import Tally, pack_losses
from lockstep.common.protocol.messages import MultiStepLease
from lockstep.ps.coordinator.parts.team_lease import PartMade, StepMade

SLICES = 3


@dataclass
class MemoryByHand:
    """Memory that is read up to `made`, but for as many of the newest steps as are `unread` until the lease ends."""

    lease: MultiStepLease
    unread: int = 0
    has_room: bool = False
    #: The slices in the middle of which a process is, and so has the lock.
    inside: set[int] = field(default_factory=set)
    #: Whether updates of the lease may be made, and the slices whose locks the server has.
    may_begin: bool = True
    locked: set[int] = field(default_factory=set)
    moves: int = 0
    taken_over: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made = self.lease.first

    def read(self) -> tuple[int, int]:
        return self.made, max(self.lease.first, self.made - self.unread)

    def record(self, first: int, last: int) -> Sequence[StepMade]:
        return [step_made(step) for step in range(first, last)]

    def end(self, *, waits: bool = True) -> bool:
        self.locked = set(range(SLICES)) - self.inside
        if waits and self.inside:
            return False
        self.may_begin = False
        self.locked.clear()
        return True

    def leave(self) -> int | None:
        self.moves += 1
        if not self.has_room:
            return None
        self.may_begin = False
        self.locked.clear()
        self.inside.clear()
        return self.made

    def take_over(self, steps: int) -> None:
        self.taken_over.append(steps)


def step_made(step: int) -> StepMade:
    parts = (
        PartMade(node=Node(0, 2), process=1, began_s=0.0, ended_s=0.02, compute_s=0.015),
        PartMade(node=Node(2, 3), process=0, began_s=0.0, ended_s=0.01, compute_s=0.009),
    )
    return StepMade(
        step=step,
        rank=0,
        tally=Tally(2.5, 3, metrics=(1, 3)),
        losses=pack_losses([1.0, 0.5, 1.0]),
        parts=parts,
        round_s=0.03,
        update_s=0.001,
        checksum=7,
        rate=0.1,
    )
