"""From a job's values to the rule and the schedule by which a shard updates."""

from common.aggregation.layout import ParameterLayout, statistic_momenta
from common.aggregation.quantization.quantization import quantization_of
from common.aggregation.tree import Vector
from common.errors import JobError
from common.job.job import Job
from common.nn.module import Module
from common.optim.rules import AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule
from common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step
from ps.run.plan import Plan
from ps.shard.shard import UpdatePolicy


def rule_of(job: Job) -> Rule:
    """Return the update rule that a job names."""
    match job.optimizer:
        case "sgd":
            return SGDRule(momentum=job.momentum, nesterov=job.nesterov, weight_decay=job.weight_decay)
        case "adam":
            return AdamRule(betas=(job.beta1, job.beta2), eps=job.eps, weight_decay=job.weight_decay)
        case "adamw":
            return AdamWRule(betas=(job.beta1, job.beta2), eps=job.eps, weight_decay=job.weight_decay)
        case "rmsprop":
            return RMSPropRule(alpha=job.alpha, eps=job.eps, momentum=job.momentum, weight_decay=job.weight_decay)


def schedule_of(job: Job, plan: Plan) -> Schedule:
    """Return the learning rate's course over a job's steps."""
    steps = plan.total_steps
    if job.warmup_steps >= steps:
        raise JobError(
            f"warmup_steps = {job.warmup_steps!r} is not below the run's {steps} steps: lower it or train longer"
        )
    after: Schedule
    match job.schedule:
        case "constant":
            after = Constant(job.lr)
        case "step":
            after = Step(job.lr, every=job.decay_every * plan.steps_per_epoch, gamma=job.decay_factor)
        case "cosine":
            after = Cosine(job.lr, steps=steps)
        case "one-cycle":
            after = OneCycle(job.lr, steps=steps)
    return LinearWarmup(after, job.warmup_steps, start_factor=1 / job.warmup_steps) if job.warmup_steps else after


def policy_of(job: Job, plan: Plan, model: Module, layout: ParameterLayout) -> UpdatePolicy:
    """Return how a shard is to turn this job's sums into weights."""
    return policy_for(job, plan, layout.parameter_size, statistic_momenta(model, layout))


def policy_for(job: Job, plan: Plan, parameter_size: int, momenta: Vector) -> UpdatePolicy:
    """Return the same where the model is not at hand: with so many trained values, and its statistics' momenta."""
    return UpdatePolicy(
        rule=rule_of(job),
        schedule=schedule_of(job, plan),
        clip_norm=job.clip_norm,
        parameter_size=parameter_size,
        momenta=momenta,
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
