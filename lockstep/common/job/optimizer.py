"""From a job's values to the rule and the schedule of its updates, and of the local steps of its micro-batches."""

from dataclasses import fields
from typing import Any

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.optim.rules import RULES, Rule
from lockstep.common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step

#: The values of a job that its local steps have too, as `local_lr` next to `lr`.
LOCAL = tuple(name for name in Job.__struct_fields__ if name != "steps" and f"local_{name}" in Job.__struct_fields__)


def rule_of(job: Job) -> Rule:
    """Return the update rule that a job names; each of its hyperparameters is the job's value of the same name."""
    kind: Any = RULES[job.optimizer]
    return kind(**{field.name: getattr(job, field.name) for field in fields(kind)})  # type: ignore[no-any-return]


def hyperparameters() -> list[str]:
    """Return the names of the values of a job that some rule has, in the job's order."""
    kinds: list[Any] = list(RULES.values())
    known = {field.name for kind in kinds for field in fields(kind)}
    return [name for name in Job.__struct_fields__ if name in known]


def replica_of(job: Job) -> Job:
    """Return the job that one replica would carry out if it were alone: a step of it is a local step.

    Its optimizer and its learning rates are those of the local values.
    """
    own = {name: getattr(job, f"local_{name}") for name in LOCAL}
    own["warmup_steps"] *= job.local_steps
    batch = max(1, job.global_batch // job.local_batches)
    return msgspec.structs.replace(job, **own, local_steps=1, micro_batches=1, global_batch=batch)


def replica_schedule(job: Job, steps: int, steps_per_epoch: int) -> Schedule:
    """Return the learning rates of local steps, counted from the run's first one on, as if there were no other steps.

    `JobError` as `schedule_of`.
    """
    if job.local_warmup_steps >= steps:
        raise JobError(
            f"local_warmup_steps = {job.local_warmup_steps!r} is not below the run's {steps} steps: lower it or train "
            "longer"
        )
    return schedule_of(replica_of(job), steps * job.local_steps, steps_per_epoch * job.local_steps)


def outer_momenta(job: Job, momenta: Vector) -> Vector:
    """Return by how much running statistics follow the mean that micro-batches send.

    With local steps, micro-batches send averages that have followed all of their batches: the mean replaces them.
    """
    return np.ones_like(momenta) if job.local_steps > 1 else momenta


def schedule_of(job: Job, steps: int, steps_per_epoch: int) -> Schedule:
    """Return the learning rates of a run of so many steps; JobError if its warm-up takes all of them."""
    if job.warmup_steps >= steps:
        raise JobError(
            f"warmup_steps = {job.warmup_steps!r} is not below the run's {steps} steps: lower it or train longer"
        )
    after: Schedule
    match job.schedule:
        case "constant":
            after = Constant(job.lr)
        case "step":
            after = Step(job.lr, every=job.decay_every * steps_per_epoch, gamma=job.decay_factor)
        case "cosine":
            after = Cosine(job.lr, steps=steps)
        case "one-cycle":
            after = OneCycle(job.lr, steps=steps)
    return LinearWarmup(after, job.warmup_steps, start_factor=1 / job.warmup_steps) if job.warmup_steps else after
