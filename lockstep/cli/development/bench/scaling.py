"""`lockstep bench scaling`: what several workers are worth."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lockstep.bench.reports.rows import ScalingRow
from lockstep.bench.reports.tables import SCALING_HEAD, scaling_line
from lockstep.bench.scaling import Scaling, ScalingBench
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    MODEL_LIST,
    NUMBERS,
    PEER_OPTION,
    ROUNDS_OPTION,
    SERVERS,
    TRANSPORTS,
    WORKERS,
)
from lockstep.cli.development.bench.output import RowOutput, with_output
from lockstep.cli.options.types import WholeNumber


@click.command(short_help="Several workers: images/s, and where the time goes.")
@click.option(
    "--model",
    "--models",
    "models",
    type=MODEL_LIST,
    default="mlp,lenet,cnn",
    metavar="LIST",
    help="models, as of train  [mlp,lenet,cnn]",
)
@click.option("--data", default="mnist", metavar="DATA", help="data, as of train  [mnist]")
@click.option(
    "--batch", "--batches", "batches", type=NUMBERS, default="32,128", metavar="LIST", help="batch sizes  [32,128]"
)
@click.option("--workers", type=WORKERS, default="1,2", metavar="LIST", help="numbers of worker processes  [1,2]")
@click.option(
    "--transport",
    "--transports",
    "transports",
    type=TRANSPORTS,
    default="auto",
    metavar="LIST",
    help="transports, as of train  [auto]",
)
@click.option("--servers", type=SERVERS, default="1", metavar="LIST", help="numbers of server processes  [1]")
@click.option(
    "--weak/--strong",
    "is_weak",
    default=True,
    help="the batch is that of each worker, or of all together (the same job, so the same weights)  [weak]",
)
@click.option(
    "--micro-batches-per-worker",
    "micro_batches_per_worker",
    type=WholeNumber(1, 1024),
    default=1,
    metavar="N",
    help="micro-batches per worker; with --strong, of the largest number of workers  [1]",
)
@click.option("--steps", type=WholeNumber(FEWEST_STEPS), default=300, metavar="N", help="steps to measure  [300]")
@ROUNDS_OPTION
@PEER_OPTION
@with_output("scaling")
def scaling(output: RowOutput, **asked: Any) -> None:
    """Train with several numbers of workers, as `lockstep train` does, and time the steps.

    Records and checkpoints are written as in any run. The start, the first 20 steps, evaluations and the step after
    each evaluation are not measured. Images/s are those of all other steps in the median turn, slow ones included.

    As many independent processes run in turns with the workers; their speed is the ceiling. With --peer-python, so
    does torch's DistributedDataParallel over gloo, in its faster memory layout. For a torch.nn.Module, this is the
    same module, and --peer-python is not needed. The parts of a step are those of an average worker.

    \b
      lockstep bench scaling --model mlp --batch 128 --to scaling.json
      lockstep bench scaling --strong --workers 1,2,4 --plot scaling.png
      lockstep bench scaling --peer-python ~/torch/bin/python
      lockstep bench scaling --model my_net.py:build --data my.npz
    """
    rows = list[ScalingRow]()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        bench = ScalingBench(Scaling(**asked), Path(folder), output.say)
        output.say(SCALING_HEAD)
        for row in bench.rows():
            rows.append(row)
            output.add(row, scaling_line(row))
    if not bench.scaling.is_weak:
        for row in rows:
            output.say(f"weights sha256  {row.weights_sha256}  {row.model}, {row.workers} {row.transport}")
