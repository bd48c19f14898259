"""Orders of a team: a lease, or one step of a multi-step lease. Pure."""

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import OF_A_STEP, Work
from lockstep.worker.team.division import OrderPlan
from lockstep.worker.team.progress import OrderStage


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """A multi-step lease, as in `MultiStepLease`; its orders have the numbers from that of its first step on."""

    number: int
    first: int
    last: int
    reads: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The work of a team's processes together; the numbers of orders only rise."""

    number: int
    work: Work
    step: int
    node: Node
    plan: OrderPlan
    #: The memory that holds the weights, as in `Lease`.
    memory: int = 0
    #: The multi-step lease of which this is a step, None for a lease.
    steps: Steps | None = None

    def stages(self, slices: int, updated: int, *, clips: bool) -> tuple[tuple[OrderStage, int], ...]:
        """Return what is made, one after the other, with the number of slices: those of the team, and of updates."""
        sums = (OrderStage.SUMS, 0)
        if self.steps is None:
            return (sums, (OrderStage.ADDED, slices)) if self.work in OF_A_STEP else (sums,)
        update = (OrderStage.UPDATE, updated)
        return (sums, (OrderStage.SQUARES, slices), update) if clips else (sums, update)

    def following(self, step: int, plan: OrderPlan) -> "Order":
        """Return the order of a later step of the same multi-step lease."""
        return replace(self, number=self.number + step - self.step, step=step, plan=plan)

    @property
    def first_number(self) -> int:
        """The number of the order with which the leader began."""
        return self.number if self.steps is None else self.number - (self.step - self.steps.first)

    @property
    def last_number(self) -> int:
        """The last number that belongs to the leader's order."""
        return self.number if self.steps is None else self.number + self.steps.last - self.step
