"""`lockstep bench step`: one process, one thread."""

from pathlib import Path

import click
import msgspec
from rich.console import Console

from common.atomic import write_atomically
from common.clock import SystemClock
from common.data.source import load
from lockstep.bench.result import lines_of
from lockstep.bench.step import StepBench, measure, profile
from lockstep.commands.bench_options import PEER_OPTION
from lockstep.display import print_plainly
from lockstep.job_file import resolve
from lockstep.launch import Launch


@click.command(short_help="One process, one thread: a training step.")
@click.option("--model", default="lenet", metavar="MODEL", help="as of train  [lenet]")
@click.option("--batch", type=click.IntRange(min=1), default=128, metavar="N", help="samples of a step  [128]")
@click.option(
    "--micro-batches", type=click.IntRange(min=1), default=1, metavar="N", help="pieces that they are cut into  [1]"
)
@click.option("--steps", type=click.IntRange(min=30), default=120, metavar="N", help="steps measured, from 30  [120]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="write the figures to FILE")
@PEER_OPTION
@click.option("--profile", "is_profiling", is_flag=True, help="show time and bytes by primitive instead")
def step(
    model: str,
    batch: int,
    micro_batches: int,
    steps: int,
    json_file: Path | None,
    peer_python: Path | None,
    is_profiling: bool,
) -> None:
    """Time whole training steps: forward, loss, backward, update.

    One process with one BLAS thread, on MNIST in memory: the code that a worker and a server run. The median over the
    steps counts, and with a peer the ratio of the two medians.

    \b
      lockstep bench step --model cnn --batch 32
      lockstep bench step --model mlp --peer-python ~/torch/bin/python
    """
    values = {"model": model, "global_batch": batch, "micro_batches": micro_batches}
    # Momentum as the peer has it; a step count beyond what is measured, so that no epoch ends early.
    job, _ = resolve({**values, "lr": 0.01, "momentum": 0.9, "epochs": 1000}, {}, Launch(workers=0))
    bench = StepBench(job, load(job.data), SystemClock())
    console = Console(highlight=False)
    if is_profiling:
        console.print(profile(bench, steps))
        return
    figures = measure(bench, steps, peer_python)
    for line in lines_of(figures):
        print_plainly(console, line)
    if json_file is not None:
        write_atomically(json_file, [msgspec.json.format(msgspec.json.encode(figures), indent=2), b"\n"])
