"""`lockstep bench step`: one process, one thread."""

from pathlib import Path
from typing import get_args

import click

from lockstep.bench.reports.rows import StepFigures, mean_ratio
from lockstep.bench.reports.tables import cut_lines, step_lines
from lockstep.bench.step import StepBench, figures_of, measure, profile
from lockstep.cli.development.bench.options import MODEL_LIST, NUMBERS, PEER_OPTION
from lockstep.cli.development.bench.output import RowOutput, with_output
from lockstep.cli.options.types import WholeNumber
from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.numerics import Numerics
from lockstep.launch.numerics import begin_with
from lockstep.runs.job_file import resolve


@click.command(short_help="One training step of one process and one thread.")
@click.option("--model", "models", type=MODEL_LIST, default="lenet", metavar="LIST", help="models  [lenet]")
@click.option("--batch", "batches", type=NUMBERS, default="128", metavar="LIST", help="batch sizes  [128]")
@click.option("--micro-batches", "cuts", type=NUMBERS, default="1", metavar="LIST", help="micro-batches per step  [1]")
@click.option("--steps", type=WholeNumber(30), default=120, metavar="N", help="steps to measure  [120]")
@click.option(
    "--numerics",
    type=click.Choice(get_args(Numerics)),
    default="native",
    metavar="NAME",
    help="native or portable  [native]",
)
@PEER_OPTION
@click.option("--profile", "is_profiling", is_flag=True, help="show time and bytes per primitive instead")
@with_output("step")
def step(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    cuts: tuple[int, ...],
    steps: int,
    numerics: Numerics,
    peer_python: Path | None,
    is_profiling: bool,
    output: RowOutput,
) -> None:
    """Time whole training steps: forward, loss, backward, update.

    The bench runs the code of a worker and a server in one process, with one BLAS thread and with MNIST in memory. It
    reports the median over the steps, and with --peer-python the ratio of torch's median to it. Each combination runs
    in a separate process. With several numbers of micro-batches, the last lines compare each speed with that of the
    first number.

    \b
      lockstep bench step --model cnn --batch 32
      lockstep bench step --model mlp --peer-python ~/torch/bin/python
      lockstep bench step --model linear,mlp,lenet,cnn --batch 32,128
      lockstep bench step --model mlp --micro-batches 1,2,4,8,16,32
    """
    begin_with(numerics)
    if len(models) == len(batches) == len(cuts) == 1:
        bench = _bench(models[0], batches[0], cuts[0], numerics)
        if is_profiling:
            output.show(profile(bench, steps))
            return
        figures = measure(bench, steps, peer_python)
        output.add(figures, *step_lines(figures))
        return
    if is_profiling:
        raise UsageError("--profile: expected one model, one batch size and one number of micro-batches")
    flags = ["--steps", str(steps), "--numerics", numerics]
    flags += ["--peer-python", str(peer_python)] if peer_python else []
    rows = list[StepFigures]()
    for figures in figures_of(models, batches, cuts, flags):
        rows.append(figures)
        output.add(figures, *step_lines(figures))
    for line in cut_lines(rows) if len(cuts) > 1 else ():
        output.say(line)
    if peer_python:
        output.say(f"geometric mean of torch / ours: {mean_ratio(rows):.2f}")


def _bench(model: str, batch: int, micro_batches: int, numerics: Numerics) -> StepBench:
    values = {"model": model, "global_batch": batch, "micro_batches": micro_batches, "numerics": numerics}
    # Momentum as in the baseline; a step count beyond what is measured, so that no epoch ends early.
    job, _ = resolve({**values, "lr": 0.01, "momentum": 0.9, "epochs": 1000}, {})
    return StepBench(job, load(job.data), SystemClock())
