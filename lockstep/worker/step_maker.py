"""Makes the steps of a multi-step lease: computes sums, makes slices of updates, and shows others how far it is.

The server is not needed for it, and reads what is shown here when it has the time. A loss that is not finite, or an
exception of the model's, ends the multi-step lease and is not reported here: the step is computed again, lease by
lease, and that reports it.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.errors import SharingError
from lockstep.common.job.optimizer import schedule_of
from lockstep.common.optim.schedules import Schedule
from lockstep.common.protocol.messages import MultiStepLease, SliceLease, SliceResult, SumsPlace
from lockstep.common.protocol.step_board import ENTERED, ENTRIES, MADE, SUMMED, StepBoard
from lockstep.common.runtime.clock import Clock
from lockstep.worker.compute import Compute
from lockstep.worker.multi_step import StepStage
from lockstep.worker.slice_update import SliceUpdater


@dataclass
class StepMaker:
    """The steps of multi-step leases that a worker makes in one run."""

    compute: Compute
    slices: SliceUpdater
    clock: Clock
    board: StepBoard = field(init=False)
    schedule: Schedule = field(init=False)
    #: That of the other worker of the multi-step lease at hand.
    _other: StepBoard = field(init=False)
    #: When all sums of the step before were there.
    _summed_at: float = 0.0

    def __post_init__(self) -> None:
        job, samples = self.compute.job, len(self.compute.data.train)
        self.board = StepBoard.of(self.slices.place.head)
        self.schedule = schedule_of(job, job.total_steps(samples), -(-samples // job.global_batch))

    def begin(self, lease: MultiStepLease) -> None:
        """Get ready for a multi-step lease; `SharingError` if the other worker's file cannot be mapped."""
        self._summed_at = self.clock.now()
        terms = [SumsPlace(rank=rank, slot=0) for rank in lease.ranks]
        (place,) = (one for one in terms if one.rank != self.slices.place.rank)
        self._other = StepBoard.of(self.slices.segment_at(place, terms).head)

    def advance(self, lease: MultiStepLease, step: int, stage: StepStage) -> bool | None:
        """Do what is to be done in a stage of a step; return whether that is done, None if it cannot be."""
        try:
            match stage:
                case StepStage.COMPUTING:
                    return self._compute(lease, step)
                case StepStage.AWAITING_SUMS:
                    return self._see_sums(step)
                case StepStage.UPDATING:
                    return self._update(lease, step)
                case StepStage.AWAITING_SLICE:
                    return self._see_slice(step)
        except SharingError:
            self.slices.abandon()
            return None

    def _compute(self, lease: MultiStepLease, step: int) -> bool | None:
        if step - self.slices.read_steps() >= ENTRIES:
            return False  # what would be overwritten was not read
        began, compute = self.clock.now(), self.compute
        compute.turn(step, into=step % 2)
        try:
            _, tally = compute.train(step, lease.node())
        except Exception:  # noqa: BLE001  # a user's model may raise anything, and will again, lease by lease
            return None
        ended, entry = self.clock.now(), self._entry(step)
        entry["loss_sum"], entry["correct"], entry["count"] = tally.loss_sum, tally.correct, tally.count
        entry["compute_s"] = max(0.0, ended - began)
        entry["losses"][: len(compute.losses)] = compute.losses
        entry["began_s"], entry["ended_s"] = began - self._summed_at, ended - self._summed_at
        self.board.mark(SUMMED, step + 1)
        return True

    def _entry(self, step: int) -> NDArray[np.void]:
        return self.board.entries[step % ENTRIES]  # type: ignore[no-any-return]  # a row, through which it is written

    def _see_sums(self, step: int) -> bool:
        if not self._other.has(SUMMED, step + 1):
            return False
        now = self.clock.now()
        self._entry(step)["round_s"], self._summed_at = now - self._summed_at, now
        return True

    def _update(self, lease: MultiStepLease, step: int) -> bool | None:
        slice_lease = SliceLease(
            number=0,
            incarnation=lease.incarnation,
            step=step,
            start=lease.start,
            stop=lease.stop,
            count=lease.count,
            rate=self.schedule.rate(step),
            scale=None,
            reads=(lease.reads + step - lease.first) % 2,
            terms=[SumsPlace(rank=rank, slot=step % 2) for rank in lease.ranks],
            memory=lease.memory,
        )
        result = self.slices.advance(slice_lease, self._show)
        if result is None:
            return False
        return True if result.is_done and result.not_finite is None else None

    def _show(self, lease: SliceLease, result: SliceResult) -> None:
        """Show that a slice is made: while the lock is ours, so that the server sees all of it or nothing."""
        if result.not_finite is None:
            self._entry(lease.step)["update_s"] = result.seconds
            self.board.mark(MADE, lease.step + 1)

    def _see_slice(self, step: int) -> bool:
        if not self._other.has(MADE, step + 1):
            return False
        self._entry(step)["checksum"] = checksum_after(step, self.slices.weights_after(step))
        self.board.mark(ENTERED, step + 1)
        return True
