"""Orders of a team, the next unit of one process in one, and when it takes over what others are late with. Pure.

An order is done in stages, each of which is a set of units: the sums of nodes, then slices of vectors. A process makes
the units that the plan gives it, and looks whether all others are there. If some are not there when they should be, a
process that has nothing to do makes them too. There is nothing to agree on: every copy of a unit has the same bits.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import OF_A_STEP, Work
from lockstep.common.protocol.team_memory import MOST_SLICES, OWN_PARTS, WHOLE_ROW
from lockstep.worker.team.division import OrderPlan, share_of


class OrderStage(Enum):
    """The stages that the processes of a team complete together, in this order."""

    #: Sums over nodes of the step's tree, or tallies of an evaluation's.
    SUMS = "sums"
    #: The squares of slices of the gradient, by whose sum it is clipped.
    SQUARES = "squares"
    #: Slices of the sums over the order.
    ADDED = "added sums"
    #: Slices of the update.
    UPDATE = "update"


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
        """Return the stages in their order, each with its number of slices: `slices`, or `updated` for the update."""
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


class OrderOutcome(Enum):
    """The end of an order for a process."""

    #: All of it is done, of a multi-step lease the last step.
    DONE = "done"
    #: Some process cannot carry it out.
    FAILED = "failed"
    #: It is not wanted any more.
    STOPPED = "stopped"


class ComputeNode(NamedTuple):
    """Compute the sums over a node into the process's vector of that number."""

    node: Node
    row: int


class MakeSlice(NamedTuple):
    """Make a slice of a stage's vector."""

    stage: OrderStage
    slice_: int


#: A unit to make, or a stage in which to look for missing units.
Action = ComputeNode | MakeSlice | OrderStage


class Patience(msgspec.Struct, frozen=True):
    """The seconds for which a process waits for others before it makes what they are late with."""

    #: How much longer than expected a unit may take: so many seconds, and this part of a micro-batch.
    slack_s: float
    slack: float
    #: For so long it looks again and again, without a pause: as long as equal processes may differ in a step.
    spin_s: float
    #: Up to which factor in their times processes count as equally fast.
    even: float
    #: Most processes that have a core at a time.
    cores: int = MOST_SLICES


#: For processes with a core each, and for processes that wait for one: then a late process most often waits too.
PATIENT, CROWDED = Patience(0.003, 0.75, 0.004, 1.25), Patience(0.05, 4.0, 0.0, 2.0)


def patience_of(processes: int, cores: int) -> Patience:
    """Return how long so many processes on so many cores wait for one another."""
    return PATIENT if processes <= cores else replace(CROWDED, cores=cores)


#: Most seconds that a process waits, asleep, until it looks again.
SLEEP_S = 0.05

#: Seconds that a micro-batch is expected to take a process of unknown speed.
UNKNOWN_S = 1.0


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order as one process sees it: its tree, plan and stages, and the times to expect."""

    process: int
    node: Node
    #: Micro-batches of the whole tree.
    micro_batches: int
    plan: OrderPlan
    #: The stages in their order, each with its number of slices.
    stages: tuple[tuple[OrderStage, int], ...]
    #: Seconds that a micro-batch takes each process, 0 if that is not known.
    seconds: Sequence[float]
    patience: Patience

    def expected_s(self) -> float:
        """Return the seconds until the sums of all parts should be there."""
        each = dict.fromkeys((part.process for part in self.plan.parts), 0.0)
        for part in self.plan.parts:
            each[part.process] += len(part.node) * (self.seconds[part.process] or UNKNOWN_S)
        return max(each.values())

    def slack_s(self) -> float:
        """Return how much later they may be there."""
        slowest = max(self.seconds[part.process] or UNKNOWN_S for part in self.plan.parts)
        return self.patience.slack_s + self.patience.slack * slowest


@dataclass
class OrderProgress:
    """The progress of a process in an order."""

    view: OrderView
    #: Since when it is in this stage, when it looks again, and from when on others are late.
    since: float
    due: float = field(init=False)
    late: float = field(init=False)
    stage: OrderStage = field(init=False)
    todo: deque[ComputeNode | MakeSlice] = field(default_factory=deque)
    #: When it first looked in this stage and did not find all, None if it has not.
    waits_since: float | None = None
    #: The vector that the next part of another process goes into.
    _row: int = OWN_PARTS
    _place: int = -1

    def __post_init__(self) -> None:
        self._begin_stage(self.since)

    @property
    def is_done(self) -> bool:
        """True if all stages are done."""
        return self._place == len(self.view.stages)

    def looks_again(self, now: float) -> bool:
        """Tell whether it looks for missing units without a pause."""
        return not self.todo and self.due <= now

    def action(self) -> Action:
        """Return the next action, to be done from `due` on."""
        return self.todo[0] if self.todo else self.stage

    def on_made(self, now: float) -> None:
        """Record that the next unit is there."""
        made, took_s = self.todo.popleft(), now - self.due
        # Slices are equally long, and so may take others as long as us; sums that others help with come one by one.
        late = now + self.view.patience.slack_s + took_s if isinstance(made, MakeSlice) else now
        self.due, self.late = now, max(self.late, late)

    def on_refused(self, now: float) -> None:
        """Record that it cannot be made, because another process is making it."""
        self.todo.popleft()
        self.due, self.late = now, now + self.view.patience.slack_s

    def on_seen(self, missing: Sequence[Node] | Sequence[int], idle: Sequence[int], now: float) -> None:
        """Record the units that were missing, in order, and the processes that have nothing to do."""
        if not missing:
            self._begin_stage(now)
            return
        if self.waits_since is None:
            self.waits_since = now
        if now >= self.late:
            self._take_over(missing, idle, now)
        else:
            spins = now < self.waits_since + self.view.patience.spin_s
            self.due = now if spins else min(self.late, now + SLEEP_S)

    def _begin_stage(self, now: float) -> None:
        self._place, self.since, self.due, self.waits_since = self._place + 1, now, now, None
        if self.is_done:
            return
        view, (self.stage, slices) = self.view, self.view.stages[self._place]
        if self.stage is OrderStage.SUMS:
            self.todo.extend(ComputeNode(node, row) for row, node in enumerate(view.plan.of(view.process)))
            self.late = now + view.expected_s() + view.slack_s()
        else:
            self.todo.extend(MakeSlice(self.stage, slice_) for slice_ in view.plan.slices_of(view.process, slices))
            self.late = now + view.patience.slack_s

    def _take_over(self, missing: Sequence[Node] | Sequence[int], idle: Sequence[int], now: float) -> None:
        """Make one of the units that are missing; idle processes share them."""
        view = self.view
        place = idle.index(view.process) if view.process in idle else 0
        unit = missing[place % len(missing)]
        self.due = now
        if not isinstance(unit, Node):
            self.todo.append(MakeSlice(self.stage, unit))
        elif self._row < WHOLE_ROW:
            helpers = len(range(place % len(missing), max(len(idle), 1), len(missing)))
            share = share_of(unit, view.micro_batches, helpers, place // len(missing))
            self.todo.append(ComputeNode(share, self._row))
            self._row += 1
            self.late = now + view.slack_s()
        else:
            # It has no other vector left, and needs none.
            self.todo.append(ComputeNode(view.node, WHOLE_ROW))
