"""From a job's values to rule and schedule."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.slices import Span
from lockstep.common.errors import JobError, ModelError
from lockstep.common.job.job import SCHEDULES, Job
from lockstep.common.job.optimizer import (
    check_rule,
    hyperparameters,
    outer_momenta,
    policy_of,
    replica_of,
    replica_schedule,
    rule_of,
    rules_of,
    schedule_of,
    spans_of,
)
from lockstep.common.job.own_code import OwnCode
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.optim.rules import (
    AVERAGE,
    RULES,
    AdamRule,
    AdamWRule,
    AdjustedRule,
    AveragedRule,
    RMSPropRule,
    Rule,
    SGDRule,
    SlotSets,
    Vector,
    averaged,
)
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
from tests.lockstep.api.test_own_functions import Lion


def test_every_rule_is_registered_and_made_of_a_jobs_values() -> None:
    for name, kind in RULES.items():
        assert type(rule_of(Job(optimizer=name))) is kind


@pytest.mark.parametrize(
    ("job", "rule"),
    [
        (
            Job(momentum=0.5, nesterov=True, weight_decay=0.1),
            SGDRule(momentum=0.5, nesterov=True, weight_decay=0.1),
        ),
        (
            Job(optimizer="adam", beta1=0.8, beta2=0.9, eps=0.1, weight_decay=0.2),
            AdamRule(beta1=0.8, beta2=0.9, eps=0.1, weight_decay=0.2),
        ),
        (
            Job(optimizer="adamw", beta1=0.8, beta2=0.9, eps=0.1, weight_decay=0.2),
            AdamWRule(beta1=0.8, beta2=0.9, eps=0.1, weight_decay=0.2),
        ),
        (
            Job(optimizer="rmsprop", alpha=0.8, eps=0.1, momentum=0.3, weight_decay=0.2),
            RMSPropRule(alpha=0.8, eps=0.1, momentum=0.3, weight_decay=0.2),
        ),
    ],
)
def test_rules(job: Job, rule: Rule) -> None:
    assert rule_of(job) == rule


@pytest.mark.parametrize(
    ("job", "schedule"),
    [
        (Job(lr=0.5), Constant(0.5)),
        (Job(lr=0.5, schedule="step", decay_every=2, decay_factor=0.3), Step(0.5, every=20, gamma=0.3)),
        (Job(lr=0.5, schedule="exponential", decay_factor=0.9), Exponential(0.5, every=10, gamma=0.9)),
        (Job(lr=0.5, schedule="polynomial", decay_power=2.0, min_lr=0.1), Polynomial(0.5, 30, power=2.0, min_lr=0.1)),
        (Job(lr=0.5, schedule="cosine"), Cosine(0.5, steps=30)),
        (Job(lr=0.5, schedule="cosine", min_lr=0.1), Cosine(0.5, steps=30, min_lr=0.1)),
        (Job(lr=0.5, schedule="one-cycle"), OneCycle(0.5, steps=30)),
        (Job(lr=0.5, warmup_steps=4), LinearWarmup(Constant(0.5), 4, start_factor=0.25)),
    ],
)
def test_schedules_over_thirty_steps(job: Job, schedule: Schedule) -> None:
    assert schedule_of(job, 30, 10) == schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_schedule_has_a_rate_for_the_shortest_runs(schedule: str, steps: int) -> None:
    job = Job(schedule=schedule, steps=steps)
    rates = [schedule_of(job, steps, 10).rate(step) for step in range(steps)]
    assert all(0.0 < rate <= job.lr for rate in rates)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    job = Job(warmup_steps=30)
    with pytest.raises(JobError, match="warmup_steps = 30 is not below the run's 30 steps"):
        schedule_of(job, 30, 10)


LAYOUT = ParameterLayout.of({"body.weight": (3, 2), "body.bias": (3,), "norm.weight": (3,), "head.weight": (2, 3)}, {})


def test_parameters_without_decay_and_those_with_a_rate_of_their_own_are_spans_of_the_vector() -> None:
    assert spans_of(Job(), LAYOUT) == (Span(18),)
    job = Job(weight_decay=0.1, no_decay=("vectors",), lr_factors=("head.*=10", "*.weight=2"))
    assert spans_of(job, LAYOUT) == (
        Span(6, True, 2.0),
        Span(9, False),
        Span(12, False, 2.0),
        Span(18, True, 10.0),
    )
    rules = rules_of(job, spans_of(job, LAYOUT))
    assert [stop for stop, _ in rules] == [6, 9, 12, 18]
    assert rules[1][1] == SGDRule(momentum=0.9)
    assert rules[3][1] == AdjustedRule(SGDRule(momentum=0.9, weight_decay=0.1), 10.0)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(JobError, match=r"no parameter matches 'body.wieght' \(did you mean 'body.weight'\?\)"):
        spans_of(Job(no_decay=("body.wieght",)), LAYOUT)
    with pytest.raises(JobError, match=r"lr_factors has 'head': expected PATTERN=NUMBER, as head\.\*=10"):
        spans_of(Job(lr_factors=("head",)), LAYOUT)


def test_clipping_by_value_and_the_average_are_laid_around_the_rule() -> None:
    job = Job(momentum=0.0, clip_value=0.5, ema_decay=0.9)
    assert rule_of(job) == AveragedRule(AdjustedRule(SGDRule(), most=0.5), 0.9)


def test_a_rule_of_ones_own_has_its_own_numbers_and_may_have_groups() -> None:
    job, own = Job(optimizer="lion.py:Lion", no_decay=("vectors",)), OwnCode(optimizer=Lion)
    check_rule(job, own)
    assert rule_of(job, own) == Lion()
    assert rule_of(job, own, decays=False) == Lion(weight_decay=0.0)


@dataclass(frozen=True)
class Remembering(Lion):
    """A rule whose state is not in its slots."""

    seen: list[Any] = field(default_factory=list)

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        self.seen.append(step)
        out[:] = weights - lr * len(self.seen) * gradient


@dataclass(frozen=True)
class Normed(Lion):
    """A rule that is not element by element."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        out[:] = weights - lr * gradient / np.linalg.norm(gradient)


