"""From a job's values to how a shard updates its weights."""

from lockstep.common.aggregation.quantization.quantization import quantization_of
from lockstep.common.aggregation.tree import Vector
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import rule_of, schedule_of
from lockstep.common.model.port import Model
from lockstep.ps.run.plan import Plan
from lockstep.ps.shard.shard import UpdatePolicy


def policy_of(job: Job, plan: Plan, model: Model) -> UpdatePolicy:
    """Return how a shard is to turn this job's sums into weights."""
    return policy_for(job, plan, model.layout.parameter_size, model.momenta())


def policy_for(job: Job, plan: Plan, parameter_size: int, momenta: Vector) -> UpdatePolicy:
    """Return the same where the model is not at hand: with so many trained values, and its statistics' momenta."""
    return UpdatePolicy(
        rule=rule_of(job),
        schedule=schedule_of(job, plan.total_steps, plan.steps_per_epoch),
        clip_norm=job.clip_norm,
        parameter_size=parameter_size,
        momenta=momenta,
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
