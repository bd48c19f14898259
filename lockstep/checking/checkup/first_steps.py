"""Check the first steps: where the loss starts, whether the job's rates learn or diverge, and whether workers pay."""

import math

import numpy as np

from lockstep.checking.checkup.activations import Signals
from lockstep.checking.checkup.target import ExaminationTarget, Finding, found
from lockstep.checking.checkup.training import SAMPLES, TrialRun, TrialSubject
from lockstep.common.aggregation.layout import layout_of
from lockstep.common.job.optimizer import schedule_of
from lockstep.ps.run.plan import plan_of
from lockstep.runs.cost_model import team_step_s

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


#: Steps to make, so that the user waits a few seconds at most.
STEPS = 12

#: Fractions of the rate to try if it is too large.
SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)


def first_steps(subject: TrialSubject, scale: float = 1.0) -> TrialRun:
    """Make steps with the job's rates times `scale`: its warm-up compressed, and what follows its peak."""
    job, data = subject.job, subject.data
    plan = plan_of(job, len(data.train), len(data.test))
    schedule = schedule_of(job, plan.total_steps, plan.steps_per_epoch, subject.own)
    rates = [schedule.rate(step) for step in range(plan.total_steps)]
    peak = int(np.argmax(rates))
    rise = [rates[round(place * peak / STEPS)] for place in range(STEPS)] if peak >= STEPS else rates[:peak]
    chosen = [*rise, *rates[peak : peak + max(1, STEPS - len(rise))]]
    return subject.run(len(chosen), rates=[rate * scale for rate in chosen])


def check_rate(subject: TrialSubject, steps: TrialRun, named: str) -> list[Finding]:
    """Return whether the learning rate, by its name in the job, is too large, with the largest fraction that works."""
    if steps.last <= FACTOR * steps.losses[0] + MARGIN:
        return []
    tries = (first_steps(subject, scale) for scale in SCALES)
    good = next((tried for tried in tries if tried.last < tried.losses[0]), None)
    advice = "; no rate down to a ten-thousandth of it works, so look for another mistake first"
    if good is not None:
        advice = f": with {good.rate:.3g} it went from {good.losses[0]:.2f} to {good.last:.2f}"
    job, losses = subject.job, steps.losses
    # The highest, which may have been some steps ago.
    change = f"from {losses[0]:.2f} to {np.max(losses):.3g}"
    momentum = f", and momentum {job.momentum:g} adds to it" if job.optimizer == "sgd" and job.momentum else ""
    names = {"value": named, "warmup": named.replace("lr", "warmup_steps")}
    facts = {**names, "lr": job.lr, "steps": len(losses), "rate": steps.rate, "change": change}
    return [found("rate", **facts, momentum=momentum, advice=advice)]


def check_workers(target: ExaminationTarget, step_s: float, cores: int) -> list[Finding]:
    """Return whether the requested workers are too many for the job, the machine or the model.

    `step_s` are the seconds of a step of at most `SAMPLES` samples.
    """
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
    single_s = step_s * max(1.0, target.job.global_batch / SAMPLES)
    parallel_s = team_step_s(target.job, size, single_s, cores, workers)
    if parallel_s < single_s:
        return []
    return [found("small-model", workers=workers, size=size, single_ms=1e3 * single_s, parallel_ms=1e3 * parallel_s)]
