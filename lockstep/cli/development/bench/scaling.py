"""`lockstep bench scaling`: what several workers are worth."""

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.bench.reports.rows import ScalingRow, plot_rows, write_rows
from lockstep.bench.reports.tables import SCALING_HEAD, scaling_line
from lockstep.bench.scaling import Scaling, ScalingBench
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    JSON_OPTION,
    NUMBERS,
    PEER_OPTION,
    PLOT_OPTION,
    ROUNDS_OPTION,
    SERVERS,
    TRANSPORTS,
    WORDS,
    WORKERS,
    check_plot,
)
from lockstep.reports.display import print_plainly


@click.command(short_help="Several workers: images/s, and where the time goes.")
@click.option(
    "--models",
    "--model",
    "models",
    type=WORDS,
    default="mlp,lenet,cnn",
    metavar="LIST",
    help="as of train  [mlp,lenet,cnn]",
)
@click.option("--data", default="mnist", metavar="DATA", help="as of train  [mnist]")
@click.option("--batches", type=NUMBERS, default="32,128", metavar="LIST", help="samples of a step  [32,128]")
@click.option("--workers", type=WORKERS, default="1,2", metavar="LIST", help="numbers of worker processes  [1,2]")
@click.option("--transports", type=TRANSPORTS, default="auto", metavar="LIST", help="as of train  [auto]")
@click.option("--servers", type=SERVERS, default="1", metavar="LIST", help="numbers of server processes  [1]")
@click.option(
    "--weak/--strong",
    "is_weak",
    default=True,
    help="a batch is each worker's, or that of all together: the same job and the same weights  [weak]",
)
@click.option(
    "--pieces",
    "micro_batches_per_worker",
    type=click.IntRange(1, 1024),
    default=1,
    metavar="N",
    help="micro-batches for each worker; of the most workers, where strong  [1]",
)
@click.option(
    "--steps", type=click.IntRange(min=FEWEST_STEPS), default=300, metavar="N", help="steps measured, from 8  [300]"
)
@ROUNDS_OPTION
@PEER_OPTION
@JSON_OPTION
@PLOT_OPTION
def scaling(json_file: Path | None, plot_file: Path | None, **asked: Any) -> None:
    """Train with several numbers of workers, as `lockstep train` does, and time the steps.

    Records and checkpoints are written as in any run. Not measured are the start, the first 20 steps, evaluations, and
    the step after one. Images/s are those of all other steps together, slow ones too, in the middle one of the turns.

    In turns with it run as many independent processes, which are the ceiling, and the baseline: DistributedDataParallel
    of torch over gloo in its faster memory layout. The baseline of a torch.nn.Module is that very module, and needs no
    --peer-python. The split of a step is that of its mean worker.

    \b
      lockstep bench scaling --models mlp --batches 128 --json scaling.json
      lockstep bench scaling --strong --workers 1,2,4 --plot scaling.png
      lockstep bench scaling --peer-python ~/torch/bin/python
      lockstep bench scaling --model my_net.py:build --data my.npz
    """
    check_plot(plot_file)
    console, rows = Console(highlight=False), list[ScalingRow]()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        bench = ScalingBench(Scaling(**asked), Path(folder), lambda text: print_plainly(console, text))
        print_plainly(console, SCALING_HEAD)
        for row in bench.rows():
            rows.append(row)
            print_plainly(console, scaling_line(row))
            if json_file is not None:
                write_rows(json_file, rows)  # each time: an interrupt loses the combination at hand only
    if not bench.scaling.is_weak:
        for row in rows:
            print_plainly(console, f"weights sha256  {row.weights_sha256}  {row.model}, {row.workers} {row.transport}")
    if plot_file is not None:
        plot_rows("scaling", rows, plot_file)
