"""Whether workers may make the next steps by themselves, and which. Pure.

Where two workers share memory and each computes a half of a step, they can do without the server between two steps:
each sees when the sums of the other are there, makes its slice of the update, and sees when the other has. The server
leaves them alone as long as nothing else is to be decided.
"""

from dataclasses import dataclass

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.step_board import MOST_LOSSES
from lockstep.ps.coordinator.effects import LeaseSteps
from lockstep.ps.coordinator.membership import Member, Membership
from lockstep.common.aggregation.finishing_time import finishing_time_s
from lockstep.ps.coordinator.scheduling.lease_table import Withdrawals
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.coordinator.scheduling.stragglers import LeaseTimeouts
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round

#: Workers that make a step without the server: an update is made from two terms.
WORKERS = 2

#: Halves are leased as long as a step takes at most this many times as long as with the best shares.
UNEVEN = 1.25

#: Least steps of a multi-step lease, and the steps of a run before the first: in some of these workers record the
#: model's calls, which takes longer than a worker waits for the other.
LEAST_STEPS, FIRST_STEPS = 4, 12

#: Steps after a multi-step lease that was cut until the next, at first and at most: twice as many after each.
#: Multi-step leases of so many times the pause show that whatever cut the last one has passed.
PAUSE, LONGEST_PAUSE, PASSED = 32, 1024, 4

#: A worker waits for the other for so many seconds, and this part of a step: by as much do equal workers differ.
PATIENCE_S, PATIENCE = 0.003, 0.75


@dataclass
class MultiStepPlan:
    """When the next multi-step lease may begin."""

    #: The first step that may be in one.
    earliest: int
    pause: int = PAUSE
    #: Steps in multi-step leases since one was cut.
    lasted: int = 0
    #: False once the server has refused one: then there can be none in this run.
    is_possible: bool = True

    def on_completed(self, first: int, steps: int, *, is_cut: bool) -> None:
        """Record that a multi-step lease from `first` on has ended after so many steps of the run.

        One that was cut is not tried again at once.
        """
        self.lasted += steps - first
        if self.lasted >= PASSED * self.pause:
            self.pause = PAUSE
        if is_cut:
            self.earliest, self.lasted = steps + self.pause, 0
            self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def next(self, info: RunInfo, at: Round, membership: Membership, scheduler: Scheduler) -> LeaseSteps | None:
        """Return the multi-step lease that begins with a round; None if the round is to be leased."""
        if not self.is_possible or at.work != "train" or at.step < self.earliest:
            return None
        # The last step of an epoch may be shorter, and an evaluation follows it.
        last = min((at.step // info.plan.steps_per_epoch + 1) * info.plan.steps_per_epoch, info.plan.total_steps) - 1
        if last - at.step < LEAST_STEPS or not may_lease_steps(info):
            return None
        halves = _halves(membership, scheduler.withdrawals)
        if not halves or not scheduler.timeouts.is_known("train"):
            return None
        first, second = (member.rank for member in halves)
        step_s = even_step_s(at.micro_batches, (first, second), scheduler.timeouts)
        if step_s is None:
            return None
        patience_s = PATIENCE_S + PATIENCE * step_s
        return LeaseSteps(first=at.step, last=last, ranks=(first, second), step_s=step_s, patience_s=patience_s)


def even_step_s(micro_batches: int, ranks: tuple[int, int], timeouts: LeaseTimeouts) -> float | None:
    """Return how many seconds a step takes in which each worker has a half; None if other shares are much faster."""
    each_s = [timeouts.expected_s(rank, "train") for rank in ranks]
    step_s = micro_batches // WORKERS * max(each_s)
    return None if step_s > UNEVEN * finishing_time_s(micro_batches, [(0.0, one_s) for one_s in each_s]) else step_s


def may_lease_steps(info: RunInfo) -> bool:
    """Tell whether an update follows from the sums of its step alone, without a look at all of them."""
    job = info.job
    is_simple = job.clip_norm is None and job.wire == "float32" and not info.audit and info.manifest is None
    if job.micro_batches < WORKERS or not is_simple or info.servers > 1:
        return False
    first, second = Node(0, job.micro_batches).halves()
    return len(first) == len(second) <= MOST_LOSSES


def _halves(membership: Membership, withdrawals: Withdrawals) -> list[Member]:
    """Return the workers of both halves: all that are ready, with a core each, in shared memory, and no other work."""
    ready = membership.ready()
    may = all(
        member.shares and not membership.is_crowded(member) and not withdrawals.has_any(member.rank) for member in ready
    )
    return ready if may and len(ready) == WORKERS else []
