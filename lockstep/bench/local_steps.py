"""Bench what local steps cost in accuracy: the same job with other numbers of them, and of micro-batches.

All of it is computed in this process: the number of processes does not change what a job learns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, ClassVar

import click
import msgspec

from lockstep.bench import bench as options
from lockstep.bench.bench import CURVES, Bench, Panel, Series, TableColumn
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.types import whole_number
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import score_of
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.run.plan import Plan
from lockstep.ps.setup import open_run
from lockstep.results.display import counted
from lockstep.runs.job_file import local_defaults, read_values, resolve, shipped_values
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.gradient_sink import NotFiniteError

#: Points that a curve has at most.
POINTS = 40


class LocalStepsRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was trained with several seeds."""

    model: Annotated[str, TableColumn("model", -12, of=lambda row: row.model.rpartition("/")[2][-12:])]
    local_steps: Annotated[int, TableColumn("local steps", 11)]
    micro_batches: Annotated[int, TableColumn("micro-batches", 13)]
    #: Samples of a local step.
    samples: Annotated[int, TableColumn("samples", 7)]
    #: Learning rate of the local steps; None with one of them, which has that of the job.
    local_lr: Annotated[float | None, TableColumn("local lr", 8, "g")]
    #: Those of the updates that the server makes.
    lr: float
    momentum: float
    epochs: int
    #: Exchanges of weights in the whole run.
    steps: Annotated[int, TableColumn("exchanges", 9, ",d")]
    #: The test accuracy with each seed, R² of a regression; None if a loss was not finite.
    scores: list[float | None]
    #: Their mean; None if one of them is.
    score: Annotated[float | None, TableColumn("accuracy", 8, ".2%")]
    #: Their standard deviation; None if there was only one.
    deviation: Annotated[float | None, TableColumn("+-", 5, ".2%")]
    #: Of the first seed: epochs so far, and the mean training loss since the point before.
    curve: list[tuple[float, float]]


def train(job: Job, data: TrainTest) -> tuple[list[float], float | None, Plan]:
    """Train a job in this process; return its losses by step, its score, None if one was not finite, and its plan."""
    take_numerics(job.numerics)
    setup = open_run("bench", job, data, RunOptions())
    trainer, plan, losses = SingleProcessTrainer(setup), setup.info.plan, list[float]()
    try:
        for step in range(plan.total_steps):
            sums, tally = trainer.sums(step)
            trainer.update(step, sums, tally)
            losses.append(tally.loss)
        trainer.compute.turn(plan.total_steps)
        tested = trainer.compute.evaluate(Node(0, plan.evaluation_chunks))
    except NotFiniteError:
        return losses, None, plan
    guess = setup.info.guess
    found = score_of(setup.info.metrics, tested, guess and guess.test)
    return losses, found.r2 if found.accuracy is None else found.accuracy, plan