@dataclass(frozen=True)
class Returning(Lion):
    """A rule that returns the new weights instead of writing them."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> Any:
        slots.new["exp_avg"][:] = slots.old["exp_avg"]
        return weights - lr * gradient


@dataclass(frozen=True)
class WritingAPart(Lion):
    """A rule that does not write the last of the new weights."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        out[:-1] = (weights - lr * gradient)[:-1]


@pytest.mark.parametrize("rule", [Returning, WritingAPart])
def test_a_rule_that_does_not_write_all_new_weights_is_refused(rule: Any) -> None:
    with pytest.raises(ModelError, match=r"does not write all of out, .*: expected update to write"):
        check_rule(Job(optimizer="mine.py:rule"), OwnCode(optimizer=rule))


@pytest.mark.parametrize("rule", [Remembering, Normed])
def test_what_is_no_rule_is_refused(rule: Any) -> None:
    with pytest.raises(ModelError, match="makes other weights of a part of a vector than of the whole"):
        check_rule(Job(optimizer="mine.py:rule"), OwnCode(optimizer=rule))
    with pytest.raises(ModelError, match=r"raised AttributeError: .*: expected a rule, with init"):
        check_rule(Job(optimizer="mine.py:rule"), OwnCode(optimizer=object))  # type: ignore[arg-type]  # what is wrong with it


