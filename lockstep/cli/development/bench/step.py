"""`lockstep bench step`: one process, one thread."""

from pathlib import Path
from typing import get_args

import click
import msgspec
from rich.console import Console

from common.data.source import load
from common.errors import UsageError
from common.files.atomic import write_atomically
from common.runtime.clock import SystemClock
from common.runtime.numerics import Numerics
from lockstep.bench.reports.rows import StepFigures, mean_ratio, plot_rows
from lockstep.bench.reports.tables import cut_lines, step_lines
from lockstep.bench.step import StepBench, figures_of, measure, profile
from lockstep.cli.development.bench.options import NUMBERS, PEER_OPTION, PLOT_OPTION, WORDS, check_plot
from lockstep.launch.numerics import begin_with
from lockstep.reports.display import print_plainly
from lockstep.runs.job_file import resolve
from lockstep.runs.launch_config import Launch


@click.command(short_help="One process, one thread: a training step.")
@click.option("--model", "models", type=WORDS, default="lenet", metavar="LIST", help="as of train  [lenet]")
@click.option("--batch", "batches", type=NUMBERS, default="128", metavar="LIST", help="samples of a step  [128]")
@click.option(
    "--micro-batches", "cuts", type=NUMBERS, default="1", metavar="LIST", help="pieces that they are cut into  [1]"
)
@click.option("--steps", type=click.IntRange(min=30), default=120, metavar="N", help="steps measured, from 30  [120]")
@click.option(
    "--numerics", type=click.Choice(get_args(Numerics)), default="native", metavar="KIND", help="as of train  [native]"
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="write the figures to FILE")
@PLOT_OPTION
@PEER_OPTION
@click.option("--profile", "is_profiling", is_flag=True, help="show time and bytes by primitive instead")
def step(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    cuts: tuple[int, ...],
    steps: int,
    numerics: Numerics,
    json_file: Path | None,
    plot_file: Path | None,
    peer_python: Path | None,
    is_profiling: bool,
) -> None:
    """Time whole training steps: forward, loss, backward, update.

    One process with one BLAS thread, on MNIST in memory: the code that a worker and a server run. The median over the
    steps counts, and with a baseline the ratio of the two medians. Of several models, batches or numbers of
    micro-batches, each is measured in a process of its own, and the file is a list. With several numbers of
    micro-batches, the last lines are the speeds, divided by that of the first number.

    \b
      lockstep bench step --model cnn --batch 32
      lockstep bench step --model mlp --peer-python ~/torch/bin/python
      lockstep bench step --model linear,mlp,lenet,cnn --batch 32,128
      lockstep bench step --model mlp --micro-batches 1,2,4,8,16,32
    """
    check_plot(plot_file)
    begin_with(numerics)
    if len(models) == len(batches) == len(cuts) == 1:
        bench = _bench(models[0], batches[0], cuts[0], numerics)
        if is_profiling:
            Console(highlight=False).print(profile(bench, steps))
            return
        rows = [_told(measure(bench, steps, peer_python))]
    elif is_profiling:
        raise UsageError("--profile shows one model at one batch: expected no list, of micro-batches either")
    else:
        flags = ["--steps", str(steps), "--numerics", numerics]
        flags += ["--peer-python", str(peer_python)] if peer_python else []
        rows = [_told(figures) for figures in figures_of(models, batches, cuts, flags)]
        for line in cut_lines(rows) if len(cuts) > 1 else ():
            print_plainly(Console(highlight=False), line)
        if peer_python:
            print_plainly(Console(), f"geometric mean of torch / ours: {mean_ratio(rows):.2f}")
    if json_file is not None:
        kept = msgspec.json.encode(rows[0] if len(rows) == 1 else rows)
        write_atomically(json_file, [msgspec.json.format(kept, indent=2), b"\n"])
    if plot_file is not None:
        plot_rows("step", rows, plot_file)


def _bench(model: str, batch: int, micro_batches: int, numerics: Numerics) -> StepBench:
    values = {"model": model, "global_batch": batch, "micro_batches": micro_batches, "numerics": numerics}
    # Momentum as in the baseline; a step count beyond what is measured, so that no epoch ends early.
    job, _ = resolve({**values, "lr": 0.01, "momentum": 0.9, "epochs": 1000}, {}, Launch(workers=0))
    return StepBench(job, load(job.data), SystemClock())


def _told(figures: StepFigures) -> StepFigures:
    for line in step_lines(figures):
        print_plainly(Console(highlight=False), line)
    return figures
