"""From a job's values to the rules and the schedule of its updates, and of the local steps of its micro-batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

import msgspec
import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.quantization import EXACT, Quantization, quantization_of
from lockstep.common.aggregation.slices import Span
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateRule
from lockstep.common.errors import JobError, ModelError, nearest
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.optim.rules import RULES, AdjustedRule, AveragedRule, Rule, SlotSets
from lockstep.common.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    LinearWarmup,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
)

#: In place of patterns of names: all parameters of one axis, which are biases and weights of normalization layers.
VECTORS = "vectors"

#: Values of the vectors on which a rule of the user's own is tried.
TRIED = 64

#: The values of a job that its local steps have too, as `local_lr` next to `lr`.
LOCAL = tuple(name for name in Job.__struct_fields__ if name != "steps" and f"local_{name}" in Job.__struct_fields__)


def spans_of(job: Job, layout: ParameterLayout) -> tuple[Span, ...]:
    """Return the groups of all parameters, in the layout's order; `JobError` for a pattern that matches none."""
    factors = [_factor(text) for text in job.lr_factors or ()]
    names = [entry.name for entry in layout.parameters]
    for pattern in (*(job.no_decay or ()), *(pattern for pattern, _ in factors)):
        if pattern != VECTORS and not any(fnmatchcase(name, pattern) for name in names):
            raise JobError(
                f"no parameter matches {pattern!r}{nearest(pattern, names)}: expected one of {', '.join(names[:8])}"
                f"{', …' if len(names) > 8 else ''}, with * for any part of a name"
            )
    found = list[Span]()
    for entry in layout.parameters:
        is_exempt = any(
            (pattern == VECTORS and len(entry.shape) <= 1) or fnmatchcase(entry.name, pattern)
            for pattern in job.no_decay or ()
        )
        factor = next((factor for pattern, factor in factors if fnmatchcase(entry.name, pattern)), 1.0)
        found.append(Span(entry.offset + entry.size, not is_exempt, factor))
    found[-1] = found[-1]._replace(stop=layout.parameter_size)
    return tuple(list(spans)[-1] for _, spans in groupby(found, lambda span: span[1:]))