def test_the_average_is_pytorchs() -> None:
    rule, weights = AveragedRule(SGDRule(), 0.75), np.array([1.0, -2.0], np.float32)
    slots, expected = rule.init(2), np.zeros(2, np.float32)
    for step in range(4):
        out = np.empty_like(weights)
        rule.update(weights, np.array([0.5, 1.0], np.float32), SlotSets(slots), step, 0.1, out)
        weights = out
        expected = weights if step == 0 else np.float32(0.75) * expected + np.float32(0.25) * weights
        np.testing.assert_allclose(slots[AVERAGE], expected, rtol=1e-6)


def test_a_schedule_of_ones_own_is_a_factor() -> None:
    job, own = Job(lr=0.5, schedule="mine.py:half"), OwnCode(schedule=lambda step, steps: 1 - step / steps)
    assert schedule_of(job, 10, 5, own).rate(4) == pytest.approx(0.3)
    with pytest.raises(ModelError, match=r"schedule = 'mine.py:half' returned -1.0 for step 4: expected at least 0"):
        schedule_of(job, 10, 5, OwnCode(schedule=lambda step, steps: -1.0)).rate(4)


def test_a_schedule_of_ones_own_that_raises_is_named_with_the_step() -> None:
    schedule = schedule_of(Job(schedule="mine.py:none"), 10, 5, OwnCode(schedule=lambda step, steps: 1 // (step - 4)))
    assert schedule.rate(6) == 0.0
    with pytest.raises(
        ModelError, match=r"'mine.py:none' raised ZeroDivisionError: .* for step 4: expected a function"
    ):
        schedule.rate(4)


def updated(rule: Rule, gradient: Vector, lr: float) -> list[float]:
    """Return the weights after two steps."""
    weights, slots = np.array([1.0, -2.0, 0.5], np.float32), rule.init(3)
    for step in range(2):
        out = np.empty_like(weights)
        rule.update(weights, gradient.copy(), SlotSets(slots), step, lr, out)
        weights = out
    return [float(each) for each in weights]


GRADIENT = np.array([3.0, -0.2, -5.0], np.float32)


@pytest.mark.parametrize("inner", [SGDRule(momentum=0.9), AdamRule(weight_decay=0.1)])
def test_a_rule_around_another_changes_the_gradient_or_the_rate_alone(inner: Rule) -> None:
    assert updated(AdjustedRule(inner, most=0.5), GRADIENT, 0.1) == updated(inner, GRADIENT.clip(-0.5, 0.5), 0.1)
    assert updated(AdjustedRule(inner, 3.0), GRADIENT, 0.1) == updated(inner, GRADIENT, 3.0 * 0.1)
    assert updated(AveragedRule(inner, 0.9), GRADIENT, 0.1) == updated(inner, GRADIENT, 0.1)
    assert AdjustedRule(inner, 3.0, 0.5).init(3).keys() == inner.init(3).keys()
    assert {slot.dtype for slot in AveragedRule(inner, 0.9).init(3).values()} == {np.dtype(np.float32)}


def test_the_average_is_one_of_the_parameters_and_statistics_are_as_they_are() -> None:
    weights = np.arange(4, dtype=np.float32)
    assert averaged(weights, {"momentum": weights}) is None
    found = averaged(weights, {AVERAGE: np.array([9.0, 8.0], np.float32)})
    assert found is not None
    assert (found.tolist(), weights.tolist()) == ([9.0, 8.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])


def test_the_names_of_parameters_are_cut_in_an_error_if_they_are_many() -> None:
    for count, more in ((8, ""), (9, ", …")):
        layout = ParameterLayout.of({f"p{number}": (1,) for number in range(count)}, {})
        with pytest.raises(JobError) as caught:
            spans_of(Job(no_decay=("none.*",)), layout)
        assert str(caught.value).endswith(f"expected one of p0, p1, p2, p3, p4, p5, p6, p7{more}, with * for any part "
                                          "of a name")  # fmt: skip


def test_what_stands_after_the_last_sign_of_equality_is_the_factor() -> None:
    layout = ParameterLayout.of({"a=b": (2,), "c": (1,)}, {})
    assert spans_of(Job(lr_factors=("a=b=1e6",)), layout) == (Span(2, True, 1e6), Span(3))
    for text in ("c=fast", "c=nan", "c=-1", "c=1e7", "=2"):
        with pytest.raises(JobError, match="expected PATTERN=NUMBER"):
            spans_of(Job(lr_factors=(text,)), layout)


@dataclass(frozen=True)
class Hasty(Lion):
    """A rule that writes a slot before it has read it, which shows only where both are the same memory."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        slots.new["exp_avg"][:] = slots.old["exp_avg"] + gradient
        out[:] = weights - lr * slots.old["exp_avg"]


@dataclass(frozen=True)
class OfDoubles(Lion):
    """A rule whose slots are of another type."""

    def init(self, size: int) -> dict[str, Vector]:
        return {"exp_avg": np.zeros(size)}


def test_a_rule_that_reads_what_it_has_written_or_has_other_slots_is_refused() -> None:
    with pytest.raises(ModelError, match="makes other weights of a part of a vector than of the whole"):
        check_rule(Job(optimizer="mine.py:rule"), OwnCode(optimizer=Hasty))
    with pytest.raises(ModelError, match="makes other exp_avg of a part of a vector than of the whole"):
        check_rule(Job(optimizer="mine.py:rule"), OwnCode(optimizer=OfDoubles))


#: Of three local steps for each of four micro-batches; an epoch has ten steps.
LOCALLY = Job(
    global_batch=30,
    micro_batches=4,
    local_steps=3,
    lr=0.7,
    nesterov=True,
    ema_decay=0.9,
    lr_factors=("head.*=10",),
    local_optimizer="adam",
    local_lr=0.01,
    local_beta1=0.8,
    local_clip_norm=2.0,
    local_schedule="step",
    local_warmup_steps=2,
)


def test_a_replica_alone_is_a_job_of_its_local_steps() -> None:
    alone = replica_of(LOCALLY)
    assert (alone.optimizer, alone.lr, alone.beta1, alone.clip_norm, alone.nesterov) == ("adam", 0.01, 0.8, 2.0, False)
    assert (alone.global_batch, alone.micro_batches, alone.local_steps, alone.ema_decay) == (2, 1, 1, None)
    assert (alone.schedule, alone.warmup_steps) == ("step", 6)
    assert alone.lr_factors == LOCALLY.lr_factors
    schedule = Step(0.01, every=30, gamma=0.1)
    assert replica_schedule(LOCALLY, 20, 10) == LinearWarmup(schedule, 6, start_factor=1 / 6)
    with pytest.raises(
        JobError, match=r"local_warmup_steps = 2 is not below the run's 2 steps: lower it or train longer"
    ):
        replica_schedule(LOCALLY, 2, 10)


def test_with_local_steps_groups_are_theirs_and_statistics_are_replaced() -> None:
    spans, momenta = spans_of(LOCALLY, LAYOUT), np.array([0.1, 0.2], np.float32)
    assert rules_of(LOCALLY, spans) == ((18, AveragedRule(SGDRule(momentum=0.9, nesterov=True), 0.9)),)
    assert len(rules_of(replica_of(LOCALLY), spans)) == 2
    assert outer_momenta(LOCALLY, momenta).tolist() == [1.0, 1.0]
    assert outer_momenta(Job(), momenta) is momenta


def test_hyperparameters_are_what_rules_have_in_the_order_of_a_job() -> None:
    assert hyperparameters() == ["momentum", "nesterov", "weight_decay", "beta1", "beta2", "alpha", "eps"]


def test_the_policy_knows_where_statistics_begin() -> None:
    model = AutogradModel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.25)))
    job = Job(clip_norm=2.0)
    policy = policy_of(job, 1280, spans_of(job, model.layout), model.momenta())
    assert (policy.parameter_size, policy.clip_norm) == (21, 2.0)
    np.testing.assert_array_equal(policy.momenta, np.full(6, 0.25, np.float32))
