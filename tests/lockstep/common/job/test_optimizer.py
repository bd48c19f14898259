"""From a job's values to rule and schedule."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.errors import JobError, ModelError
from lockstep.common.job.job import SCHEDULES, Job
from lockstep.common.job.optimizer import Group, Span, check_rule, rule_of, rules_of, schedule_of, spans_of
from lockstep.common.job.own_code import OwnCode
from lockstep.common.optim.rules import RULES, AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule, SlotSets, Vector
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
from lockstep.common.optim.wrapped import AVERAGE, AveragedRule, ClippedRule, ScaledRule


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
    assert spans_of(Job(), LAYOUT) == (Span(18, Group()),)
    job = Job(weight_decay=0.1, no_decay=("vectors",), lr_factors=("head.*=10", "*.weight=2"))
    assert spans_of(job, LAYOUT) == (
        Span(6, Group(True, 2.0)),
        Span(9, Group(False, 1.0)),
        Span(12, Group(False, 2.0)),
        Span(18, Group(True, 10.0)),
    )
    rules = rules_of(job, spans_of(job, LAYOUT))
    assert [stop for stop, _ in rules] == [6, 9, 12, 18]
    assert rules[1][1] == SGDRule(momentum=0.9)
    assert rules[3][1] == ScaledRule(SGDRule(momentum=0.9, weight_decay=0.1), 10.0)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(JobError, match=r"no parameter matches 'body.wieght' \(did you mean 'body.weight'\?\)"):
        spans_of(Job(no_decay=("body.wieght",)), LAYOUT)
    with pytest.raises(JobError, match=r"lr_factors has 'head': expected PATTERN=NUMBER, as head\.\*=10"):
        spans_of(Job(lr_factors=("head",)), LAYOUT)


def test_clipping_by_value_and_the_average_are_laid_around_the_rule() -> None:
    job = Job(momentum=0.0, clip_value=0.5, ema_decay=0.9)
    assert rule_of(job) == AveragedRule(ClippedRule(SGDRule(), 0.5), 0.9)


@dataclass(frozen=True)
class Lion:
    """Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023."""

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01

    def init(self, size: int) -> dict[str, Vector]:
        return {"exp_avg": np.zeros(size, np.float32)}

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        mean = slots.old["exp_avg"]
        direction = np.sign(self.beta1 * mean + (1 - self.beta1) * gradient)
        out[:] = weights - lr * (direction + self.weight_decay * weights)
        slots.new["exp_avg"][:] = self.beta2 * mean + (1 - self.beta2) * gradient


def test_a_rule_of_ones_own_has_its_own_numbers_and_may_have_groups() -> None:
    job, own = Job(optimizer="lion.py:Lion", no_decay=("vectors",)), OwnCode(optimizer=Lion)
    check_rule(job, own)
    assert rule_of(job, own) == Lion()
    assert rule_of(job, own, Group(decays=False)) == Lion(weight_decay=0.0)


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
