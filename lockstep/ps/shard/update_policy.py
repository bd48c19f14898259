"""How a shard updates its weights, which follows from a job's values."""

from dataclasses import dataclass

from lockstep.common.aggregation.quantization.quantization import EXACT, Quantization, quantization_of
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateRule
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import rule_of, schedule_of
from lockstep.common.optim.rules import Rule
from lockstep.common.optim.schedules import Schedule
from lockstep.ps.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class UpdatePolicy:
    """How sums become new weights."""

    rule: Rule
    schedule: Schedule
    clip_norm: float | None
    #: Number of trained values, which come first in the vector; running statistics follow.
    parameter_size: int
    #: Momentum of each running statistic, shape (size - parameter_size,).
    momenta: Vector
    #: How sums are rounded over the tree, and how the weights are that workers compute with.
    wire: Quantization = EXACT
    wire_weights: Quantization = EXACT

    def update_rule(self) -> UpdateRule:
        """Return the part of it that whoever updates a slice has to know."""
        return UpdateRule(
            rule=self.rule,
            parameter_size=self.parameter_size,
            momenta=self.momenta,
            wire_weights=self.wire_weights,
        )


def policy_of(job: Job, plan: Plan, parameter_size: int, momenta: Vector) -> UpdatePolicy:
    """Return how a shard is to turn a job's sums into weights, of a model with so many trained values."""
    return UpdatePolicy(
        rule=rule_of(job),
        schedule=schedule_of(job, plan.total_steps, plan.steps_per_epoch),
        clip_norm=job.clip_norm,
        parameter_size=parameter_size,
        momenta=momenta,
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
