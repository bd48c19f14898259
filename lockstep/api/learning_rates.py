"""Finds a learning rate by trying them: rates rise exponentially from step to step, until the loss is too high.

The range test is Smith's ("Cyclical learning rates for training neural networks", WACV 2017, section 3.3), the
exponential rise fastai's (Gugger, "How do you find a good learning rate", 2018). One test is mostly noise: batches
differ by more than small rates change. With four tests averaged, the suggestion for a table with heavy tails, or with
columns of all scales, still moved by a factor of 2,000 from seed to seed. So each batch's loss is compared with its own
loss with the first weights (a control variate), and these changes are averaged over several tests, and smoothed evenly
to both sides: of twelve seeds, the factor is 8 for columns of all scales, and at most 1.6 for ten other jobs. It runs
in this process, without a run's folder, and draws only random numbers that follow from the job: the same call gives the
same numbers.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.api.exported_model import Model, exported
from lockstep.api.job_inputs import Arrays, Frame, takes_data_in_one, temporary_job
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import JobError, RunError
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import replica_of
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.optim.schedules import Exponential, Schedule
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.ps.setup import open_run
from lockstep.runs.own_command import demand
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.gradient_sink import NotFiniteError

Floats = NDArray[np.float64]

#: The losses of all batches with the first weights, (steps,), and how they had changed before each step that was made.
Test = tuple[Floats, Floats]

#: Tests that are averaged, and the distance of their seeds, so that jobs with neighbouring seeds share none.
TESTS, APART = 4, 1_000_003

#: The deviation, as a share of the steps, of the bell with which the averaged losses are smoothed. With 0.06, the
#: suggestion for columns of all scales moved by a factor of 19 from seed to seed, with 0.08 by 8. With 0.12 it is 2.7,
#: but all suggestions are then less than a tenth of the best rate.
WIDTH = 0.08

#: A test ends when the mean of the last changes, so many, is so many times the size of the losses with first weights.
LATEST, TOO_MUCH = 5, 3.0

#: A change counts at most as so much of that size: how far a loss diverges before its test ends says nothing.
MOST = 0.5

#: Steps at the beginning in which nothing is looked for.
SETTLING = 10

#: The part of the greatest fall of the loss that is enough. The rest takes rates at which training becomes unstable, or
#: none: a model may have learned its few samples by heart by then.
ENOUGH = 0.95

#: Tests disagree if the middle ones of their rates at the minimum differ by more than this factor.
FAR = 30.0


class RateTest(msgspec.Struct, frozen=True, dict=True):
    """The result of a range test: losses by learning rate, and what follows from them."""

    #: The rate of each step made, and the loss before it, (steps,): that with the first weights, which is the mean of
    #: all batches, and the mean change of the step's own batches from it, at most by a half.
    rates: Floats
    losses: Floats

    @cached_property
    def smoothed(self) -> Floats:
        """The losses, averaged with those of the steps around, (steps,)."""
        places = np.linspace(0.0, 1.0, len(self.losses))
        weights = np.exp(-0.5 * ((places[:, np.newaxis] - places) / WIDTH) ** 2)
        return np.asarray(weights @ self.losses / weights.sum(axis=1))

    @property
    def at_minimum(self) -> float:
        """The rate at which the smoothed loss is lowest: with a larger one training becomes unstable."""
        return float(self.rates[self._lowest])

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, against the logarithm of the rate, before its minimum."""
        end = max(self._lowest, SETTLING + 1) + 1
        slopes = np.gradient(self.smoothed[:end], np.log(self.rates[:end]))
        return float(self.rates[SETTLING + int(np.argmin(slopes[SETTLING:]))])

    @property
    def suggestion(self) -> float:
        """A rate to train with: the lowest at which the smoothed loss has fallen by 95 % of its greatest fall.

        For 12 of 14 jobs (tables; SGD, Adam, AdamW and RMSprop) and all seeds tried, it was between 0.3 and 1.7
        times the rate with which 300 steps ended with the lowest training loss. It was less for columns of all scales,
        and for classes that any large rate tells apart.
        """
        first, smoothed = self.losses[0], self.smoothed[SETTLING:]
        has_fallen = smoothed <= first - ENOUGH * (first - smoothed.min())
        return float(self.rates[SETTLING + int(np.argmax(has_fallen))])

    @property
    def _lowest(self) -> int:
        return SETTLING + int(np.argmin(self.smoothed[SETTLING:]))

    def plot(self, path: str | Path | None = None) -> Any:
        """Return a matplotlib figure of the losses over the rates, and write it as a PNG if a path is given.

        Needs the extra `plot`; `UsageError` if that is missing.
        """
        demand("matplotlib", "plot", "RateTest.plot")
        # Imported here, since the extra may not be installed.
        from lockstep.results.plots.style import save
        from lockstep.results.plots.training import rates_figure

        marks = {"suggestion": self.suggestion, "steepest": self.steepest, "at_minimum": self.at_minimum}
        figure = rates_figure(self.rates, self.losses, self.smoothed, marks)
        if path is not None:
            save(figure, Path(path))
        return figure

    def __repr__(self) -> str:
        return (
            f"RateTest({len(self.rates)} steps, suggestion={self.suggestion:.2g}, steepest={self.steepest:.2g}, "
            f"at_minimum={self.at_minimum:.2g})"
        )


