"""Slices of the update of a step, made by the processes of a team straight in the memory of the weights.

A slice is written by the process that has its lock, only if the lease is still the team's and it is not made yet: the
system releases the lock of a process that ends, and one that stands still with it stands in memory that the run leaves.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdatePass, UpdateRule, UpdateStep, UpdateVectors
from lockstep.common.job.optimizer import outer_momenta, rule_of, rules_of, schedule_of, spans_of
from lockstep.common.optim.clipping import BLOCK, add_blocks, block_squares, scale_for
from lockstep.common.optim.schedules import Schedule
from lockstep.common.protocol.shared_files import (
    EXACT_WEIGHTS,
    STATE,
    WEIGHTS,
    lock_file,
    state_sets,
    state_shape,
    update_file,
    weights_shape,
)
from lockstep.common.protocol.team_memory import TeamShape, UpdateMarks, file_of
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.worker.compute import Compute
from lockstep.worker.team.order import Order
from lockstep.worker.team.slices import PIECE, Operands, SliceAdder


class UpdatePlace(msgspec.Struct, frozen=True):
    """Where the server's memory is, and the rank of our team there."""

    root: Path
    folder: str
    rank: int


@dataclass
class UpdateMaker:
    """Makes slices of updates in one memory; maps what they need."""

    compute: Compute
    shape: TeamShape
    adder: SliceAdder
    marks: UpdateMarks
    vectors: UpdateVectors
    locks: list[FileLock]
    rule: UpdateRule = field(init=False)
    schedule: Schedule = field(init=False)
    slices: list[Slice] = field(init=False)
    _passes: dict[Slice, UpdatePass] = field(default_factory=dict)
    #: The order whose factor of clipping is known, and that.
    _scale: tuple[int, float | None] = (0, None)

    def __post_init__(self) -> None:
        compute, job, samples = self.compute, self.compute.job, len(self.compute.data.train)
        self.rule = UpdateRule(
            rules=rules_of(job, spans_of(job, compute.layout), compute.own),
            parameter_size=compute.layout.parameter_size,
            momenta=outer_momenta(job, compute.model.momenta()),
            wire_weights=compute.wire_weights,
        )
        self.schedule = schedule_of(job, job.total_steps(samples), -(-samples // job.global_batch), compute.own)
        self.slices = slices_for(compute.layout.size, len(self.locks))

    @classmethod
    def open(cls, compute: Compute, shape: TeamShape, adder: SliceAdder, place: UpdatePlace) -> "UpdateMaker":
        """Map the newest memory of the weights; `SharingError` if it cannot be."""
        layout, names = compute.layout, list(rule_of(compute.job, compute.own).init(0))
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
        return cls(compute, shape, adder, marks, vectors, locks)

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

    def write(self, slice_: int, order: Order, operands: Operands, divisor: float, squares: "Squares") -> bool:
        """Write a slice of the new weights, and tell whether they are finite. Its lock is ours."""
        steps = order.steps
        assert steps is not None  # of a lease there is no update
        reads = (steps.reads + order.step - steps.first) % 2
        at = UpdateStep(
            step=order.step,
            divisor=divisor,
            rate=self.schedule.rate(order.step),
            scale=self._scale_of(order.number, squares),
            reads=reads,
            writes=1 - reads,
        )
        updating, is_finite = self._pass_over(self.slices[slice_]), True
        with np.errstate(all="ignore"):  # what overflows is found in the weights
            for number, (piece, terms) in enumerate(self.adder.pieces(operands, self.slices[slice_])):
                is_finite = updating.run(at, piece, {number: terms}) is None and is_finite
        return is_finite

    def end(self, slice_: int, order: Order, *, is_made: bool, show: Callable[[], None]) -> None:
        """Show that a slice is made, if it is, and let others have its lock; `show` shows the rest of it before."""
        if is_made:
            show()
            self.marks.keep_order()
            self.marks.made[slice_] = order.step + 1
            self.marks.keep_order()
        self.locks[slice_].release()

    def _pass_over(self, whole: Slice) -> UpdatePass:
        """Return what updates a slice, with its pieces as frames."""
        if whole not in self._passes:
            self._passes[whole] = UpdatePass(self.rule, self.vectors, list(whole.cut_evenly(PIECE)))
        return self._passes[whole]

    def weights_before(self, step: int) -> Vector:
        """Return the weights that a step begins with."""
        return self.vectors.weights[step % 2]

    # Clipping

    def add_squares(self, operands: Operands, divisor: float, whole: Slice, out: NDArray[np.float64]) -> None:
        """Write the sums of squares of a slice's blocks of the mean gradient into their places in `out`."""
        updating = self._pass_over(whole)
        with np.errstate(all="ignore"):  # as in `write`
            for number, (piece, terms) in enumerate(self.adder.pieces(operands, whole)):
                for chunk in updating.trained_chunks(piece):
                    blocks = block_squares(updating.mean(chunk, {number: terms}, divisor))
                    start = chunk.start // BLOCK
                    out[start : start + len(blocks)] = blocks

    def _scale_of(self, order: int, squares: "Squares") -> float | None:
        """Return the factor of clipping, None if nothing is clipped."""
        most = self.compute.job.clip_norm
        if most is None:
            return None
        if self._scale[0] != order:
            self._scale = order, scale_for(add_blocks(squares()), most)
        return self._scale[1]

    def close(self) -> None:
        """Let go of the locks."""
        for lock in self.locks:
            lock.close()


#: Returns the sums of squares of all blocks of the gradient of the current order, in any order.
Squares = Callable[[], Sequence[float]]
