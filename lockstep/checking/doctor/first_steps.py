"""Check the first steps: where the loss begins, and whether a few steps at the job's rates diverge or do not move.

All steps are made on the first batch. A healthy job fits one batch quickly, and its loss is the same but for the
weights, so that a small change of it is not noise.
"""

import math
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from lockstep.checking.doctor.examined_job import ExaminedJob, Finding, Group
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LossKind
from lockstep.common.job.optimizer import OwnSchedule, policy_of, schedule_of, spans_of
from lockstep.common.job.own_code import OwnCode
from lockstep.ps.shard.shard import Shard
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError

#: Steps to make, of which the first half has the rise of the rate to its peak.
STEPS = 24

#: How far the first loss may be above guessing, and the last ones above the first: a factor and a summand. Of a
#: regression, the first loss may be so many times that of guessing.
FACTOR, MARGIN, OF_NUMBERS = 1.5, 0.5, 3.0

#: The last losses, whose mean counts: a single one may be high with any rate that is good.
LAST = 5

#: The loss does not move if it changes by less than this share.
LEAST_CHANGE = 0.001


def check_first_steps(subject: ExaminedJob, job: Job) -> Iterator[Finding]:
    """Yield mistakes in the first steps of a job, of which the subject has the batches."""
    rates = first_rates(job, len(subject.data.train), subject.own)
    losses, largest = trial(subject, rates)
    yield from _first_loss(subject, losses[0])
    # With factors of its own, a part may be meant to stay.
    idle = [each.name for each in subject.model.layout.parameters if not each.view(largest).any()]
    if idle and len(losses) > 1 and not job.lr_factors:
        what = f"no gradient arrives at {idle[0]!r}" + (f" and {len(idle) - 1} more" if len(idle) > 1 else "")
        yield Finding(Group.FIRST_STEPS, what, "use it in forward, without .detach() or .data, or freeze it")
        return
    first, last = losses[0], float(np.mean(losses[-LAST:]))
    steps = f"in {len(losses) - 1} steps at up to {max(rates):.3g} the loss"
    if not last <= FACTOR * first + MARGIN:
        yield Finding(Group.FIRST_STEPS, f"{steps} went from {first:.3g} to {last:.3g}", "run `lockstep find-lr`")
    elif abs(last - first) < LEAST_CHANGE * first:
        yield Finding(Group.FIRST_STEPS, f"{steps} stays at {first:.3g}", "run `lockstep find-lr`")


def first_rates(job: Job, samples: int, own: OwnCode) -> list[float]:
    """Return the rates of the trial: the job's on their way to the peak, compressed, and then the peak."""
    steps = job.total_steps(samples)
    schedule = schedule_of(job, steps, -(-samples // job.global_batch), own)
    rates = [schedule.rate(step) for step in range(steps)]
    peak = int(np.argmax(rates))
    rise = min(peak, STEPS // 2)
    return [*(rates[place * peak // rise] for place in range(rise)), *[rates[peak]] * (STEPS - rise)]


def trial(subject: ExaminedJob, rates: list[float]) -> tuple[list[float], Vector]:
    """Make a step at each rate while all is finite; return the losses, and the largest gradient of each parameter.

    The last loss is that of the weights at the end, infinite if the trial broke off.
    """
    job = replace(subject.job, steps=len(rates), schedule="constant", warmup_steps=0)
    model = subject.fresh_model()
    policy = policy_of(job, len(subject.data.train), spans_of(job, model.layout), model.momenta(), subject.own)
    policy = replace(policy, schedule=OwnSchedule(1.0, len(rates), lambda step, _: rates[step], "trial"))
    shard = Shard((subject.fresh_weights(), model.layout.new_vector()), policy, job.micro_batches)
    compute = Compute(job, model, subject.data, shard.served, own=subject.own)
    losses, largest = list[float](), model.layout.new_vector()
    for step in range(len(rates) + 1):
        compute.turn(step)
        try:
            sums, tally = compute.train(0, Node(0, 1))
        except NotFiniteError:
            break
        losses.append(tally.loss)
        np.maximum(largest, np.abs(sums), out=largest)
        if step < len(rates):
            shard.update_by(sums, step, tally.divisor)
    return losses if len(losses) > len(rates) else [*losses, math.inf], largest


def _first_loss(subject: ExaminedJob, loss: float) -> Iterator[Finding]:
    """Yield that the model ends in softmax, or that its first outputs are far worse than guessing."""
    objective, job, train = subject.objective, subject.job, subject.data.train
    if objective.kind is LossKind.CLASSES:
        rows = objective.rows(subject.first_pass.outcome.outputs, train.targets)
        is_softmax = rows.shape[1] > 1 and (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-4)
        if is_softmax and job.loss == "cross-entropy":
            what = "the model ends in softmax, which the loss applies once more"
            yield Finding(Group.FIRST_STEPS, what, "remove Softmax from the end of the model")
        guess = math.log(objective.classes_of(train))
        most = FACTOR * guess + MARGIN
    elif job.loss == "mse":
        guess = float(np.var(subject.batch[1], axis=0, dtype=np.float64).mean())
        most = OF_NUMBERS * guess
    else:
        return
    if most < loss < math.inf:
        what = f"the loss begins at {loss:.3g}, and guessing costs {guess:.3g}"
        fix = "begin with smaller weights in the last layer, and scale samples and targets to deviation 1"
        yield Finding(Group.FIRST_STEPS, what, fix)