def curve_of(losses: Sequence[float], steps_per_epoch: int) -> list[tuple[float, float]]:
    """Return the loss over the epochs, in points that are denser at the beginning, where it changes most."""
    points, start = list[tuple[float, float]](), 0
    while start < len(losses):
        stop = min(len(losses), start + max(1, start // 4, len(losses) // (4 * POINTS)))
        points.append((stop / steps_per_epoch, mean(losses[start:stop])))
        start = stop
    return points


@dataclass(kw_only=True)
class LocalStepsBench(Bench[LocalStepsRow]):
    """Train a job with several numbers of local steps and micro-batches, and compare what it learns.

    A job with one local step is the job as it is. With more of them, its optimizer is that of the local steps, a local
    step of all micro-batches together has as many samples as a step before, and all other values have the defaults of
    local steps, unless --local-lr, --lr and --momentum change them. So all runs see each sample equally often, and
    exchange weights as often as the table shows.

    \b
      lockstep bench local-steps --model mlp --seeds 3
      lockstep bench local-steps --job job.toml --local-steps 1,8 --plot p.png
    """

    name: ClassVar = "local-steps"
    summary: ClassVar = "The accuracy that local steps cost."
    row: ClassVar = LocalStepsRow

    models: tuple[str, ...] = options.models("--model", text="models to train", default="mlp")
    job_file: Path | None = options.option(
        "--job", click.Path(path_type=Path), "job file (TOML) instead of shipped jobs", metavar="FILE"
    )
    local_steps: tuple[int, ...] = options.option(
        "--local-steps", options.NUMBERS, "numbers of local steps", "1,4,16,64"
    )
    micro_batches: tuple[int, ...] = options.option(
        "--micro-batches", options.NUMBERS, "numbers of micro-batches", "2,4,8"
    )
    seeds: int = options.option("--seeds", whole_number(1), "seeds, from 0 on", "1")
    epochs: int | None = options.option("--epochs", whole_number(1), "epochs", shown="those of the job")
    local_lr: float | None = options.option(
        "--local-lr", click.FLOAT, "learning rate of local steps", shown="from H and M", metavar="NUMBER"
    )
    lr: float | None = options.option("--lr", click.FLOAT, "outer learning rate", shown="0.7", metavar="NUMBER")
    momentum: float | None = options.option(
        "--momentum", click.FLOAT, "outer momentum; 0 only averages", shown="0.6", metavar="NUMBER"
    )

    def measure(self, session: BenchSession) -> Iterator[LocalStepsRow]:
        shipped = ({"model": model, **shipped_values(model)} for model in self.models)
        for values in [read_values(self.job_file)] if self.job_file else shipped:
            data = load(str(values.get("data", "mnist")))
            for micro_batches in self.micro_batches:
                for local_steps in self.local_steps:
                    yield self._row(self._job(values, local_steps, micro_batches), data)

    def _job(self, values: Mapping[str, Any], local_steps: int, micro_batches: int) -> Job:
        given: dict[str, Any] = {"local_steps": local_steps, "micro_batches": micro_batches}
        if self.epochs is not None:
            given["epochs"] = self.epochs
        if local_steps > 1:
            chosen = {"local_lr": self.local_lr, "lr": self.lr, "momentum": self.momentum}
            given |= {name: value for name, value in chosen.items() if value is not None}
            values = local_defaults(values, given)
        return resolve(values, given)[0]

    def _row(self, job: Job, data: TrainTest) -> LocalStepsRow:
        runs = [train(msgspec.structs.replace(job, seed=seed), data) for seed in range(self.seeds)]
        (losses, _, plan), scores = runs[0], [score for _, score, _ in runs]
        finite = [score for score in scores if score is not None]
        is_whole = len(finite) == len(runs)
        return LocalStepsRow(
            model=job.model_name(),
            local_steps=job.local_steps,
            micro_batches=job.micro_batches,
            samples=job.global_batch // job.local_batches,
            local_lr=job.local_lr if job.local_steps > 1 else None,
            lr=job.lr,
            momentum=job.momentum,
            epochs=job.epochs,
            steps=plan.total_steps,
            scores=scores,
            score=mean(finite) if is_whole else None,
            deviation=stdev(finite) if is_whole and len(runs) > 1 else None,
            curve=curve_of(losses, plan.steps_per_epoch),
        )

    def panels(self, rows: Sequence[LocalStepsRow]) -> list[list[Panel]]:
        """Return the curves of the loss, with a panel for each number of micro-batches, and a row for each model."""
        models, numbers = (
            list(dict.fromkeys(each)) for each in zip(*((r.model, r.micro_batches) for r in rows), strict=True)
        )
        return [
            [
                _panel(model, number, [r for r in rows if (r.model, r.micro_batches) == (model, number)])
                for number in numbers
            ]
            for model in models
        ]


def _panel(model: str, micro_batches: int, rows: Sequence[LocalStepsRow]) -> Panel:
    series = []
    for colour, row in zip(cycle(CURVES), rows, strict=False):
        score = "diverged" if row.score is None else f"{row.score:.2%}"
        at, values = [epochs for epochs, _ in row.curve], [loss for _, loss in row.curve]
        series.append(Series(f"{counted(row.local_steps, 'local step')}, {score}", colour, values, "-o", at))
    title = f"{model.rpartition('/')[2]}, {micro_batches} micro-batch{'es' * (micro_batches > 1)}"
    return Panel(title, "training loss", series, is_log=True, along="epochs")
