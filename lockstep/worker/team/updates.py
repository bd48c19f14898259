"""The steps that a team makes by itself, one after the other: slices of their updates, in the memory of the weights.

The steps of a multi-step lease follow one another without new orders: the process that makes the first slice of an
update publishes the next plan with it. A slice is written by the process that has its lock, only if the lease is still
the team's and it is not made yet. The system releases the lock of a process that ends; if a process hangs while it
holds one, the run leaves the memory in which it hangs.
"""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.slices import Slice, slices_for
from lockstep.common.aggregation.update import Pair, UpdatePass, UpdateStep, UpdateVectors
from lockstep.common.job.optimizer import UpdatePolicy, policy_of, rule_of, spans_of
from lockstep.common.job.tally import Tally
from lockstep.common.optim.clipping import BLOCK, add_blocks, scale_for
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.team_memory import (
    BEGAN_S,
    COMPUTE_S,
    ENDED_S,
    ENTRIES,
    EXACT_WEIGHTS,
    STATE,
    WEIGHTS,
    UpdateMarks,
    file_of,
    lock_file,
    state_sets,
    state_shape,
    update_file,
    weights_shape,
    write_tally,
)
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.worker.compute import Compute
from lockstep.worker.team.division import OrderPlan
from lockstep.worker.team.memory import Copies
from lockstep.worker.team.progress import Order, OrderOutcome
from lockstep.worker.team.sums import Operands, OrderSums, SliceAdder


class SharedPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The server's memory as a process of a team sees it."""

    root: Path
    folder: str
    #: The rank of the team there.
    rank: int
    #: The nonce that was read there, by which the server knows that we see its memory.
    nonce: str
    #: The weights, read only.
    slots: Pair

    @classmethod
    def attach(cls, root: Path, welcome: Welcome, size: int) -> "SharedPlace":
        """Map the weights that the server offers; `SharingError` if that fails."""
        nonce, slots = weights_in(root, welcome.memory, size)
        return cls(root=root, folder=welcome.memory, rank=welcome.rank, nonce=nonce, slots=slots)


def weights_in(root: Path, name: str, size: int) -> tuple[str, Pair]:
    """Map the newest weights in a folder of shared memory, and return them after its nonce; `SharingError` if not."""
    with closing(SharedFolder.join(root, name)) as folder:
        weights = folder.attach(WEIGHTS, weights_shape(size))
    first, second = weights.vectors
    return weights.nonce.hex(), (first, second)


