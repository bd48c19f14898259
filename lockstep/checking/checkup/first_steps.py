"""Check the first steps: where the loss starts, whether the job's rates learn or diverge, and whether workers pay."""

import math
from collections.abc import Sequence
from statistics import median

import msgspec
import numpy as np

from lockstep.checking.checkup.activations import Signals
from lockstep.checking.checkup.target import ExaminationTarget, Finding, found
from lockstep.common.aggregation.layout import layout_of, trained_parameters
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
    loss, deviation = signals.loss, float(np.std(signals.outputs))
    if not signals.classes:
        mean = float(np.mean(signals.outputs))
        is_far = loss > MOST_OF_GUESS * signals.guess > 0
        return [found("far-targets", loss=loss, guess=signals.guess, mean=mean, deviation=deviation)] if is_far else []
    guess, findings = math.log(signals.classes), []
    sums = signals.outputs.sum(axis=1)
    if signals.classes > 1 and (signals.outputs >= 0).all() and np.allclose(sums, 1.0, atol=1e-4):
        findings.append(found("softmax-twice", least=math.log(1 + (signals.classes - 1) / math.e)))
    if loss > FACTOR * guess + MARGIN:
        findings.append(
            found("confident-outputs", loss=loss, classes=signals.classes, guess=guess, deviation=deviation)
        )
    return findings


#: Steps to make, and most samples per step, so that the user waits a few seconds at most.
STEPS, SAMPLES = 12, 128

#: Fractions of the rate to try if it is too large.
SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)


class FirstSteps(msgspec.Struct, frozen=True):
    """The results of some training steps."""

    losses: list[float]
    #: The largest rate among them.
    rate: float
    #: Median seconds of a step's forward, backward and update.
    step_s: float

    def diverged(self) -> bool:
        """Return whether the loss rose for good."""
        return not self.last() <= FACTOR * self.losses[0] + MARGIN

    def learned(self) -> bool:
        """Return whether the loss fell."""
        return self.last() < self.losses[0]

    def last(self) -> float:
        """Return the median of the last three losses, NaN if one was not finite: a single batch may be an odd one."""
        return median(self.losses[-3:]) if all(map(math.isfinite, self.losses)) else math.nan


def first_steps(target: ExaminationTarget, clock: Clock, scale: float = 1.0) -> FirstSteps:
    """Make steps on a copy with the job's rates times `scale`, as long as the loss is finite."""
    probe, rates = target.probe(), _rates(target)
    parameters = list(trained_parameters(probe).values())
    optimizer = Optimizer(parameters, rates[0] * scale, rule_of(target.job, target.own))
    losses, times = list[float](), list[float]()
    with np.errstate(all="ignore"):
        for step, rate in enumerate(rates):
            images, targets = target.batch(step, SAMPLES)
            probe.reseed(target.job.seed, step, 0)
            start = clock.now()
            optimizer.zero_grad()
            loss = target.objective.mean_loss(probe(Tensor(images)), targets)
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
        advice = f": with {good.rate:.3g} it went from {good.losses[0]:.2f} to {good.last():.2f}"
    job, losses, last = target.job, steps.losses, steps.losses[-1]
    change = f"from {losses[0]:.2f} to {last:.3g}" if math.isfinite(last) else f"from {losses[0]:.2f} to {last}"
    momentum = f", and momentum {job.momentum:g} adds to it" if job.optimizer == "sgd" and job.momentum else ""
    names = {"value": target.rate_name, "warmup": target.rate_name.replace("lr", "warmup_steps")}
    facts = {**names, "lr": job.lr, "steps": len(losses), "rate": steps.rate, "change": change}
    return [found("rate", **facts, momentum=momentum, advice=advice)]


def _rates(target: ExaminationTarget) -> Sequence[float]:
    """Return the rates of the steps: the job's warm-up compressed into few steps, and what follows its peak."""
    job, data = target.job, target.data
    plan = plan_of(job, len(data.train), len(data.test))
    schedule = schedule_of(job, plan.total_steps, plan.steps_per_epoch, target.own)
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


#: Seconds that an exchange takes at least, and per float32 sent and received, on one machine over shared memory:
#: two workers take 0.18 ms with 7,850 parameters and 29 ms with 25 million.
LATENCY_S, PER_VALUE_S = 0.18e-3, 0.6e-9


def check_workers(target: ExaminationTarget, steps: FirstSteps, cores: int) -> list[Finding]:
    """Return whether the requested workers are too many for the job, the machine or the model."""
    workers, micro_batches = target.workers, target.job.micro_batches
    if workers is None or workers < 2:
        return []
    if workers > micro_batches:
        idle = workers - micro_batches
        return [found("idle-workers", workers=workers, micro_batches=micro_batches, idle=idle)]
    if workers > cores:
        named = f"{cores} core{'s' if cores > 1 else ''}"
        return [found("too-few-cores", workers=workers, cores=cores, named=named)]
    size = layout_of(target.model).size
    # Of a large batch, only a part was timed.
    single_s = steps.step_s * max(1.0, target.job.global_batch / SAMPLES)
    parallel_s = single_s / workers + LATENCY_S + PER_VALUE_S * size * workers
    if parallel_s < single_s:
        return []
    return [found("small-model", workers=workers, size=size, single_ms=1e3 * single_s, parallel_ms=1e3 * parallel_s)]
