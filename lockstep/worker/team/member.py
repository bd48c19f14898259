"""One process of a team at work on an order: carries out what `OrderProgress` decides. A shell.

The leader gives orders, and every process, the leader too, works on the newest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lockstep.common.errors import SharingError
from lockstep.common.protocol.team_memory import OWN_PARTS
from lockstep.common.runtime.clock import ThreadClock
from lockstep.worker.compute import Compute
from lockstep.worker.node_sums import StoppedError
from lockstep.worker.team.memory import TeamMemory
from lockstep.worker.team.pace import Pace, Waking
from lockstep.worker.team.progress import (
    SHORT_S,
    Action,
    ComputeNode,
    MakeSlice,
    OpenPart,
    Order,
    OrderOutcome,
    OrderProgress,
    OrderStage,
    OrderView,
)
from lockstep.worker.team.sums import OrderSums
from lockstep.worker.team.updates import SharedPlace, StepChain, UpdateMaker, weights_in

#: Seconds until a team that is too far ahead of the server looks again whether its entries were read.
READ_S = 0.001

#: Seconds for which the leader waits for that: the server is gone then.
SERVER_PATIENCE_S = 10.0

#: Orders of one plan after which it is looked again how long a micro-batch takes each process.
VIEW_ORDERS = 64

#: The process that gives orders.
LEADER = frozenset({0})


@dataclass
class OrderAtWork:
    """An order, and the progress of this process in it."""

    order: Order
    progress: OrderProgress
    #: The chain that the order is a step of, None for a lease.
    chain: StepChain | None = None
    #: The unit that was begun, and is to be finished next, and when it was.
    begun: ComputeNode | MakeSlice | None = None
    began: float = 0.0

    def drop(self) -> None:
        """Leave the unit that was begun; the lock of a slice is released."""
        begun, self.begun = self.begun, None
        if isinstance(begun, MakeSlice) and begun.stage is OrderStage.UPDATE and self.chain is not None:
            self.chain.updates.locks[begun.slice_].release()

    def is_made_by_others(self, memory: TeamMemory) -> bool:
        """Tell whether the sums are there of which this process computes a second copy."""
        begun = self.begun
        if not isinstance(begun, ComputeNode) or begun.row < OWN_PARTS:
            return False
        return memory.is_made(begun.node, self.order.number)

    def leave(self, memory: TeamMemory, now: float) -> bool:
        """Drop the unit that was begun; tell whether others have made it, so that this process looks for another."""
        is_made = self.is_made_by_others(memory)
        self.drop()
        if is_made:
            self.progress.on_refused(now)
        return is_made

    def goes_on(self) -> bool:
        """Tell whether something is due at once that takes no time to speak of."""
        if self.begun is not None:
            return True
        if self.progress.todo:
            return not isinstance(self.progress.todo[0], ComputeNode)
        return self.progress.waits_since is None


def asked_for_core(progress: OrderProgress, clock: ThreadClock, waking: Waking) -> float:
    """Return the time, after others had the core if they want it and this process would only make something again."""
    now = clock.now()
    if progress.makes_again(now):
        waking.yield_core()
        before, now = now, clock.now()
        if now > before + SHORT_S:
            progress.on_shared(now)
    return now


@dataclass
class TeamMember:
    """Carries out orders as one process of a team, for one session."""

    compute: Compute
    memory: TeamMemory
    clock: ThreadClock
    pace: Pace
    waking: Waking
    #: The server's memory as this process sees it; None if it is not shared.
    place: SharedPlace | None
    #: The last error of an order.
    error: str = ""
    #: Whether `advance` returns between the beginning of what it does and its end, as for a simulation.
    is_stepwise: bool = False
    #: The order that was begun last, and whether it is being carried out.
    last: OrderAtWork | None = None
    is_busy: bool = False
    sums: OrderSums = field(init=False)
    #: The steps in the server's memory, None before the first multi-step lease.
    chain: StepChain | None = None
    #: The memory that the weights are in, and the number of the order of the leader's that was begun last.
    _memory: int = 0
    _begun_last: int = 0

    def __post_init__(self) -> None:
        self.sums = OrderSums(self.compute, self.memory, self.pace)

    # Orders begin and end

    @property
    def order(self) -> Order | None:
        """The order that is being carried out."""
        return self.last.order if self.last is not None and self.is_busy else None

    def begin(self, order: Order) -> None:
        """Begin with an order; `SharingError` if the memory of its weights cannot be mapped."""
        self.stop()
        self._begun_last = order.number
        self.follow(order.memory)
        if order.steps is not None and (self.chain is None or self.chain.memory != order.memory):
            self._map(order.memory)
        if self.chain is not None:
            self.chain.started = self.clock.now()
        self._begin_step(order)

    def _map(self, memory: int) -> None:
        if self.chain is not None:
            self.chain.updates.close()
            self.chain = None
        if self.place is None:
            raise SharingError("the server's memory is not shared")
        self.chain = StepChain(UpdateMaker.open(self.sums, self.place), self.sums, memory)

    def _begin_step(self, order: Order) -> None:
        before, view = self.last, None
        if before is not None and order.steps is not None and before.order.steps is order.steps:
            view = before.progress.view
        chain = None if order.steps is None else self.chain
        if view is None or view.plan is not order.plan or order.number % VIEW_ORDERS == 0:
            view = self._view_of(order, chain)
        self.last, self.is_busy = OrderAtWork(order, OrderProgress(view, self.clock.now()), chain), True
        self.memory.show("at", order.number)
        if not order.plan.of(self.memory.process):
            self.pace.forget_speed(order.plan.workers)

    def _view_of(self, order: Order, chain: StepChain | None) -> OrderView:
        slices, updated = len(self.memory.shape.slices), 0 if chain is None else len(chain.updates.locks)
        return OrderView(
            process=self.memory.process,
            node=order.node,
            plan=order.plan,
            stages=order.stages(slices, updated, clips=self.compute.job.clip_norm is not None),
            seconds=self.memory.marks.processes["seconds"].tolist(),
            patience=self.pace.patience,
            has_core=self.pace.has_core,
        )

    def is_wanted(self) -> bool:
        """Tell whether the current unit is wanted: its order is the team's, and no other process has made it."""
        at = self.last
        if at is None or not self.is_busy or at.is_made_by_others(self.memory):
            return False
        return self.memory.marks.newest == at.order.number if at.chain is None else at.chain.is_wanted(at.order)

    def newest(self) -> Order | None:
        """Return the newest order, unless it is the one that was begun last."""
        number = self.memory.marks.newest
        return None if number <= self._begun_last else self.memory.read(number)

    def follow(self, memory: int) -> None:
        """Compute with the weights in the memory that an order names; `SharingError` if it cannot be mapped."""
        place = self.place
        if place is None or memory <= self._memory:
            return
        self.compute.move(weights_in(place.root, place.folder, self.compute.layout.size)[1])
        self._memory = memory

    def falls_asleep(self) -> bool:
        """Tell whether we may sleep now; otherwise, look once more: no process is woken that was not seen to sleep."""
        if self.waking.is_asleep:
            return True
        self.waking.show_asleep(is_asleep=True)
        self.look_again()
        return False

    def look_again(self) -> None:
        """Look at once, because another process may have woken us."""
        if self.last is not None:
            self.last.progress.due = min(self.last.progress.due, self.clock.now())

    def wake_up(self) -> None:
        """Show that we do not sleep, if we did."""
        self.waking.show_asleep(is_asleep=False)

    def stop(self) -> None:
        """Give up the current order, if any."""
        if self.last is not None:
            self.last.drop()
        self.is_busy = False

    def close(self) -> None:
        """Let go of everything, as the system does when the process ends."""
        self.stop()
        if self.chain is not None:
            self.chain.updates.close()
        self.memory.close()

    def due(self) -> float | None:
        """Return when `advance` has something to do, None without an order."""
        return self.last.progress.due if self.last is not None and self.is_busy else None

    # One thing after the other

    def advance(self) -> OrderOutcome | None:
        """Do the work that is due; return the outcome of the order if it has ended.

        One call does all that is due, but computes no more than a process is given of one order; if `is_stepwise`, it
        does one thing.
        """
        at, outcome, computed = self.last, self._advance(), 1
        while outcome is None and not self.is_stepwise and self.last is not None:
            if not self.last.goes_on():
                if self.last is not at or not at.progress.todo or computed == OWN_PARTS:
                    break
                computed += 1
            outcome = self._advance()
        return outcome

    def _advance(self) -> OrderOutcome | None:
        at = self.last
        if at is None:
            return OrderOutcome.STOPPED
        try:
            outcome = self._do(at, at.progress.action())
        except StoppedError:
            outcome = None
            if not at.leave(self.memory, self.clock.now()):
                outcome = OrderOutcome.STOPPED if at.chain is None else self._catch_up(at.order, at.chain)
        except Exception as error:  # noqa: BLE001  # a user's model may raise anything, and will again, lease by lease
            self.error = f"{type(error).__name__}: {error}"
            outcome = self._fail(at.order)
        if outcome is not None:
            self.stop()
        return outcome

    def _fail(self, order: Order) -> OrderOutcome:
        """Show that we cannot carry out an order."""
        self.memory.show("failed", order.number)
        self.waking.wake(self.pace.everybody)
        return OrderOutcome.FAILED

    def _do(self, at: OrderAtWork, action: Action) -> OrderOutcome | None:
        if isinstance(action, OrderStage):
            return self._look(at, action)
        if at.begun is None:
            self._begin_action(at, action)
            return None
        is_made = True
        if isinstance(at.begun, MakeSlice):
            is_made = self._make(at, at.begun)
        else:
            self._compute(at.order, at.begun)
        # Not before, since a lock has to be let go of whatever is raised.
        at.begun, self.waking.has_added = None, True
        if not is_made:
            return self._fail(at.order)
        at.progress.on_made(self.clock.now())
        return None

    def _compute(self, order: Order, part: ComputeNode) -> None:
        with self.waking.shows_running(self.memory.seen_at):
            self.sums.add_node(order, part)

    def _begin_action(self, at: OrderAtWork, action: ComputeNode | MakeSlice) -> None:
        self.wake_up()
        at.began, chain = self.clock.now(), at.chain
        if self.memory.has_made(at.order, action):
            at.progress.on_refused(at.began)
        elif isinstance(action, MakeSlice) and action.stage is OrderStage.UPDATE:
            # Whether it is wanted is seen under its lock.
            if chain is not None and chain.updates.begin(action.slice_, at.order):
                at.begun = action
            else:
                at.progress.on_refused(at.began)
        elif chain is not None and not self.is_wanted():
            raise StoppedError(0)
        elif chain is not None and isinstance(action, ComputeNode) and chain.is_ahead(at.order):
            self._await_server(at.progress, at.began)
        else:
            if isinstance(action, ComputeNode):
                self.memory.begin_row(action, at.order, at.began)
            at.begun = action

    def _await_server(self, progress: OrderProgress, now: float) -> None:
        """Wait until the server has read entries; the leader fails once that takes too long."""
        progress.due = now + READ_S
        if self.memory.process == 0 and now > progress.since + SERVER_PATIENCE_S:
            raise SharingError("the server does not read what the team has made")

    def _make(self, at: OrderAtWork, making: MakeSlice) -> bool:
        """Make a slice; return whether it is finite."""
        order, chain, found = at.order, at.chain, self.sums.operands(at.order)
        if found is None:
            # All sums were there: so others have made the slice, and are at the next step.
            raise StoppedError(0)
        operands, copies = found
        if chain is not None and making.stage is OrderStage.UPDATE:
            return chain.make(order, making.slice_, operands, copies, at.began)
        whole = self.memory.shape.slices[making.slice_]
        if chain is not None and making.stage is OrderStage.SQUARES:
            squares = self.memory.marks.squares[self.memory.process]
            chain.updates.add_squares(operands, self.sums.tally_of(order, copies).divisor, whole, squares)
        elif not self.sums.add_slice(operands, whole):
            return False
        self.memory.show_slice(self.memory.done(making.stage), making.slice_, order.number)
        return True

    def _look(self, at: OrderAtWork, stage: OrderStage) -> OrderOutcome | None:
        order, chain, progress = at.order, at.chain, at.progress
        now = self.memory.mine["seen_s"] = asked_for_core(progress, self.clock, self.waking)
        if not self.pace.patience.spin_s:
            self.waking.show_asleep(is_asleep=True)  # it will sleep unless it finds all, and need not look twice then
        if chain is not None and not self.is_wanted():
            self._wake_next(at, OrderStage.UPDATE)
            return self._catch_up(order, chain)
        if self.memory.marks.newest > order.last_number:
            return OrderOutcome.STOPPED
        missing = self._missing(at, stage)
        # It is the leader's to compute alone what a process cannot carry out, or to leave it.
        if missing and self.memory.process == 0 and self.memory.has_failed(order):
            return OrderOutcome.FAILED
        progress.on_seen(missing, now)
        if missing and progress.yields_core(now):
            self.waking.yield_core()
        if not missing:
            self._wake_next(at, stage)
            if chain is not None and stage is OrderStage.SUMS:
                chain.summed = now
        if not progress.is_done:
            return None
        return OrderOutcome.DONE if chain is None else self._catch_up(order, chain)

    def _missing(self, at: OrderAtWork, stage: OrderStage) -> Sequence[OpenPart] | Sequence[int]:
        order = at.order
        if stage is OrderStage.SUMS:
            if self.clock.now() >= at.progress.late:
                return self.memory.open_parts(order)
            return () if self.memory.sums_of(order) is not None else (0,)  # it does not matter what
        if at.chain is not None and stage is OrderStage.UPDATE:
            return at.chain.updates.missing(order.step)
        return self.memory.missing_slices(self.memory.done(stage), order.number)

    def _catch_up(self, order: Order, chain: StepChain) -> OrderOutcome | None:
        """Continue with the step that the team is at; return the outcome of the multi-step lease if it has ended."""
        following = chain.following(order)
        if isinstance(following, Order):
            self._begin_step(following)
            return None
        return following  # None if others are even further: then look again

    # Waking others

    def _wake_next(self, at: OrderAtWork, stage: OrderStage) -> None:
        """Wake the processes that can go on once a stage is complete, if this process may have made the last of it."""
        if self.waking.has_added:
            self.waking.has_added = False
            self.waking.wake(self._next_of(at, stage))

    def _next_of(self, at: OrderAtWork, stage: OrderStage) -> frozenset[int]:
        """Return the processes that have something to do once a stage of an order is complete."""
        order = at.order
        if stage is not at.progress.view.stages[-1][0]:
            return frozenset(order.plan.owners)
        if at.chain is None:
            return LEADER  # which gives the next one
        # Without a plan, they may all be further already; and after the last step all have something to do.
        plan = None if order.number == order.last_number else at.chain.next_plan(order.step)
        return self.pace.everybody if plan is None else self.pace.wanted_for(plan)