@dataclass
class UpdateMaker:
    """Makes slices of updates in one memory; maps what they need."""

    policy: UpdatePolicy
    adder: SliceAdder
    marks: UpdateMarks
    vectors: UpdateVectors
    locks: list[FileLock]
    slices: list[Slice] = field(init=False)
    _updating: UpdatePass = field(init=False)

    def __post_init__(self) -> None:
        self.slices = slices_for(self.vectors.weights[0].size, len(self.locks))
        self._updating = UpdatePass(self.policy, self.vectors)

    @classmethod
    def open(cls, sums: OrderSums, place: SharedPlace) -> "UpdateMaker":
        """Map the newest memory of the weights; `SharingError` if it cannot be."""
        compute, shape = sums.compute, sums.memory.shape
        layout, names = compute.layout, list(rule_of(compute.job, compute.batches.own).init(0))
        shape_of_weights = weights_shape(layout.size)
        with closing(SharedFolder.join(place.root, place.folder)) as folder:
            first, second = folder.attach(WEIGHTS, shape_of_weights, is_writable=True).vectors
            weights = served = first, second
            if not compute.wire_weights.is_exact:
                first, second = folder.attach(EXACT_WEIGHTS, shape_of_weights, is_writable=True).vectors
                weights = first, second
            state = folder.attach(STATE, state_shape(names, layout.parameter_size), is_writable=True).vectors
            segment = folder.attach(update_file(place.rank), file_of(shape.of_update()), is_writable=True)
            marks = UpdateMarks.of(segment, shape)
            locks = [folder.lock_of(lock_file(slice_)) for slice_ in range(marks.slices)]
        vectors = UpdateVectors(weights=weights, served=served, slots=state_sets(names, state))
        return cls(policy_in(compute), sums.adder, marks, vectors, locks)

    # Slices

    def begin(self, slice_: int, order: Order) -> bool:
        """Take the lock of a slice; return False, without it, if another process has it or nothing is left to make."""
        if not self.locks[slice_].acquire():
            return False
        if self.may_make(order) and not self.is_made(slice_, order.step):
            return True
        self.locks[slice_].release()
        return False

    def may_make(self, order: Order) -> bool:
        """Tell whether updates of a multi-step lease may be made."""
        self.marks.keep_order()
        return order.steps is not None and self.marks.number == order.steps.number

    def is_made(self, slice_: int, step: int) -> bool:
        """Tell whether the update of a slice was made in a step."""
        return int(self.marks.made[slice_]) > step

    def missing(self, step: int) -> list[int]:
        """Return the slices whose update of a step was not made."""
        made = self.marks.made[: len(self.locks)].tolist()
        self.marks.keep_order()
        return [slice_ for slice_, steps in enumerate(made) if steps <= step]

    def write(self, slice_: int, order: Order, operands: Operands, divisor: float, scale: float | None) -> bool:
        """Write a slice of the new weights, and tell whether they are finite. Its lock is ours."""
        steps = order.steps
        assert steps is not None  # of a lease there is no update
        reads, rate = (steps.reads + order.step - steps.first) % 2, self.policy.schedule.rate(order.step)
        at = UpdateStep(step=order.step, divisor=divisor, rate=rate, scale=scale, reads=reads, writes=1 - reads)
        is_finite = True
        with np.errstate(all="ignore"):  # what overflows is found in the weights
            for piece, terms in self.adder.pieces(operands, self.slices[slice_]):
                is_finite = self._updating.run(at, piece, terms) is None and is_finite
        return is_finite

    def show_made(self, slice_: int, step: int) -> None:
        """Show that the update of a slice was made in a step, after all that belongs to it was written."""
        self.marks.keep_order()
        self.marks.made[slice_] = step + 1
        self.marks.keep_order()

    def add_squares(self, operands: Operands, divisor: float, whole: Slice, out: NDArray[np.float64]) -> None:
        """Write the sums of squares of a slice's blocks of the mean gradient into their places in `out`."""
        with np.errstate(all="ignore"):  # as in `write`
            for piece, terms in self.adder.pieces(operands, whole):
                blocks = self._updating.squares(piece, terms, divisor)
                out[piece.start // BLOCK :][: len(blocks)] = blocks

    def close(self) -> None:
        """Let go of the locks."""
        for lock in self.locks:
            lock.close()


def policy_in(compute: Compute) -> UpdatePolicy:
    """Return how the sums of its job become weights, as at the server."""
    batches, spans = compute.batches, spans_of(compute.job, compute.layout)
    return policy_of(compute.job, len(batches.data.train), spans, compute.model.momenta(), batches.own)


@dataclass
class StepChain:
    """The steps of multi-step leases in one memory: the next of them, its update, and its entry for the server."""

    updates: UpdateMaker
    sums: OrderSums
    #: The number of the memory.
    memory: int
    #: When the leader's order was begun, and when all sums of the current step were seen to be there.
    started: float = 0.0
    summed: float = 0.0

    def is_wanted(self, order: Order) -> bool:
        """Tell whether the step of an order is still to be made."""
        return self.updates.may_make(order) and self.updates.marks.least() <= order.step

    def is_ahead(self, order: Order) -> bool:
        """Tell whether the entry of a step would be written over one that the server has not read."""
        return order.step - self.updates.marks.read >= ENTRIES

    def following(self, order: Order) -> Order | OrderOutcome | None:
        """Return the step that the team is at, or how the lease has ended; None if the team is even further."""
        made, steps = self.updates.marks.least(), order.steps
        if steps is None or not self.updates.may_make(order):
            return OrderOutcome.STOPPED
        if made >= steps.last:
            return OrderOutcome.DONE
        if made <= order.step:
            return OrderOutcome.STOPPED
        plan = self.next_plan(made - 1)
        return None if plan is None else order.following(made, plan)

    def next_plan(self, step: int) -> OrderPlan | None:
        """Return the plan of the step after one that the team has made; None if its entry is written over."""
        entry = self.updates.marks.published.read(step, "next")
        return None if entry is None else self.sums.memory.plan_in(entry)

    def make(self, order: Order, slice_: int, operands: Operands, copies: Copies, began: float) -> bool:
        """Make a slice whose lock is ours, and release that; return whether the slice is finite."""
        updates, tally = self.updates, self.sums.tally_of(order, copies)
        is_finite = updates.write(slice_, order, operands, tally.divisor, self._scale_of(order))
        if is_finite:
            self._show(order, slice_, copies, tally, began)
            updates.show_made(slice_, order.step)
        updates.locks[slice_].release()
        return is_finite

    def _scale_of(self, order: Order) -> float | None:
        """Return the factor of clipping, None if nothing is clipped."""
        most, memory, found = self.updates.policy.clip_norm, self.sums.memory, list[float]()
        if most is None:
            return None
        count = -(-self.sums.compute.layout.parameter_size // BLOCK)
        for slice_, whole in enumerate(memory.shape.slices):
            process = memory.maker_of(memory.marks.squared, slice_, order.number)
            start, stop = whole.start // BLOCK, min(-(-whole.stop // BLOCK), count)
            found += memory.marks.squares[process, start:stop].tolist()
        return scale_for(add_blocks(found), most)

    def _show(self, order: Order, slice_: int, copies: Copies, tally: Tally, began: float) -> None:
        """Write what the server gets to know, before a slice is shown: the work is shared by the first and the last."""
        updates = self.updates
        if slice_ == 0:
            with updates.marks.published.write(order.step) as entry:
                self._write_entry(entry, order, copies, tally, began)
        if slice_ == len(updates.slices) - 1 and order.step:
            checksum = checksum_after(order.step - 1, updates.vectors.weights[order.step % 2])
            updates.marks.entries["checksum"][order.step % ENTRIES] = checksum

    def _write_entry(self, entry: NDArray[np.void], order: Order, copies: Copies, tally: Tally, began: float) -> None:
        memory, since = self.sums.memory, self._summed_before(order)
        figures = memory.figures(copies)
        used = entry["used"] = len(figures)
        write_tally(entry, tally)
        entry["summed_s"], entry["round_s"] = self.summed, self.summed - since
        entry["update_s"] = self.sums.pace.clock.now() - began
        entry["parts"][:used] = copies.parts
        figures[:, BEGAN_S : ENDED_S + 1] -= since
        entry["times"][:used] = figures[:, COMPUTE_S : ENDED_S + 1]
        entry["losses"][:] = memory.losses(copies)
        entry["next"] = memory.written(self.sums.pace.plan(order.node, order))

    def _summed_before(self, order: Order) -> float:
        """Return when all sums of the step before were there, as its entry says: this process may have missed that."""
        if order.steps is None or order.step == order.steps.first:
            return self.started
        return float(self.updates.marks.entries["summed_s"][(order.step - 1) % ENTRIES])