@takes_data_in_one
def find_lr(
    model: Model = None,
    data: str | Path | Arrays | Frame = "mnist",
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    **values: Any,
) -> RateTest:
    """Try learning rates from `lowest` to `highest` in so many `steps`, at least 30; return a `RateTest`.

    `model`, `data` and `values` are those of `fit`, and so are the optimizer and its momentum; for a job with local
    steps they are those of the local steps, and the rate is a `local_lr`. The test sets the schedule and the length. It
    is made four times, with first weights and batches of the job's seed and of three others, and averaged. `model`
    itself stays as it is. The result has `suggestion`, a rate to train with, the `rates` and `losses` of all steps
    (steps,), and `plot()`.

    Raises what `fit` raises, `JobError` for rates in the wrong order, and `RunError` if the loss is not finite before a
    rate could be found, if it falls at no rate, or if the seeds disagree by more than a factor of thirty.
    """
    with temporary_job(exported(model), data, values) as job:
        return rates_of(job, lowest=lowest, highest=highest, steps=steps)


@computing()
@kept_numerics()
def rates_of(job: Job, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 100) -> RateTest:
    """Try learning rates on a job; see `find_lr`."""
    are_numbers = isinstance(lowest, int | float) and isinstance(highest, int | float) and isinstance(steps, int)
    if not are_numbers or not 0.0 < lowest < highest < math.inf or steps < 3 * SETTLING:
        raise JobError(
            f"rates from {lowest!r} to {highest!r} in {steps!r} steps: expected 0 < lowest < highest, and at least "
            f"{3 * SETTLING} steps"
        )
    if job.local_steps > 1:
        job = replica_of(job)
    job = replace(job, steps=steps, schedule="constant", warmup_steps=0, metrics=None, monitor=None)
    take_numerics(job.numerics)
    # From the lowest rate in the first step to the highest one in the last.
    schedule, data = Exponential(lowest, every=steps - 1, gamma=highest / lowest), load(job.data)
    seeds = [(job.seed + APART * test) % 2**63 for test in range(TESTS)]
    tests = [_tried(replace(job, seed=seed), data, schedule, steps) for seed in seeds]
    shortest = min(len(changes) for _, changes in tests)
    if shortest < 2 * SETTLING:
        raise RunError(
            f"the loss was not finite, or {1 + TOO_MUCH:g} times the first, after {shortest} steps: expected at least "
            f"{2 * SETTLING}; try a lower `lowest` than {lowest!r}, and `doctor`"
        )
    return averaged(tests, schedule)


def _tried(job: Job, data: TrainTest, schedule: Schedule, steps: int) -> Test:
    """Make steps until the loss is too much; return the losses with the first weights, and their changes by then."""
    setup = open_run("rates", job, data, RunOptions())
    setup.shard.policy = replace(setup.shard.policy, schedule=schedule)
    # The weights after an odd number of steps have a vector of their own, which the first update writes.
    np.copyto(setup.shard.served[1], setup.shard.served[0])
    trainer, first, changes = SingleProcessTrainer(setup), list[float](), list[float]()
    with suppress(NotFiniteError):
        first += [trainer.sums(step)[1].loss for step in range(steps)]
        most = TOO_MUCH * float(np.mean(np.abs(first)))
        for step in range(steps):
            sums, tally = trainer.sums(step)
            trainer.update(step, sums, tally)
            changes.append(tally.loss - first[step])
            if step >= SETTLING and np.mean(changes[-LATEST:]) > most:
                break
    return np.array(first), np.array(changes)


def averaged(tests: Sequence[Test], schedule: Schedule) -> RateTest:
    """Return the mean of several tests, one that has ended early with the most that a change counts.

    `RunError` if the loss falls at no rate, or if the tests disagree.
    """
    steps, level = max(len(changes) for _, changes in tests), float(np.mean([first.mean() for first, _ in tests]))
    rates, rows = np.array([schedule.rate(step) for step in range(steps)]), np.empty((len(tests), steps))
    for row, (first, changes) in zip(rows, tests, strict=True):
        row[:] = most = MOST * np.abs(first).mean()
        row[: len(changes)] = np.minimum(changes, most)
    test, shown = RateTest(rates, level + rows.mean(axis=0)), f"{rates[0]:.2g} to {rates[-1]:.2g}"
    if not test.smoothed[SETTLING:].min() < level:
        raise RunError(f"the loss fell at none of the rates from {shown}: expected a model that learns; see `doctor`")
    low, *_, high = sorted(RateTest(rates, row).at_minimum for row in rows)[1:-1]
    if high > FAR * low:
        raise RunError(
            f"the loss was lowest at the rate {low:.2g} or {high:.2g}, depending on the seed: expected tests within a "
            f"factor of {FAR:g}; try more steps, a larger batch, and inputs and targets with deviation 1"
        )
    return test
