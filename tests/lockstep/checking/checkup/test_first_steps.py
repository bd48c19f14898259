"""Where a loss may start, which rates are too large, and when workers pay, on both sides of each limit."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.checking.checkup.activations import Signals
from lockstep.checking.checkup.consultation import trial_subject
from lockstep.checking.checkup.first_steps import check_first_loss, check_rate, check_workers, first_steps
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.checking.checkup.training import TrialRun, TrialSubject
from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import OwnCode
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.runtime.clock import Clock, ManualClock

LOG4 = math.log(4)


def signals(loss: float, outputs: NDArray[Any] | None = None, classes: int = 4, guess: float = 0.0) -> Signals:
    made = np.array([[-1.0, 1.0, 3.0, 5.0]] * 2, np.float32) if outputs is None else outputs
    return Signals([], loss, made, classes, guess, 1.0, [], None)


@pytest.mark.parametrize(
    ("loss", "is_found"),
    [(1.5 * LOG4 + 0.49, False), (1.5 * LOG4 + 0.51, True), (math.nan, False), (math.inf, False)],
)
def test_the_first_loss_of_classes_is_that_of_guessing(loss: float, is_found: bool) -> None:
    found = check_first_loss(signals(loss))
    assert [finding.what for finding in found] == [
        f"the loss starts at {loss:.2f}, and not near log(4) = 1.39"
    ] * is_found
    assert ["deviation of 2.24," in finding.evidence for finding in found] == [True] * is_found


@pytest.mark.parametrize(
    ("loss", "guess", "is_found"), [(5.9, 2.0, False), (6.1, 2.0, True), (1.0, 0.0, False), (math.inf, 2.0, False)]
)
def test_the_first_loss_of_numbers_is_near_that_of_their_mean(loss: float, guess: float, is_found: bool) -> None:
    found = check_first_loss(signals(loss, classes=0, guess=guess))
    assert [finding.what for finding in found] == [
        f"the loss starts at {loss:.3g}; always predicting the mean costs 2"
    ] * is_found
    assert [each.evidence for each in found] == ["the model's outputs have mean 2 and deviation 2.24"] * is_found


@pytest.mark.parametrize(
    ("outputs", "classes", "least"),
    [
        ([[0.25, 0.75], [0.0, 1.0]], 2, "0.31"),
        ([[0.25, 0.75], [0.0, 1.00005]], 2, "0.31"),
        ([[0.25, 0.5, 0.25]], 3, "0.55"),
        ([[0.25, 0.75], [-0.5, 1.5]], 2, ""),
        ([[0.25, 0.75], [0.5, 0.6]], 2, ""),
        ([[0.25, 0.75], [0.5, 0.501]], 2, ""),
        ([[1.0], [1.0]], 1, ""),
    ],
)
def test_probabilities_are_no_scores(outputs: list[list[float]], classes: int, least: str) -> None:
    found = check_first_loss(signals(0.4, np.array(outputs, np.float32), classes))
    assert [finding.kind for finding in found] == ["softmax-twice"] * bool(least)
    assert [f"a loss of {least}," in finding.cause for finding in found] == [True] * len(found)


def test_both_may_be_wrong() -> None:
    found = check_first_loss(signals(9.0, np.array([[0.25, 0.75]], np.float32), 2))
    assert [finding.kind for finding in found] == ["softmax-twice", "first-loss"]


def target(model: nn.Module | None = None, workers: int | None = None, **values: Any) -> ExaminationTarget:
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    features[:, 0] += 2 * labels
    part = Dataset(features, labels, 2)
    job = Job(**{"global_batch": 10, "micro_batches": 2, "epochs": 5, "lr": 0.1, "momentum": 0.0, **values})
    model = model or nn.Sequential(nn.Linear(3, 2)).initialize(2)
    return ExaminationTarget(job, TrainTest("arrays", part, part), model, workers)


def subject(given: ExaminationTarget, clock: Clock | None = None) -> TrialSubject:
    """Return what tries the model of a target."""
    return trial_subject(given.job, AutogradModel(given.model), given.data, clock or ManualClock(), given.own)


def trial(losses: list[float], rate: float = 0.1) -> TrialRun:
    """Return a trial with these losses."""
    nothing = np.empty(0, np.float32)
    return TrialRun(losses, nothing, 1.0, nothing, rate)


class Ticking(ManualClock):
    """Each look at it takes a second longer than the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def now(self) -> float:
        self.looks += 1
        self.seconds += self.looks
        return self.seconds


