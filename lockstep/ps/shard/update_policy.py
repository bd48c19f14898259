"""How a shard updates its weights, which follows from a job's values."""

from dataclasses import dataclass

from lockstep.common.aggregation.quantization.quantization import EXACT, Quantization, quantization_of
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateRule
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import outer_momenta, replica_schedule, rule_of, schedule_of
from lockstep.common.optim.schedules import Schedule
from lockstep.ps.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class UpdatePolicy(UpdateRule):
    """How sums become new weights: what whoever updates a slice has to know, and what is the same for all slices."""

    schedule: Schedule
    clip_norm: float | None
    #: How sums are rounded over the tree.
    wire: Quantization = EXACT


def policy_of(job: Job, plan: Plan, parameter_size: int, momenta: Vector) -> UpdatePolicy:
    """Return how a shard is to turn a job's sums into weights, of a model with so many trained values.

    `JobError` if a warm-up takes all steps.
    """
    if job.local_steps > 1:  # workers need it: whatever is wrong with it is found here, before there are any
        replica_schedule(job, plan.total_steps, plan.steps_per_epoch)
    return UpdatePolicy(
        rule=rule_of(job),
        schedule=schedule_of(job, plan.total_steps, plan.steps_per_epoch),
        clip_norm=job.clip_norm,
        parameter_size=parameter_size,
        momenta=outer_momenta(job, momenta),
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
