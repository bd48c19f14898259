"""Orders of a team, the next unit of one process in one, and when it takes over what others are late with. Pure.

An order is done in stages, each of which is a set of units: the sums of nodes, then slices of vectors. A process makes
the units that the plan gives it, then those that no process has begun, and then those that are not there when they
should be: so a process that waits for a core delays the others by little more than a unit. There is nothing to agree
on: every copy of a unit has the same bits.
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
from lockstep.worker.team.division import OrderPlan, TeamPart


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


class BegunCopy(NamedTuple):
    """The sums over a part that some process has begun to compute."""

    process: int
    began: float
    #: When the process was last seen to run.
    seen: float


class OpenPart(NamedTuple):
    """A part of an order whose sums are not there."""

    part: TeamPart
    #: Its copy that was begun last, None if no process has begun with it.
    begun: BegunCopy | None = None


#: A unit to make, or a stage in which to look for missing units.
Action = ComputeNode | MakeSlice | OrderStage


class Patience(msgspec.Struct, frozen=True):
    """The seconds for which a process waits for others before it makes what they have begun and are late with."""

    #: How much longer than expected a unit may take: so many seconds, and this part of its time.
    slack_s: float
    slack: float
    #: For so long it looks again and again, without a pause: as long as equal processes may differ in a step.
    spin_s: float
    #: Up to which factor in their times processes count as equally fast.
    even: float
    #: Most processes that have a core at a time.
    cores: int = MOST_SLICES


#: For processes with a core each, and for processes that wait for one: then a late process most often waits too.
PATIENT, CROWDED = Patience(0.0003, 0.5, 0.004, 1.25), Patience(0.05, 4.0, 0.0, 2.0)


def patience_of(processes: int, cores: int) -> Patience:
    """Return how long so many processes on so many cores wait for one another."""
    return PATIENT if processes <= cores else replace(CROWDED, cores=cores)


#: For this share of a part's time, its process may show nothing although it has a core.
SILENT = 0.125

#: Seconds that a process looks again and again before it yields its core in between: most waits are shorter.
SHORT_S = 0.0005

#: Seconds for which it makes nothing again that others are late with, as long as other processes want its core.
SHARED_S = 0.03

#: Most seconds that a process waits, asleep, until it looks again.
SLEEP_S = 0.05

#: Seconds that a micro-batch is expected to take a process of unknown speed.
UNKNOWN_S = 1.0


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order as one process sees it: its node, plan and stages, and the times to expect."""

    process: int
    node: Node
    plan: OrderPlan
    #: The stages in their order, each with its number of slices.
    stages: tuple[tuple[OrderStage, int], ...]
    #: Seconds that a micro-batch takes each process, 0 if that is not known.
    seconds: Sequence[float]
    patience: Patience
    #: Whether this process has a core for most of its time. Otherwise other programs want that core, and would lose it
    #: to second copies.
    has_core: bool = True

    def late(self, one: OpenPart) -> float:
        """Return from when on the sums over a part are late: at once if no process has begun with them."""
        if one.begun is None:
            return 0.0
        began, seen = one.begun.began, one.begun.seen
        takes_s = len(one.part.node) * (self.seconds[one.begun.process] or UNKNOWN_S)
        by = began + (1 + self.patience.slack) * takes_s + self.patience.slack_s
        # Kernels show again and again that they run, or else they have no core; other models may not show it at all.
        has_stopped_by = seen + SILENT * takes_s + self.patience.slack_s
        return min(by, has_stopped_by) if self.has_core and seen > began else by

    def is_own(self, one: OpenPart) -> bool:
        """Tell whether a part is left to this process, which may have begun with it before it was restarted."""
        return one.part.process == self.process and (one.begun is None or one.begun.process == self.process)