def _factor(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not pattern or not 0.0 <= factor <= 1e6:
        raise JobError(f"lr_factors has {text!r}: expected PATTERN=NUMBER, as head.*=10")
    return pattern, factor


def rule_of(job: Job, own: OwnCode = NO_CODE, decays: bool = True, lr_factor: float = 1.0) -> Rule:
    """Return the update rule that a job names; each hyperparameter is the job's value of the same name.

    One of the user's own has its own, in its code.
    """
    rule: Any
    if own.optimizer is not None:
        rule = own.optimizer()
    else:
        kind: Any = RULES[job.optimizer]
        rule = kind(**{field.name: getattr(job, field.name) for field in fields(kind)})
    if not decays:
        if not hasattr(rule, "weight_decay"):
            raise JobError(f"no_decay with optimizer = {job.optimizer!r}, which has no weight_decay: remove it")
        rule = replace(rule, weight_decay=0.0)
    if lr_factor != 1.0 or job.clip_value is not None:
        rule = AdjustedRule(rule, lr_factor, job.clip_value)
    return rule if job.ema_decay is None else AveragedRule(rule, job.ema_decay)


def rules_of(job: Job, spans: Sequence[Span], own: OwnCode = NO_CODE) -> tuple[tuple[int, Rule], ...]:
    """Return the rule of each span, with the element of the vector up to which it holds.

    With local steps, groups of parameters are those of the local steps.
    """
    if job.local_steps > 1:
        spans = (Span(spans[-1].stop),)
    rules = {group: rule_of(job, own, *group) for group in dict.fromkeys(span[1:] for span in spans)}
    return tuple((span.stop, rules[span[1:]]) for span in spans)


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
    # A moving average is one of the weights after whole steps.
    alone = {"ema_decay": None, "local_steps": 1, "micro_batches": 1, "global_batch": batch}
    return msgspec.structs.replace(job, **own, **alone)


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


def check_rule(job: Job, own: OwnCode) -> None:
    """Raise `ModelError` if a rule of the user's own is not one: element by element, with all its state in slots."""
    if own.optimizer is None:
        return
    numbers = np.linspace(-1.0, 1.0, TRIED, dtype=np.float32)
    try:
        rule = rule_of(job, own)
        whole = _tried(rule, numbers, [TRIED], in_place=True)
        cut = _tried(rule, numbers, [TRIED // 4, TRIED], in_place=False)
    except Exception as error:
        raised = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"optimizer = {job.optimizer!r} raised {raised}: expected a rule, with init(size) and update(weights, "
            "gradient, slots, step, lr, out)"
        ) from error
    if np.isnan(whole["weights"]).any():
        raise ModelError(
            f"optimizer = {job.optimizer!r} does not write all of out, or makes NaN of weights from -1 to 1: "
            "expected update to write the new weights into out, as out[:] = weights - lr * gradient"
        )
    for name, one in whole.items():
        if one.shape != cut[name].shape or one.dtype != np.float32 or one.tobytes() != cut[name].tobytes():
            raise ModelError(
                f"optimizer = {job.optimizer!r} makes other {name} of a part of a vector than of the whole: expected "
                "the same, element by element, from slots.old to slots.new and to out; it keeps no other state"
            )


def _tried(rule: Rule, numbers: Any, stops: Sequence[int], *, in_place: bool) -> dict[str, Any]:
    """Return the weights and slots after two steps, made part by part up to each of `stops`."""
    weights, state = numbers.copy(), rule.init(len(numbers))
    for step in range(2):
        out, new = (
            np.full_like(weights, np.nan),
            state if in_place else {name: each.copy() for name, each in state.items()},
        )
        for start, stop in zip([0, *stops], stops, strict=False):
            part = slice(start, stop)
            slots = SlotSets({n: each[part] for n, each in state.items()}, {n: each[part] for n, each in new.items()})
            rule.update(weights[part], numbers[::-1][part].copy(), slots, step, 0.1, out[part])
        weights, state = out, new
    return {"weights": weights, **state}


class OwnSchedule(msgspec.Struct, frozen=True):
    """A rate times what a function of the user's own makes of the step and of the number of steps."""

    lr: float
    steps: int
    function: Callable[[int, int], Any]
    name: str

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0; `ModelError` if the function returns no factor."""
        try:
            factor = float(self.function(step, self.steps))
        except Exception as error:
            raised = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(
                f"schedule = {self.name!r} raised {raised} for step {step}: expected a function of the step and of the "
                "number of steps that returns a factor of lr"
            ) from error
        if not 0.0 <= factor <= 1e30:
            raise ModelError(f"schedule = {self.name!r} returned {factor!r} for step {step}: expected at least 0")
        return self.lr * factor


def schedule_of(job: Job, steps: int, steps_per_epoch: int, own: OwnCode = NO_CODE) -> Schedule:
    """Return the learning rates of a run of so many steps; JobError if its warm-up takes all of them."""
    if job.warmup_steps >= steps:
        raise JobError(
            f"warmup_steps = {job.warmup_steps!r} is not below the run's {steps} steps: lower it or train longer"
        )
    after = _after_warmup(job, steps, steps_per_epoch, own)
    return LinearWarmup(after, job.warmup_steps, start_factor=1 / job.warmup_steps) if job.warmup_steps else after


def _after_warmup(job: Job, steps: int, steps_per_epoch: int, own: OwnCode) -> Schedule:
    if own.schedule is not None:
        return OwnSchedule(job.lr, steps, own.schedule, job.schedule)
    match job.schedule:
        case "step":
            return Step(job.lr, every=job.decay_every * steps_per_epoch, gamma=job.decay_factor)
        case "exponential":
            return Exponential(job.lr, every=job.decay_every * steps_per_epoch, gamma=job.decay_factor)
        case "polynomial":
            return Polynomial(job.lr, steps=steps, power=job.decay_power, min_lr=job.min_lr)
        case "cosine":
            return Cosine(job.lr, steps=steps, min_lr=job.min_lr)
        case "one-cycle":
            return OneCycle(job.lr, steps=steps)
        case _:
            return Constant(job.lr)


class UpdatePolicy(UpdateRule, frozen=True, kw_only=True):
    """All that a process needs to turn the sums of a slice into new weights; it is the same for all slices."""

    schedule: Schedule
    clip_norm: float | None
    #: The groups of the trained values, for servers that have a part of them.
    spans: Sequence[Span] = ()
    #: How sums are rounded over the tree.
    wire: Quantization = EXACT


def policy_of(job: Job, samples: int, spans: Sequence[Span], momenta: Vector, own: OwnCode = NO_CODE) -> UpdatePolicy:
    """Return how a job's sums become weights, of a model with trained values in these spans.

    The job has so many training samples. `JobError` if a warm-up takes all steps.
    """
    steps, steps_per_epoch = job.total_steps(samples), -(-samples // job.global_batch)
    if job.local_steps > 1:  # workers need it: whatever is wrong with it is found here, before there are any
        replica_schedule(job, steps, steps_per_epoch)
    parameter_size = spans[-1].stop
    return UpdatePolicy(
        rules=rules_of(job, spans, own),
        schedule=schedule_of(job, steps, steps_per_epoch, own),
        clip_norm=job.clip_norm,
        spans=spans,
        parameter_size=parameter_size,
        momenta=outer_momenta(job, momenta),
        wire=quantization_of(job.wire, job.seed, parameter_size),
        wire_weights=quantization_of(job.wire_weights, job.seed, parameter_size),
    )
