"""From a job's values to rule and schedule."""

from typing import get_args

import pytest

from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import rule_of, schedule_of
from lockstep.common.optim.rules import RULES, AdamRule, AdamWRule, OptimizerName, RMSPropRule, Rule, SGDRule
from lockstep.common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step


def test_every_rule_is_registered_and_made_of_a_jobs_values() -> None:
    assert list(RULES) == list(get_args(OptimizerName))
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
        (Job(lr=0.5, schedule="cosine"), Cosine(0.5, steps=30)),
        (Job(lr=0.5, schedule="one-cycle"), OneCycle(0.5, steps=30)),
        (Job(lr=0.5, warmup_steps=4), LinearWarmup(Constant(0.5), 4, start_factor=0.25)),
    ],
)
def test_schedules_over_thirty_steps(job: Job, schedule: Schedule) -> None:
    assert schedule_of(job, 30, 10) == schedule


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
@pytest.mark.parametrize("steps", [1, 2])
def test_every_schedule_has_a_rate_for_the_shortest_runs(schedule: str, steps: int) -> None:
    job = Job(schedule=schedule, steps=steps)  # type: ignore[arg-type]  # a name that parametrize gives as str
    rates = [schedule_of(job, steps, 10).rate(step) for step in range(steps)]
    assert all(0.0 < rate <= job.lr for rate in rates)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    job = Job(warmup_steps=30)
    with pytest.raises(JobError, match="warmup_steps = 30 is not below the run's 30 steps"):
        schedule_of(job, 30, 10)