def plain(target: ExaminationTarget, rates: list[float]) -> list[float]:
    """Return the losses of plain SGD at these rates, as a loop has them."""
    model, losses = target.probe(), []
    for step, rate in enumerate(rates):
        images, targets = target.batch(step, 128)
        model.reseed(target.job.seed, step, 0)
        model.zero_grad()
        loss = target.objective.mean_loss(model(Tensor(images)), targets)
        loss.backward()
        losses.append(float(loss.data))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.data -= np.float32(rate) * parameter.grad
    return losses


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_steps_are_those_of_the_job(scale: float, share: float) -> None:
    given = target(nn.Sequential(nn.Dropout(share), nn.Linear(3, 2)).initialize(2))
    before = given.model.state_dict()
    found = first_steps(subject(given, Ticking()), scale)
    assert found.losses == pytest.approx(plain(given, [0.1 * scale] * 12), rel=1e-5)
    assert found.rate == 0.1 * scale
    # Between two looks at the clock are 2, 3, ..., 13 seconds.
    assert found.step_s == 7.5
    assert all(np.array_equal(array, before[name]) for name, array in given.model.state_dict().items())


@pytest.mark.parametrize(
    ("warmup", "epochs", "steps"),
    [
        (3, 5, [0, 1, 2, *[3] * 9]),
        (12, 5, [*range(12), 12]),
        (25, 20, [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25]),
        (1, 1, [0, 1, 1, 1]),
    ],
)
def test_a_rise_of_the_rate_is_made_in_few_steps(warmup: int, epochs: int, steps: list[int]) -> None:
    given = target(warmup_steps=warmup, epochs=epochs)
    found = first_steps(subject(given))
    rates = [0.1 * (1 + (warmup - 1) * step / warmup) / warmup for step in steps]
    assert found.losses == pytest.approx(plain(given, rates), rel=1e-5)
    assert found.rate == pytest.approx(0.1)


def test_steps_end_when_the_loss_is_not_finite() -> None:
    deep = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).initialize(2)
    found = first_steps(subject(target(deep, lr=1e30)))
    assert 1 < len(found.losses) < 12
    assert not math.isfinite(found.losses[-1])
    assert all(map(math.isfinite, found.losses[:-1]))
    for parameter in deep.parameters():
        parameter.data.fill(np.nan)
    assert first_steps(subject(target(deep), Ticking())).step_s == 0.0


def test_a_rate_that_does_not_diverge_is_no_finding() -> None:
    assert check_rate(subject(target()), trial([2.0, 3.49]), "lr") == []


@pytest.mark.parametrize(
    ("lr", "losses", "change", "advice"),
    [
        (0.3, [2.0, 9.0], "from 2.00 to 9", ": with 0.09 it went from 1.10 to 0.67"),
        (0.3, [2.0, 40.0, 0.5], "from 2.00 to 40", ": with 0.09 it went from 1.10 to 0.67"),
        (1e3, [2.0, math.inf], "from 2.00 to inf", ": with 10 it went from 1.10 to 1.10"),
        (1e30, [2.0, math.inf], "from 2.00 to inf", "; no rate down to a ten-thousandth of it works, so look for "),
    ],
)
def test_a_rate_that_diverges_is_a_finding_with_one_that_does_not(
    lr: float, losses: list[float], change: str, advice: str
) -> None:
    given = target(lr=lr)
    (finding,) = check_rate(subject(given), trial(losses, 4.5678), "lr")
    assert finding.what == f"the learning rate is too large: lr = {lr:g}"
    assert finding.evidence == f"in {len(losses)} steps at up to 4.57 the loss went {change}"
    assert finding.cause == "each step overshoots"
    assert finding.change.startswith(f"lower lr, or raise it slowly with warmup_steps{advice}")