@dataclass
class OrderProgress:
    """The progress of a process in an order."""

    #: The same for all steps with one plan.
    view: OrderView
    #: Since when it is in this stage, when it looks again, and from when on others are late.
    since: float
    due: float = field(init=False)
    late: float = field(init=False)
    stage: OrderStage = field(init=False)
    todo: deque[ComputeNode | MakeSlice] = field(default_factory=deque)
    #: When it first looked since it made something, and did not find all or something to make; None if it has not.
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

    def yields_core(self, now: float) -> bool:
        """Tell whether it looks again without a pause, and may be without its core for some milliseconds before."""
        looks = not self.todo and self.due <= now
        return looks and self.waits_since is not None and now >= self.waits_since + SHORT_S

    def makes_again(self, now: float) -> bool:
        """Tell whether it has nothing to do but to make what others have begun and are late with."""
        return not self.todo and self.waits_since is not None and now >= self.late

    def on_shared(self, now: float) -> None:
        """Record that another process has used its core: that is of more use than a second copy, for a while."""
        if now < self.since + SHARED_S:
            self.late = now + self.view.patience.slack_s

    def action(self) -> Action:
        """Return the next action, to be done from `due` on."""
        return self.todo[0] if self.todo else self.stage

    def on_made(self, now: float) -> None:
        """Record that the next unit is there."""
        made, took_s = self.todo.popleft(), now - self.due
        # Slices are equally long, and so may take others as long as us; but of an update each has a lock.
        is_shown, self.waits_since = isinstance(made, ComputeNode) or made.stage is OrderStage.UPDATE, None
        self.due, self.late = now, now if is_shown else now + self.view.patience.slack_s + took_s

    def on_refused(self, now: float) -> None:
        """Record that it cannot be made: another process is making it, or its place is taken."""
        refused = self.todo.popleft()
        self.due, self.late = now, now if isinstance(refused, ComputeNode) else now + self.view.patience.slack_s

    def on_seen(self, missing: Sequence[OpenPart] | Sequence[int], now: float) -> None:
        """Record the units that were missing, in order: they need not be known before they are late."""
        if not missing:
            self._begin_stage(now)
            return
        unit = self._choose(missing, now) if now >= self.late else None
        if unit is not None:
            self.due = now
            self.todo.append(unit)
            return
        if self.waits_since is None:
            self.waits_since = now
        spins = now < self.waits_since + self.view.patience.spin_s
        self.due = now if spins else min(self.late, now + SLEEP_S)

    def _begin_stage(self, now: float) -> None:
        self._place, self.since, self.due, self.waits_since = self._place + 1, now, now, None
        if self.is_done:
            return
        view, (self.stage, slices) = self.view, self.view.stages[self._place]
        self.late = now
        if self.stage is OrderStage.SUMS:
            # The others take over the first one last: so it need not look before.
            self.todo.extend(ComputeNode(node, 0) for node in view.plan.of(view.process)[:1])
        else:
            self.todo.extend(MakeSlice(self.stage, slice_) for slice_ in view.plan.slices_of(view.process, slices))
            if view.process not in view.plan.owners:
                # A slow process would hold up those that have slices, unless they are away.
                self.late = now + CROWDED.slack_s
            elif self.stage is not OrderStage.UPDATE:
                self.late = now + view.patience.slack_s

    def _choose(self, missing: Sequence[OpenPart] | Sequence[int], now: float) -> ComputeNode | MakeSlice | None:
        """Return the next unit to make, None if all are begun and not late."""
        view = self.view
        parts = [one for one in missing if isinstance(one, OpenPart)]
        slices = [one for one in missing if not isinstance(one, OpenPart)]
        if slices:
            return MakeSlice(self.stage, slices[view.process % len(slices)])
        own = next(filter(view.is_own, parts), None)
        if own is not None:
            return ComputeNode(own.part.node, view.plan.of(view.process).index(own.part.node))
        self.late = min(self._late(one, now) for one in parts)
        # From the end, since their processes begin at the other one; and not all of us the same.
        unbegun = [one for one in reversed(parts) if one.begun is None]
        late = unbegun or [one for one in parts if self._late(one, now) <= now]
        return self._take_over(late[view.process % len(late)].part.node) if late else None

    def _late(self, one: OpenPart, now: float) -> float:
        """Return from when on a part is late; if its clock is ahead of ours, since the beginning of the stage."""
        if one.begun is not None and one.begun.began > now:
            one = OpenPart(one.part, BegunCopy(one.begun.process, self.since, self.since))
        return self.view.late(one)

    def _take_over(self, node: Node) -> ComputeNode:
        if self._row == WHOLE_ROW:
            # It has no other vector left, and needs none.
            return ComputeNode(self.view.node, WHOLE_ROW)
        self._row += 1
        return ComputeNode(node, self._row - 1)
