"""Schedules give the rates of PyTorch's, and keep the last one after their end."""

import math
from typing import Any

import pytest

from lockstep.common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step

# From torch 2.13.0+cpu, for each line: o.param_groups[0]["lr"] before each step of
#   o = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1); s = <scheduler>(o, <options>)
REFERENCE: list[tuple[Schedule, list[float]]] = [
    # StepLR, step_size=3, gamma=0.5
    (Step(0.1, every=3, gamma=0.5), [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025]),
    # CosineAnnealingLR, T_max=6, eta_min=0.01
    (
        Cosine(0.1, steps=6, min_lr=0.01),
        [0.1, 0.0939711431703, 0.0775, 0.055, 0.0325, 0.0160288568297, 0.01],
    ),
    # OneCycleLR, max_lr=0.1, total_steps=10
    (
        OneCycle(0.1, steps=10),
        [
            *(0.004, 0.052, 0.1, 0.0950484632013, 0.081174565395),
            *(0.0611262021936, 0.0388741978064, 0.018825834605, 0.00495193679865, 4e-07),
        ],
    ),
    # ChainedScheduler of LinearLR, start_factor=0.25, total_iters=4, and StepLR, step_size=3, gamma=0.5
    (
        LinearWarmup(Step(0.1, every=3, gamma=0.5), steps=4, start_factor=0.25),
        [0.025, 0.04375, 0.0625, 0.040625, 0.05, 0.05, 0.025],
    ),
    (Constant(0.1), [0.1, 0.1, 0.1]),
]


@pytest.mark.parametrize(("schedule", "expected"), REFERENCE, ids=str)
def test_rates_are_those_of_pytorch(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.rate(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    ("schedule", "last"), [(Cosine(0.1, steps=6, min_lr=0.01), 0.01), (OneCycle(0.1, steps=10), 4e-7)], ids=str
)
def test_after_the_end_the_rate_stays(schedule: Schedule, last: float) -> None:
    assert [schedule.rate(step) for step in (10, 11, 10**9)] == pytest.approx([last] * 3)


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_cycle_of_any_length_stays_between_its_rates(steps: int, pct_start: float) -> None:
    # Where pct_start·steps is 1, PyTorch divides zero by zero.
    rates = [OneCycle(0.1, steps, pct_start).rate(step) for step in range(steps + 2)]
    assert all(4e-7 * (1 - 1e-9) <= rate <= 0.1 for rate in rates)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Constant(-0.1), "lr is -0.1: expected a finite number of at least 0"),
        (lambda: Constant(math.inf), "lr is inf"),
        (lambda: Step(0.1, every=0), "every is 0: expected at least 1"),
        (lambda: Cosine(0.1, steps=0), "steps is 0"),
        (lambda: OneCycle(0.1, steps=5, pct_start=1.5), r"pct_start is 1.5: expected a number in \[0, 1\]"),
        (lambda: OneCycle(0.1, steps=5, div_factor=0.0), "div_factor is 0.0"),
        (lambda: LinearWarmup(Constant(0.1), steps=5, start_factor=2.0), "start_factor is 2.0"),
    ],
)
def test_options_out_of_range_are_named(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_what_is_not_given_is_as_in_pytorch() -> None:
    assert Step(1.0, every=1).gamma == 0.1
    assert LinearWarmup(Constant(1.0), steps=1).start_factor == 1.0 / 3.0


@pytest.mark.parametrize(
    ("kind", "values", "name"),
    [
        (Step, {"lr": -1.0, "every": 1}, "lr"),
        (Step, {"lr": 1.0, "every": 1, "gamma": -1.0}, "gamma"),
        (Cosine, {"lr": -1.0, "steps": 1}, "lr"),
        (Cosine, {"lr": 1.0, "steps": 1, "min_lr": -1.0}, "min_lr"),
        (OneCycle, {"max_lr": -1.0, "steps": 1}, "max_lr"),
        (OneCycle, {"max_lr": 1.0, "steps": 0}, "steps"),
        (OneCycle, {"max_lr": 1.0, "steps": 5, "div_factor": math.inf}, "div_factor"),
        (OneCycle, {"max_lr": 1.0, "steps": 5, "final_div_factor": 0.0}, "final_div_factor"),
        (LinearWarmup, {"after": Constant(1.0), "steps": 0}, "steps"),
    ],
)
def test_every_option_has_its_limits(kind: Any, values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*: expected"):
        kind(**values)


def test_options_may_be_at_the_ends_of_their_ranges() -> None:
    assert [LinearWarmup(Constant(1.0), 2, start_factor=0.0).rate(step) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert [LinearWarmup(Constant(1.0), 2, start_factor=1.0).rate(step) for step in range(4)] == [1.0] * 4
    assert OneCycle(1.0, 5, div_factor=1.0, final_div_factor=1.0).rate(0) == 1.0