@pytest.mark.parametrize(("lr", "rate"), [(1.0, 0.3), (300.0, 9), (1e3, 10), (1e4, 10), (3e3, 3), (3e4, 3), (1e5, 10)])
def test_the_largest_rate_that_works_is_advised(lr: float, rate: float) -> None:
    (finding,) = check_rate(subject(target(lr=lr)), trial([2.0, 9.0]), "lr")
    assert f"warmup_steps: with {rate:g} it went from 1.10 to " in finding.change


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"momentum": 0.9}, "each step overshoots, and momentum 0.9 adds to it"),
        ({"optimizer": "adam", "momentum": 0.9}, "each step overshoots"),
    ],
)
def test_momentum_is_named_if_it_adds(values: dict[str, Any], cause: str) -> None:
    (finding,) = check_rate(subject(target(**values)), trial([2.0, 9.0]), "lr")
    assert finding.cause == cause


#: A model of 8 values takes the exchange alone.
EXCHANGE_S = 0.5e-3 + 2.4e-9 * 8


@pytest.mark.parametrize(
    ("workers", "step_s", "cores", "what"),
    [
        (None, 1e-9, 1, ""),
        (1, 1e-9, 1, ""),
        (3, 1.0, 8, "3 workers are more than 2 micro-batches keep busy"),
        (2, 1.0, 1, "2 workers share 1 core"),
        (2, 1.0, 2, ""),
        (2, 2.02 * EXCHANGE_S, 2, ""),
        (2, 1.98 * EXCHANGE_S, 2, "the model is too small for 2 workers"),
    ],
)
def test_workers_that_do_not_pay_are_found(workers: int | None, step_s: float, cores: int, what: str) -> None:
    found = check_workers(target(workers=workers), step_s, cores)
    assert [finding.what for finding in found] == [what] * bool(what)
    if "small" in what:
        assert found[0].evidence == "one process makes a step in 0.99 ms; with 2 workers it takes about 1 ms"
        assert found[0].cause == "sending 8 gradients and weights takes longer than computing them"
    if "more than" in what:
        assert found[0].cause == "1 of them would be idle all the time"


def test_of_three_workers_on_two_cores_the_cores_are_named() -> None:
    (finding,) = check_workers(target(workers=3, micro_batches=4), 1.0, 2)
    assert finding.what == "3 workers share 2 cores"


def test_a_step_of_a_large_batch_takes_as_many_times_longer() -> None:
    assert check_workers(target(workers=2, global_batch=128), 0.9 * EXCHANGE_S, 2)
    assert not check_workers(target(workers=2, global_batch=384), 0.9 * EXCHANGE_S, 2)


def test_a_large_model_takes_long_to_send() -> None:
    large = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 100_000)).initialize(2)
    (finding,) = check_workers(target(large, workers=2), 2.4e-3, 2)
    # 1.2 ms, and 0.5 ms, and 2.4 ns for each of 300,008 values.
    assert finding.evidence == "one process makes a step in 2.4 ms; with 2 workers it takes about 2.4 ms"
    assert check_workers(target(large, workers=2), 2.5e-3, 2) == []


def test_a_schedule_of_the_users_own_is_used() -> None:
    given = target(schedule="mine.py:half")
    own = ExaminationTarget(given.job, given.data, given.model, own=OwnCode(schedule=lambda step, steps: 0.5))
    assert first_steps(subject(own)).losses == pytest.approx(plain(given, [0.05] * 12), rel=1e-5)
