"""Check the first steps of training: where the loss starts, and whether the job's own rates learn or diverge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from lockstep.checking.checkup.checks.magnitudes import Signals
from lockstep.checking.checkup.finding import Finding
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.job.optimizer import rule_of, schedule_of
from lockstep.common.nn.module import Parameter
from lockstep.common.optim.optimizers import Optimizer
from lockstep.common.runtime.clock import Clock
from lockstep.ps.run.plan import plan_of

#: How far the first loss may be above guessing, and the last above the first: a factor and a summand.
FACTOR, MARGIN = 1.5, 0.5

#: The largest first loss of a regression, as a multiple of the loss of always predicting the mean.
MOST_OF_GUESS = 3.0


def check_first_loss(signals: Signals) -> list[Finding]:
    """Return whether the first loss is too high, or the model's outputs are probabilities and not logits."""
    if not math.isfinite(signals.loss):
        return []
    if not signals.classes:
        return [_far_targets(signals)] if signals.loss > MOST_OF_GUESS * signals.guess > 0 else []
    guess = math.log(signals.classes)
    findings = _probabilities(signals)
    if signals.loss > FACTOR * guess + MARGIN:
        findings.append(_too_high(signals, guess))
    return findings


def _far_targets(signals: Signals) -> Finding:
    size = float(np.std(signals.outputs))
    return Finding(
        kind="first-loss",
        what=f"the loss starts at {signals.loss:.3g}; always predicting the mean costs {signals.guess:.3g}",
        evidence=f"the model's outputs have mean {float(np.mean(signals.outputs)):.3g} and deviation {size:.3g}",
        cause="the targets are far from 0, or the last layer's weights are too large, which wastes the first steps",
        change="standardize the targets (mean 0, deviation 1), or initialize the last layer with smaller weights",
    )


def _too_high(signals: Signals, guess: float) -> Finding:
    spread = float(np.std(signals.outputs))
    return Finding(
        kind="first-loss",
        what=f"the loss starts at {signals.loss:.2f}, and not near log({signals.classes}) = {guess:.2f}",
        evidence=f"the model's outputs have a deviation of {spread:.3g}, and are confident about wrong classes",
        cause="the last layer's weights or the samples are too large; equal probabilities for all classes cost less",
        change="initialize weights with nn.init.kaiming_normal_ or smaller, and normalise the data",
    )


def _probabilities(signals: Signals) -> list[Finding]:
    logits = signals.outputs
    if signals.classes < 2 or not ((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4)):
        return []
    return [
        Finding(
            kind="softmax-twice",
            what="the model ends in softmax, which the loss applies once more",
            evidence="its outputs are not negative and add up to 1 for each sample",
            cause="cross-entropy expects logits: with probabilities, even a perfect model has a loss of "
            f"{math.log(1 + (signals.classes - 1) / math.e):.2f}, and gradients are small",
            change="remove Softmax from the end of the model",
        )
    ]


#: Steps to make, and most samples per step, so that the user waits a few seconds at most.
STEPS, SAMPLES = 12, 128

#: Fractions of the rate to try if it is too large.
SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)


@dataclass(frozen=True)
class FirstSteps:
    """The results of some training steps."""

    losses: list[float]
    #: The largest rate among them.
    rate: float
    #: Median seconds of a step's forward, backward and update.
    step_s: float

    def diverged(self) -> bool:
        """Return whether the loss rose for good."""
        return not self._last() <= FACTOR * self.losses[0] + MARGIN

    def learned(self) -> bool:
        """Return whether the loss fell."""
        return self._last() < self.losses[0]

    def _last(self) -> float:
        return median(self.losses[-3:]) if all(map(math.isfinite, self.losses)) else math.nan


def first_steps(target: ExaminationTarget, clock: Clock, scale: float = 1.0) -> FirstSteps:
    """Make steps on a copy with the job's rates times `scale`, as long as the loss is finite."""
    probe, rates = target.probe(), _rates(target)
    parameters = list(probe.parameters())
    optimizer = Optimizer(parameters, rates[0] * scale, rule_of(target.job))
    losses, times = list[float](), list[float]()
    with np.errstate(all="ignore"):
        for step, rate in enumerate(rates):
            images, targets = target.batch(step, SAMPLES)
            probe.reseed(target.job.seed, step, 0)
            start = clock.now()
            optimizer.zero_grad()
            loss = target.objective.training_loss(probe(Tensor(images)), targets, "mean")
            losses.append(float(loss.data))
            if not math.isfinite(losses[-1]):
                break
            target.walk(loss)
            _clip(parameters, target.job.clip_norm)
            optimizer.lr = rate * scale
            optimizer.step()
            times.append(clock.now() - start)
    return FirstSteps(losses, max(rates) * scale, median(times) if times else 0.0)


def check_rate(target: ExaminationTarget, steps: FirstSteps, clock: Clock) -> list[Finding]:
    """Return whether the learning rate is too large, with the largest fraction of it that works."""
    if not steps.diverged():
        return []
    tries = (first_steps(target, clock, scale) for scale in SCALES)
    good = next((tried for tried in tries if tried.learned()), None)
    advice = "; no rate down to a ten-thousandth of it works, so look for another mistake first"
    if good is not None:
        advice = f": with {good.rate:.3g} it went from {good.losses[0]:.2f} to {good.losses[-1]:.2f}"
    job = target.job
    return [
        Finding(
            kind="rate",
            what=f"the learning rate is too large: lr = {job.lr:g}",
            evidence=f"in {len(steps.losses)} steps at up to {steps.rate:.3g} the loss went {_change(steps.losses)}",
            cause="each step overshoots"
            + (f", and momentum {job.momentum:g} adds to it" if job.optimizer == "sgd" and job.momentum else ""),
            change=f"lower lr, or raise it slowly with warmup_steps{advice}",
        )
    ]


def _rates(target: ExaminationTarget) -> Sequence[float]:
    """Return the rates of the steps: the job's warm-up compressed into few steps, and what follows its peak."""
    job, data = target.job, target.data
    plan = plan_of(job, len(data.train), len(data.test))
    schedule = schedule_of(job, plan.total_steps, plan.steps_per_epoch)
    rates = [schedule.rate(step) for step in range(plan.total_steps)]
    peak = int(np.argmax(rates))
    rise = [rates[round(place * peak / STEPS)] for place in range(STEPS)] if peak >= STEPS else rates[:peak]
    return [*rise, *rates[peak : peak + max(1, STEPS - len(rise))]]


def _clip(parameters: list[Parameter], most: float | None) -> None:
    """Scale all gradients down to a global norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in gradients))
    if most is not None and norm > most:
        for gradient in gradients:
            gradient *= gradient.dtype.type(most / norm)


def _change(losses: list[float]) -> str:
    last = losses[-1]
    return f"from {losses[0]:.2f} to {last:.3g}" if math.isfinite(last) else f"from {losses[0]:.2f} to {last}"
