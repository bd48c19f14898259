"""Whether a team may make the next steps by itself, and which. Pure.

A team that computes all of each step, in the server's own memory, can do without the server between two steps: its
processes see in their own memory when all sums are there, and when all slices of the update are made. The server leaves
it alone as long as nothing else is to be decided.
"""

from dataclasses import dataclass

from lockstep.ps.coordinator.effects import LeaseSteps
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round

#: Least steps of a multi-step lease, and the steps of a run before the first: in some of these workers record the
#: model's calls, and it becomes known how long a step takes.
LEAST_STEPS, FIRST_STEPS = 4, 12

#: Steps after a multi-step lease that was cut until the next, at first and at most: twice as many after each.
#: Multi-step leases of so many times the pause show that whatever cut the last one has passed.
PAUSE, LONGEST_PAUSE, PASSED = 32, 1024, 4


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
        rank = _rank_alone(membership, scheduler)
        if rank is None:
            return None
        step_s = at.micro_batches * scheduler.timeouts.expected_s(rank, "train")
        return LeaseSteps(first=at.step, last=last, rank=rank, step_s=step_s)


def may_lease_steps(info: RunInfo) -> bool:
    """Tell whether a team that shares the server's memory has all that it needs for a step."""
    return info.options.servers == 1 and not (info.options.audit or info.options.signed) and info.manifest is None


def _rank_alone(membership: Membership, scheduler: Scheduler) -> int | None:
    """Return the rank of the worker that is ready, if it alone is, shares memory as a team, and has no other work."""
    ready = membership.ready()
    if len(ready) != 1 or not ready[0].has_team or not scheduler.timeouts.is_known("train"):
        return None
    return None if scheduler.withdrawals.has_any(ready[0].rank) else ready[0].rank
