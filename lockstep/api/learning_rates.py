"""Finds a learning rate by trying them: rates rise exponentially from step to step, until the loss is too high.

The range test is Smith's ("Cyclical learning rates for training neural networks", WACV 2017, section 3.3); the
exponential rise, the smoothing and the end at four times the best loss are fastai's (Gugger, "How do you find a good
learning rate", 2018). It runs in this process, without a run's folder, and draws only the random
numbers of the job: the same call gives the same numbers.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.api.exported_model import Model, exported, exported_functions, names_of, with_names
from lockstep.api.job_inputs import Arrays, Frame, completed, job_inputs, taken_options, takes_data_in_one, with_data
from lockstep.common.data.source import load
from lockstep.common.errors import JobError, RunError
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import replica_of
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.numerics.scalars import power
from lockstep.common.optim.schedules import RateRange
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.job_data import draft_of
from lockstep.runs.job_file import resolve
from lockstep.runs.own_command import demand
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.gradient_sink import NotFiniteError

Floats = NDArray[np.float64]

#: The share of the past in the smoothed loss: of the last ten steps, about.
BETA = 0.9

#: The test ends when the smoothed loss is so many times the best one.
TOO_MUCH = 4.0

#: Steps at the beginning in which nothing is looked for: the smoothed loss rests on too few.
SETTLING = 10


class RateTest(msgspec.Struct, frozen=True, dict=True):
    """The result of a range test: losses by learning rate, and what follows from them."""

    #: The rate of each step made, and the mean loss of its batch before it, (steps,).
    rates: Floats
    losses: Floats

    @cached_property
    def smoothed(self) -> Floats:
        """The losses, averaged exponentially, (steps,)."""
        return np.array(list(_smoothed(self.losses)))

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
        """A rate to train with, which leaves a margin: a tenth of `at_minimum`, or `steepest` where that is less.

        fastai has both. A model that learns its few samples by heart within the test has no minimum.
        """
        return min(self.at_minimum / 10, self.steepest)

    @property
    def _lowest(self) -> int:
        return SETTLING + int(np.argmin(self.smoothed[SETTLING:]))

    def plot(self, path: str | Path | None = None) -> Any:
        """Return a matplotlib figure of the losses over the rates, and write it as a PNG if a path is given.

        Needs the extra `plot`; `UsageError` if that is missing.
        """
        demand("matplotlib", "plot", "RateTest.plot")
        # Imported here, since the extra may not be installed.
        from lockstep.results.reports.plots.style import save
        from lockstep.results.reports.plots.training import rates_figure

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
    model: Model,
    data: str | Path | Arrays | Frame = "mnist",
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    **values: Any,
) -> RateTest:
    """Try learning rates from `lowest` to `highest` in so many `steps`, at least 30; return a `RateTest`.

    `model`, `data` and `values` are those of `fit`, and so are the first weights, the batches, the optimizer and its
    momentum; for a job with local steps they are those of the local steps, and the rate is a `local_lr`. The test sets
    the schedule and the length. `model` itself stays as it is. The result has `suggestion`, a rate to train with, the
    `rates` and `losses` of all steps (steps,), and `plot()`.

    Raises what `fit` raises, `JobError` for rates in the wrong order, and `RunError` if the loss is not finite before a
    rate could be found.
    """
    options, values = taken_options(values)
    known, functions = exported(model), exported_functions(values)
    given = with_names({**known.values(), **values}, names_of(functions))
    job, _ = resolve({}, draft_of(given, given))
    job, arrays = with_data(job, data, options, given.get("loss"), verbose=False)
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-rates-") as folder,
        job_inputs(Path(folder), None, arrays, known.text, functions) as paths,
    ):
        return rates_of(completed(job, given, paths), lowest=lowest, highest=highest, steps=steps)


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
    job = msgspec.structs.replace(job, steps=steps, schedule="constant", warmup_steps=0, metrics=None, monitor=None)
    take_numerics(job.numerics)
    setup = open_run("rates", job, load(job.data), RunOptions())
    schedule = RateRange(lowest, highest, steps=steps)
    setup.shard.policy = replace(setup.shard.policy, schedule=schedule)
    losses = _losses(setup, steps)
    if len(losses) < 2 * SETTLING:
        raise RunError(
            f"the loss was not finite, or {TOO_MUCH:g} times the best, after {len(losses)} steps: expected at least "
            f"{2 * SETTLING}; try a lower `lowest` than {lowest!r}, and `doctor`"
        )
    return RateTest(np.array([schedule.rate(step) for step in range(len(losses))]), np.array(losses))


def _losses(setup: RunSetup, steps: int) -> list[float]:
    """Make steps until the loss is too much; return the mean loss of each step's batch before its update."""
    trainer, losses, best = SingleProcessTrainer(setup), list[float](), math.inf
    for step in range(steps):
        try:
            sums, tally = trainer.sums(step)
        except NotFiniteError:
            break
        trainer.update(step, sums, tally)
        losses.append(tally.loss)
        *_, smoothed = _smoothed(losses)
        best = min(best, smoothed)
        if len(losses) > SETTLING and smoothed > TOO_MUCH * best:
            break
    return losses


def _smoothed(losses: Iterable[float]) -> Iterator[float]:
    """Yield the exponential average up to each loss, corrected for the start (Kingma and Ba, Adam, section 3)."""
    average = 0.0
    for step, loss in enumerate(losses, 1):
        average = BETA * average + (1 - BETA) * loss
        yield average / (1 - power(BETA, step))
