"""The rule by which a shard updates its weights, which follows from a job's values."""

from collections.abc import Sequence

from lockstep.common.aggregation.quantization import EXACT, Quantization, quantization_of
from lockstep.common.aggregation.slices import Span
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateRule
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import outer_momenta, replica_schedule, rules_of, schedule_of
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.optim.schedules import Schedule
from lockstep.ps.run.plan import Plan


class UpdatePolicy(UpdateRule, frozen=True, kw_only=True):
    """All that a process needs to turn the sums of a slice into new weights; it is the same for all slices."""

    schedule: Schedule
    clip_norm: float | None
    #: The groups of the trained values, for servers that have a part of them.
    spans: Sequence[Span] = ()
    #: How sums are rounded over the tree.
    wire: Quantization = EXACT


def policy_of(job: Job, plan: Plan, spans: Sequence[Span], momenta: Vector, own: OwnCode = NO_CODE) -> UpdatePolicy:
    """Return how a shard is to turn a job's sums into weights, of a model with trained values in these spans.

    `JobError` if a warm-up takes all steps.
    """
    if job.local_steps > 1:  # workers need it: whatever is wrong with it is found here, before there are any
        replica_schedule(job, plan.total_steps, plan.steps_per_epoch)
    parameter_size = spans[-1].stop
    return UpdatePolicy(
        rules=rules_of(job, spans, own),
        schedule=schedule_of(job, plan.total_steps, plan.steps_per_epoch, own),
        clip_norm=job.clip_norm,
        spans=spans,
        parameter_size=parameter_size,
        momenta=outer_momenta(job, momenta),
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
