"""A few training steps with a job's own rule and rates, alone and on a copy: whether they learn or diverge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from common.autograd.tensor import Tensor
from common.job.policy import rule_of, schedule_of
from common.nn.module import Parameter
from common.optim.optimizers import Optimizer
from common.runtime.clock import Clock
from lockstep.doctor.finding import Finding
from lockstep.doctor.target import ExaminationTarget
from ps.run.plan import plan_of

#: Steps that are made, and samples of one at most: what a person waits for.
STEPS, SAMPLES = 12, 128

#: How far the loss of the last steps may be above the first: a factor, and a number.
FACTOR, MARGIN = 1.5, 0.5

#: Parts of the rate that are tried where it is too large.
SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)


@dataclass(frozen=True)
class FirstSteps:
    """What some steps came to."""

    losses: list[float]
    #: The largest rate among them.
    rate: float
    #: Median seconds of a step's forward, backward and update.
    step_s: float

    def diverged(self) -> bool:
        """Tell whether the loss rose for good."""
        return not self._last() <= FACTOR * self.losses[0] + MARGIN

    def learned(self) -> bool:
        """Tell whether the loss fell."""
        return self._last() < self.losses[0]

    def _last(self) -> float:
        return median(self.losses[-3:]) if all(map(math.isfinite, self.losses)) else math.nan


def first_steps(patient: ExaminationTarget, clock: Clock, scale: float = 1.0) -> FirstSteps:
    """Make steps with the job's rates times `scale`, as far as the loss stays finite."""
    probe, rates = patient.probe(), _rates(patient)
    parameters = list(probe.parameters())
    optimizer = Optimizer(parameters, rates[0] * scale, rule_of(patient.job))
    losses, times = list[float](), list[float]()
    with np.errstate(all="ignore"):
        for step, rate in enumerate(rates):
            images, targets = patient.batch(step, SAMPLES)
            probe.reseed(patient.job.seed, step, 0)
            began = clock.now()
            optimizer.zero_grad()
            loss = patient.objective.training_loss(probe(Tensor(images)), targets, "mean")
            losses.append(float(loss.data))
            if not math.isfinite(losses[-1]):
                break
            patient.walk(loss)
            _clip(parameters, patient.job.clip_norm)
            optimizer.lr = rate * scale
            optimizer.step()
            times.append(clock.now() - began)
    return FirstSteps(losses, max(rates) * scale, median(times) if times else 0.0)


def check_rate(patient: ExaminationTarget, steps: FirstSteps, clock: Clock) -> list[Finding]:
    """Return whether the learning rate is too large, and the largest part of it that is not."""
    if not steps.diverged():
        return []
    tries = (first_steps(patient, clock, scale) for scale in SCALES)
    good = next((tried for tried in tries if tried.learned()), None)
    advice = "; no rate down to a ten-thousandth of it learned, so look for another mistake first"
    if good is not None:
        advice = f": with {good.rate:.3g} it went from {good.losses[0]:.2f} to {good.losses[-1]:.2f}"
    job = patient.job
    return [
        Finding(
            kind="rate",
            what=f"the learning rate is too large: lr = {job.lr:g}",
            evidence=f"in {len(steps.losses)} steps at up to {steps.rate:.3g} the loss went {_course(steps.losses)}",
            cause="each step overshoots"
            + (f", and momentum {job.momentum:g} adds to it" if job.optimizer == "sgd" and job.momentum else ""),
            change=f"lower lr, or raise it slowly with warmup_steps{advice}",
        )
    ]


def _rates(patient: ExaminationTarget) -> Sequence[float]:
    """Return the rates of the steps: the job's course up to its peak, drawn together, and from there on as it is."""
    job, data = patient.job, patient.data
    plan = plan_of(job, len(data.train), len(data.test))
    schedule = schedule_of(job, plan.total_steps, plan.steps_per_epoch)
    course = [schedule.rate(step) for step in range(plan.total_steps)]
    peak = int(np.argmax(course))
    rise = [course[round(place * peak / STEPS)] for place in range(STEPS)] if peak >= STEPS else course[:peak]
    return [*rise, *course[peak : peak + max(1, STEPS - len(rise))]]


def _clip(parameters: list[Parameter], most: float | None) -> None:
    """Scale all gradients down to a global norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in gradients))
    if most is not None and norm > most:
        for gradient in gradients:
            gradient *= gradient.dtype.type(most / norm)


def _course(losses: list[float]) -> str:
    last = losses[-1]
    return f"from {losses[0]:.2f} to {last:.3g}" if math.isfinite(last) else f"from {losses[0]:.2f} to {last}"
