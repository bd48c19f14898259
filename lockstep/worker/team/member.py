"""One process of a team at work on an order: carries out what `OrderProgress` decides. A shell.

The leader gives orders, and every process, the leader too, works on the newest. The steps of a multi-step lease follow
one another without new orders: the process that makes the first slice of an update publishes the next plan with it.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import SharingError
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.messages import OF_A_STEP, Work
from lockstep.common.protocol.shared_files import WEIGHTS, weights_shape
from lockstep.common.protocol.team_memory import (
    BEGAN_S,
    COMPUTE_S,
    COUNT,
    ENDED_S,
    ENTRIES,
    IGNORED,
    LOSS_SUM,
    METRICS,
    WEIGHT,
    divisors_of,
    write_tally,
)
from lockstep.common.runtime.clock import ThreadClock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.worker.compute import Compute
from lockstep.worker.node_sums import StoppedError
from lockstep.worker.team.additions import additions_of
from lockstep.worker.team.division import OrderPlan, OrderWork, Planner, Speed, missing_parts
from lockstep.worker.team.memory import RESULT, Computed, Copies, TeamMemory
from lockstep.worker.team.order import Order
from lockstep.worker.team.progress import (
    SLEEP_S,
    Action,
    ComputeNode,
    Look,
    MakeSlice,
    OrderProgress,
    OrderStage,
    OrderView,
    Patience,
)
from lockstep.worker.team.slices import Operands, SliceAdder
from lockstep.worker.team.updates import UpdateMaker, UpdatePlace

#: Seconds until a team that is too far ahead of the server looks again whether its entries were read.
READ_S = 0.001

#: Seconds for which the leader waits for that: the server is gone then.
SERVER_PATIENCE_S = 10.0

#: Orders of one plan after which it is looked again how long a micro-batch takes each process.
VIEW_ORDERS = 64

#: Seconds after which one that was not woken, and has not looked by itself, is taken for dead.
IDLE_S = 4 * SLEEP_S

#: The process that gives orders.
LEADER = frozenset({0})


class Bells(Protocol):
    """By which processes of a team wake one another."""

    def ring(self, process: int) -> None:
        """Wake a process."""
        ...


class OrderOutcome(Enum):
    """The end of an order for a process."""

    #: All of it is done, of a multi-step lease the last step.
    DONE = "done"
    #: Some process cannot carry it out.
    FAILED = "failed"
    #: It is not wanted any more.
    STOPPED = "stopped"


@dataclass
class TeamMember:
    """Carries out orders as one process of a team, for one session."""

    compute: Compute
    memory: TeamMemory
    clock: ThreadClock
    bells: Bells
    patience: Patience
    #: Where the server's memory is; None if it is not shared.
    place: UpdatePlace | None
    session: int = 1
    #: The last error of an order.
    error: str = ""
    #: Whether `advance` returns between the beginning of what it does and its end, as for a simulation.
    is_stepwise: bool = False
    order: Order | None = None
    #: The last order that was begun here.
    last: Order | None = None
    progress: OrderProgress | None = None
    planner: Planner = field(init=False)
    adder: SliceAdder = field(init=False)
    everybody: frozenset[int] = field(init=False)
    _updates: UpdateMaker | None = None
    #: The memory that `_updates` is in.
    _updated_memory: int = -1
    #: Which memory the weights are in, and the number of the order of the leader's that was begun last.
    _memory: int = 0
    _begun_last: int = 0
    #: The current order as this process sees it: the same for all steps with one plan.
    _view: OrderView | None = None
    #: The sums that were added up last.
    _copies: Copies | None = None
    _slices: int = 0
    #: Whether we have shown that we sleep.
    _is_asleep: bool = False
    #: Whether we have made something since we last saw a stage complete.
    _has_added: bool = False
    #: The unit that was begun, and is to be finished next.
    _begun: ComputeNode | MakeSlice | None = None
    _began: float = 0.0
    #: When the leader's order was begun, and when all sums of the order at hand were seen to be there.
    _started: float = 0.0
    _summed: float = 0.0

    def __post_init__(self) -> None:
        self._slices = len(self.memory.shape.slices)
        self.everybody = frozenset(range(self.memory.shape.processes))
        self.adder, self.planner = SliceAdder(self.compute.wire), Planner(self.patience.even, self.patience.cores)

    # Orders begin and end

    def begin(self, order: Order) -> None:
        """Begin with an order; `SharingError` if the memory of its weights cannot be mapped."""
        self._drop()
        self._begun_last = order.number
        self.follow(order.memory)
        self.order, self._started = order, self.clock.now()
        if order.steps is not None and (self._updates is None or self._updated_memory != order.memory):
            self._map(order.memory)
        self._begin_step(order)

    def _map(self, memory: int) -> None:
        assert self.place is not None  # otherwise there is no multi-step lease
        if self._updates is not None:
            self._updates.close()
            self._updates = None
        self._updates = UpdateMaker.open(self.compute, self.memory.shape, self.adder, self.place)
        self._updated_memory = memory

    def _begin_step(self, order: Order) -> None:
        before, view = self.last, self._view
        is_next = before is not None and order.steps is not None and before.steps is order.steps
        if view is None or not is_next or view.plan is not order.plan or order.number % VIEW_ORDERS == 0:
            view = self._view = self._view_of(order)
        self.order = self.last = order
        self.progress = OrderProgress(view, self.clock.now())
        self.memory.show("at", order.number)
        if not order.plan.of(self.memory.process):
            self.memory.forget_speed(order.plan.workers)

    def _view_of(self, order: Order) -> OrderView:
        updates = self._updates if order.steps is not None else None
        return OrderView(
            process=self.memory.process,
            node=order.node,
            micro_batches=self.compute.batches.micro_batches_of(order.work),
            plan=order.plan,
            stages=order.stages(
                self._slices,
                0 if updates is None else len(updates.locks),
                clips=self.compute.job.clip_norm is not None,
            ),
            seconds=self.memory.marks.seconds.tolist(),
            patience=self.patience,
        )

    @property
    def is_crowded(self) -> bool:
        """Whether there are more processes than cores."""
        return len(self.everybody) > self.patience.cores

    def show_ready(self) -> None:
        """Show that we take part from now on, in what comes next."""
        for name in ("failed", "sleeps"):
            self.memory.show(name, 0)
        self.memory.show("at", self.memory.marks.newest)
        self.memory.show("ready", self.session)

    def is_wanted(self) -> bool:
        """Tell whether the current order is still the team's."""
        order, updates = self.order, self._updates
        if order is None or order.steps is None:
            return order is not None and self.memory.marks.newest == order.number
        return updates is not None and updates.may_make(order) and updates.marks.least() <= order.step

    def newest(self) -> Order | None:
        """Return the newest order, unless it is the one that was begun last."""
        number = self.memory.marks.newest
        return None if number <= self._begun_last else self.memory.read(number)

    def follow(self, memory: int) -> None:
        """Compute with the weights in the memory that an order names; `SharingError` if it cannot be mapped."""
        place = self.place
        if place is None or memory <= self._memory:
            return
        with closing(SharedFolder.join(place.root, place.folder)) as folder:
            first, second = folder.attach(WEIGHTS, weights_shape(self.compute.layout.size)).vectors
        self.compute.move((first, second))
        self._memory = memory

    def falls_asleep(self) -> bool:
        """Tell whether we may sleep now; otherwise, look once more: no process is woken that was not seen to sleep."""
        if self._is_asleep:
            return True
        self._show_asleep(is_asleep=True)
        self.look_again()
        return False

    def look_again(self) -> None:
        """Look at once, because another process may have woken us."""
        if self.progress is not None:
            self.progress.due = min(self.progress.due, self.clock.now())

    def wake_up(self) -> None:
        """Show that we do not sleep, if we did."""
        if self._is_asleep:
            self._show_asleep(is_asleep=False)

    def _show_asleep(self, *, is_asleep: bool) -> None:
        self._is_asleep = is_asleep
        self.memory.show("sleeps", int(is_asleep))

    def stop(self) -> None:
        """Give up the current order, if any."""
        self._drop()
        self.order = self.progress = None

    def _drop(self) -> None:
        """Leave what was begun: a slice's lock is let go."""
        begun, self._begun = self._begun, None
        if isinstance(begun, MakeSlice) and begun.stage is OrderStage.UPDATE and self._updates is not None:
            self._updates.locks[begun.slice_].release()

    def close(self) -> None:
        """Let go of everything, as the system does when the process ends."""
        self._drop()
        if self._updates is not None:
            self._updates.close()
        self.memory.close()

    @property
    def is_busy(self) -> bool:
        """Whether an order is being carried out."""
        return self.progress is not None

    def due(self) -> float | None:
        """Return when `advance` has something to do, None without an order."""
        return None if self.progress is None else self.progress.due

    # One thing after the other

    def advance(self) -> OrderOutcome | None:
        """Do what is due; return how the order has ended if it has.

        All that is due, but no more than one computation; or, if `is_stepwise`, one thing after the other.
        """
        outcome = self._advance()
        while outcome is None and not self.is_stepwise and self._goes_on():
            outcome = self._advance()
        return outcome

    def _goes_on(self) -> bool:
        """Tell whether something is due at once that takes no time to speak of."""
        progress = self.progress
        if progress is None or self._begun is not None:
            return progress is not None
        if progress.todo:
            return not isinstance(progress.todo[0], ComputeNode)
        return progress.waits_since is None

    def _advance(self) -> OrderOutcome | None:
        progress, order = self.progress, self.order
        assert progress is not None
        assert order is not None
        try:
            outcome = self._do(order, progress, progress.action())
        except StoppedError:
            self._drop()
            outcome = self._catch_up(order) if order.steps is not None else OrderOutcome.STOPPED
        except Exception as error:  # noqa: BLE001  # a user's model may raise anything, and will again, lease by lease
            self.error = f"{type(error).__name__}: {error}"
            outcome = self._fail(order)
        if outcome is not None:
            self.stop()
        return outcome

    def _fail(self, order: Order) -> OrderOutcome:
        """Show that we cannot carry out an order."""
        self.memory.show("failed", order.number)
        self.wake(self.memory.sleepers())
        return OrderOutcome.FAILED

    def _do(self, order: Order, progress: OrderProgress, action: Action) -> OrderOutcome | None:
        if isinstance(action, Look):
            return self._look(order, progress, action.stage)
        if self._begun is None:
            self._begin_action(order, progress, action)
            return None
        is_made = self._finish(order, self._begun)
        # Not before, since a lock has to be let go of whatever is raised.
        self._begun, self._has_added = None, True
        if not is_made:
            return self._fail(order)
        progress.on_made(self.clock.now())
        return None

    def _finish(self, order: Order, begun: ComputeNode | MakeSlice) -> bool:
        """Make what was begun; return False if it is not finite."""
        if isinstance(begun, ComputeNode):
            self._compute(order, begun)
            return True
        return self._make(order, begun)

    def _begin_action(self, order: Order, progress: OrderProgress, action: ComputeNode | MakeSlice) -> None:
        self.wake_up()
        self._began = self.clock.now()
        if self._has_made(order, action):
            progress.on_made(self._began)
            return
        is_update = isinstance(action, MakeSlice) and action.stage is OrderStage.UPDATE
        if order.steps is not None and not is_update and not self.is_wanted():
            raise StoppedError(0)
        if isinstance(action, ComputeNode):
            if order.steps is not None and self._is_ahead(order):
                self._await_server(order, progress, self._began)
                return
            if order.work in OF_A_STEP:
                self.memory.begin_row(action.row)
            self._begun = action
        elif is_update:
            assert self._updates is not None  # there is an update
            # Whether it is wanted is seen under its lock.
            if self._updates.begin(action.slice_, order):
                self._begun = action
            else:
                progress.on_refused(self._began)
        else:
            self._begun = action

    def _has_made(self, order: Order, action: ComputeNode | MakeSlice) -> bool:
        """Tell whether we have made it before we were killed, and came back: others may be reading it."""
        if isinstance(action, ComputeNode):
            return self.memory.holds(action.row, order.number, action.node)
        if action.stage is OrderStage.UPDATE:
            return False
        return int(self._done(action.stage)[self.memory.process, action.slice_]) == order.number

    def _done(self, stage: OrderStage) -> NDArray[np.int64]:
        """Return the marks of a stage whose slices each process has in memory of its own."""
        return self.memory.marks.added if stage is OrderStage.ADDED else self.memory.marks.squared

    def _is_ahead(self, order: Order) -> bool:
        """Tell whether the entry of a step would be written over one that the server has not read."""
        return self._updates is not None and order.step - self._updates.marks.read >= ENTRIES

    def _await_server(self, order: Order, progress: OrderProgress, now: float) -> None:
        """Wait until the server has read entries; the leader fails once that takes too long."""
        progress.due = now + READ_S
        if self.memory.process == 0 and now > progress.since + SERVER_PATIENCE_S:
            raise SharingError("the server does not read what the team has made")

    # Sums

    def _compute(self, order: Order, part: ComputeNode) -> None:
        compute, began, before = self.compute, self.clock.now(), self.clock.times()
        compute.turn(order.step, into=part.row)
        if order.work in OF_A_STEP:
            _, tally = compute.train(order.step, part.node)
            losses: Sequence[float] = compute.losses
        else:
            tally, losses = compute.evaluate(part.node, order.work), ()
        ended, after = self.clock.now(), self.clock.times()
        if order.work in OF_A_STEP or not self.memory.is_measured:  # an evaluation takes less than half of the time
            took_s = max(1e-9, ended - began)
            self.memory.record_speed(took_s / len(part.node))
            self.memory.record_load((after.ran - before.ran) / max(1e-9, took_s - (after.waited - before.waited)))
        computed = Computed(
            node=part.node,
            tally=tally,
            losses=losses,
            began_s=began,
            ended_s=ended,
        )
        self.memory.show_row(part.row, order.number, computed)

    def operands(self, order: Order) -> Operands | None:
        """Return the sums over an order's parts, wherever they are; None if they are not all there."""
        copies = self._copies = self.memory.sums_of(order)
        if copies is None:
            return None
        return Operands(
            order.step,
            copies.nodes,
            [self.memory.vector(copy.process, copy.row) for copy in copies.copies],
            self.compute.batches.micro_batches_of(order.work),
        )

    # Slices

    def _make(self, order: Order, making: MakeSlice) -> bool:
        """Make a slice; return whether it is finite."""
        operands = self.operands(order)
        if operands is None:
            # All sums were there: so others have made the slice, and are at the next step.
            raise StoppedError(0)
        if making.stage is OrderStage.UPDATE:
            return self._update(order, making.slice_, operands)
        whole, done = self.memory.shape.slices[making.slice_], self._done(making.stage)
        if making.stage is OrderStage.SQUARES:
            assert self._updates is not None  # what is clipped is an update
            squares = self.memory.marks.squares[self.memory.process]
            self._updates.add_squares(operands, self.divisor(order), whole, squares)
        elif not self._add_up(operands, whole):
            return False
        self.memory.show_slice(done, making.slice_, order.number)
        return True

    def _add_up(self, operands: Operands, whole: Slice) -> bool:
        """Write a slice of the sums over an order into memory of ours; return whether they are finite."""
        self.memory.own.reserve(RESULT)
        result = self.memory.vector(self.memory.process, RESULT)
        self.adder.total(operands, whole, result)
        return first_not_finite(whole.of(result)) is None

    def _update(self, order: Order, slice_: int, operands: Operands) -> bool:
        updates = self._updates
        assert updates is not None  # its slice was begun
        is_finite = updates.write(slice_, order, operands, self.divisor(order), lambda: self._squares(order))
        updates.end(slice_, order, is_made=is_finite, show=lambda: self._show_update(order, slice_))
        return is_finite

    def _squares(self, order: Order) -> list[float]:
        marks, found, count = self.memory.marks, list[float](), -(-self.compute.layout.parameter_size // BLOCK)
        for slice_, whole in enumerate(self.memory.shape.slices):
            process = self.memory.maker_of(marks.squared, slice_, order.number)
            start, stop = whole.start // BLOCK, min(-(-whole.stop // BLOCK), count)
            found += marks.squares[process, start:stop].tolist()
        return found

    def gather(self, order: Order, out: Vector) -> None:
        """Write the sums over an order, whose slices are all there, into a vector of the whole size."""
        for slice_, whole in enumerate(self.memory.shape.slices):
            process = self.memory.maker_of(self.memory.marks.added, slice_, order.number)
            np.copyto(whole.of(out), whole.of(self.memory.vector(process, RESULT)))

    # Looking

    def _look(self, order: Order, progress: OrderProgress, stage: OrderStage) -> OrderOutcome | None:
        now = self.memory.mine["looked_s"] = self.clock.now()
        if not self.patience.spin_s and not self._is_asleep:
            self._show_asleep(is_asleep=True)  # it will sleep unless it finds all, and need not look twice then
        if order.steps is not None and not self.is_wanted():
            self._wake_next(order, OrderStage.UPDATE)
            return self._catch_up(order)
        if self.memory.marks.newest > order.last_number:
            return OrderOutcome.STOPPED
        missing = self._missing(order, stage)
        if missing and self._has_failed(order):
            return OrderOutcome.FAILED
        idle = self._idle(order) if missing and now >= progress.late else ()
        progress.on_seen(missing, idle, now)
        if not missing:
            self._wake_next(order, stage)
            if stage is OrderStage.SUMS:
                self._summed = now
        if not progress.is_done:
            return None
        return OrderOutcome.DONE if order.steps is None else self._catch_up(order)

    def _has_failed(self, order: Order) -> bool:
        """Tell the leader whether a process cannot carry out an order: it computes that alone, or leaves it."""
        if self.memory.process != 0:
            return False
        return bool((self.memory.marks.processes["failed"] >= order.first_number).any())

    def _missing(self, order: Order, stage: OrderStage) -> Sequence[Node] | Sequence[int]:
        if stage is OrderStage.SUMS:
            if self.memory.sums_of(order) is not None:
                return ()
            progress = self.progress
            if progress is not None and self.clock.now() < progress.late:
                return (order.node,)  # it does not matter what
            covered = self.memory.covered(order.number, order.node)
            return missing_parts([part.node for part in order.plan.parts], covered, order.node.lo)
        if stage is OrderStage.UPDATE:
            assert self._updates is not None
            return self._updates.missing(order.step)
        return self.memory.missing_slices(self._done(stage), order.number)

    def _idle(self, order: Order) -> list[int]:
        """Return the processes that have seen an order, and all of whose parts are there."""
        covered = self.memory.covered(order.number, order.node)
        at = self.memory.marks.processes["at"].tolist()
        present = [process for process in range(len(at)) if at[process] == order.number]
        return [one for one in present if not missing_parts(order.plan.of(one), covered, order.node.lo)]

    def _catch_up(self, order: Order) -> OrderOutcome | None:
        """Go on with the step that the team is at; return how the multi-step lease has ended if it has."""
        updates, steps = self._updates, order.steps
        assert updates is not None
        assert steps is not None
        made = updates.marks.least()
        if not updates.may_make(order):
            return OrderOutcome.STOPPED
        if made >= steps.last:
            return OrderOutcome.DONE
        if made <= order.step:
            return OrderOutcome.STOPPED
        plan = self._next_plan(made - 1)
        if plan is not None:  # otherwise others are even further: look again
            self._begin_step(order.following(made, plan))
        return None

    def _next_plan(self, step: int) -> OrderPlan | None:
        """Return the plan of the step after one that the team has made; None if its entry is written over."""
        assert self._updates is not None  # steps follow one another
        entry = self._updates.marks.entries[step % ENTRIES]
        return self.memory.plan_in(entry["next"], lambda: int(entry["step"]) == step)

    # What the server gets to know

    def _show_update(self, order: Order, slice_: int) -> None:
        """Write what belongs to the update of a slice, whose lock is ours: the work is shared by the first and last."""
        updates = self._updates
        assert updates is not None
        if slice_ == 0:
            self._show_entry(order, updates)
        if slice_ == len(updates.slices) - 1 and order.step:
            checksum = checksum_after(order.step - 1, updates.weights_before(order.step))
            updates.marks.entries["checksum"][order.step % ENTRIES] = checksum

    def _show_entry(self, order: Order, updates: UpdateMaker) -> None:
        """Write the entry of a step."""
        copies = self._copies
        assert copies is not None  # its sums were just added up
        figures = self.memory.figures(copies)
        tally, used = self.tally_of(order, copies, figures), len(figures)
        entry = updates.marks.entries[order.step % ENTRIES]
        entry["step"] = -1  # while it is written
        self.memory.keep_order()
        entry["used"] = used
        write_tally(entry, tally)
        since = self._summed_before(order, updates)
        entry["summed_s"], entry["round_s"] = self._summed, self._summed - since
        entry["update_s"] = self.clock.now() - self._began
        entry["parts"][:used] = copies.parts
        figures[:, BEGAN_S : ENDED_S + 1] -= since
        entry["times"][:used] = figures[:, COMPUTE_S : ENDED_S + 1]
        entry["losses"][:] = self.memory.losses(copies)
        entry["next"] = self.memory.written(self.plan(order.work, order.node, order))
        self.memory.keep_order()
        entry["step"] = order.step

    def _summed_before(self, order: Order, updates: UpdateMaker) -> float:
        """Return when all sums of the step before were there, as who made its entry saw it: we may have missed that."""
        assert order.steps is not None
        if order.step == order.steps.first:
            return self._started
        return float(updates.marks.entries["summed_s"][(order.step - 1) % ENTRIES])

    def tally_of(self, order: Order, copies: Copies, figures: NDArray[np.float64]) -> Tally:
        """Return the tally of an order: a floating-point sum too, added over the same tree."""
        micro_batches = self.compute.batches.micro_batches_of(order.work)
        losses, count = figures[:, LOSS_SUM : COUNT + 1].T.tolist()
        ignored, weights = figures[:, IGNORED : WEIGHT + 1].T.tolist()
        additions = additions_of(copies.nodes, micro_batches, joins_halves=True)
        divisors, samples = divisors_of(count, ignored, weights), int(sum(count))
        weight = None if divisors is None else additions.total(divisors)
        # Memory has room for sums of metrics also if there are none, which is so over no samples.
        metrics = tuple(additions.total(list(figures[:, METRICS:])).tolist()) if samples else ()
        return Tally(additions.total(losses), samples, int(sum(ignored)), weight, metrics)

    def divisor(self, order: Order) -> float:
        """Return what the sums of a step are divided by, which were just added up."""
        copies = self._copies
        assert copies is not None
        return self.tally_of(order, copies, self.memory.figures(copies)).divisor

    # Plans

    def plan(self, work: Work, node: Node, before: Order | None) -> OrderPlan:
        """Return who computes what of the next order, and makes which slices: those who were not late with the last."""
        marks, processes = self.memory.marks, self.present(before)
        seconds, loads = marks.seconds.tolist(), marks.loads.tolist()
        division = OrderWork(node, self.compute.batches.micro_batches_of(work))
        speeds = {process: Speed(seconds[process], loads[process]) for process in processes}
        return self.planner.plan(division, speeds, () if before is None else before.plan.workers)

    def present(self, before: Order | None) -> list[int]:
        """Return the processes of this session that have been in time for an order: at least this one.

        If cores are short, processes that had nothing to do in it were not woken: it is enough that they live.
        """
        processes = self.memory.marks.processes
        is_present = processes["at"] >= (0 if before is None else before.number)
        if before is not None and self.is_crowded:
            lives = processes["looked_s"] > self.clock.now() - IDLE_S
            lives[list(before.plan.workers)] = False
            is_present |= lives
        is_present &= processes["ready"] == self.session
        is_present[self.memory.process] = True
        return np.nonzero(is_present)[0].tolist()

    # Waking others

    def _wake_next(self, order: Order, stage: OrderStage) -> None:
        """Wake those who have something to do now that a stage is complete, if it may be we who made the last of it."""
        if self._has_added:
            self._has_added = False
            self.wake(self._next_of(order, stage).intersection(self.memory.sleepers()))

    def _next_of(self, order: Order, stage: OrderStage) -> frozenset[int]:
        """Return the processes that have something to do once a stage of an order is complete."""
        assert self._view is not None  # that of the order
        if stage is not self._view.stages[-1][0]:
            return frozenset(order.plan.owners)
        if order.steps is None:
            return LEADER  # which gives the next one
        # Without a plan, they may all be further already; and after the last step all have something to do.
        plan = None if order.number == order.last_number else self._next_plan(order.step)
        return self.everybody if plan is None else self.wanted_for(plan)

    def wanted_for(self, plan: OrderPlan) -> frozenset[int]:
        """Return who is to begin with a plan at once: where cores are short, only who has something to do in it."""
        return plan.workers if self.is_crowded else self.everybody

    def wake(self, whom: Iterable[int]) -> None:
        """Wake some of the processes that sleep."""
        for process in whom:
            if process != self.memory.process:
                self.bells.ring(process)
