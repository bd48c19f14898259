"""`lockstep bench predict`: what more machines would bring."""

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.runtime.environment import cores
from lockstep.bench.predict import Basis, basis_of_rows, predict, read_basis
from lockstep.bench.reports.rows import plot_rows, write_rows
from lockstep.bench.reports.tables import PREDICTION_HEAD, prediction_line, prediction_summary
from lockstep.bench.scaling import Scaling, ScalingBench
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    JSON_OPTION,
    LINK,
    PLOT_OPTION,
    RANGE,
    SERVERS,
    WIRE_OPTION,
    WIRE_WEIGHTS_OPTION,
    check_plot,
)
from lockstep.reports.display import print_plainly


@click.command("predict", short_help="What more machines would bring.")
@click.option("--workers", type=RANGE, default="1..1024", metavar="LIST", help="numbers, or FROM..TO  [1..1024]")
@click.option("--link", type=LINK, default="1Gbit", metavar="SPEED", help="of each machine, as 100Mbit  [1Gbit]")
@click.option("--servers", type=SERVERS, default="1,4,16", metavar="LIST", help="numbers of shards  [1,4,16]")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="a run's result.json, or the --json of a scaling bench; without it, this machine is measured",
)
@click.option("--model", metavar="MODEL", help="what is measured, or which rows of FILE count  [lenet]")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="the same: samples of each worker  [128]")
@click.option(
    "--steps", type=click.IntRange(min=FEWEST_STEPS), default=100, metavar="N", help="steps measured, from 8  [100]"
)
@WIRE_OPTION
@WIRE_WEIGHTS_OPTION
@JSON_OPTION
@PLOT_OPTION
def predict_command(
    workers: tuple[int, ...],
    servers: tuple[int, ...],
    link: float,
    wire: str | None,
    wire_weights: str | None,
    json_file: Path | None,
    plot_file: Path | None,
    **asked: Any,
) -> None:
    """Predict the speed with a worker on each of many machines, from what was measured on one.

    A step is what the slowest worker computes, the exchange, and the update. In an exchange each worker's vector of
    sums goes to the servers and the weights come back: 8 bytes a parameter, or less with --wire, over links of the
    given speed. What rounding costs is in the prediction where it is in what was measured.

    \b
      lockstep bench predict --model mlp
      lockstep bench predict --from runs/mine/result.json --link 10Gbit
      lockstep bench predict --from scaling.json --servers 1,8,64 --plot predict.png
    """
    check_plot(plot_file)
    console = Console(highlight=False)
    basis = basis_for(**asked)
    types = None if wire is None and wire_weights is None else (wire or "float32", wire_weights or "float32")
    prediction = predict(basis, workers, servers, link, types)
    print_plainly(console, f"from {prediction.name}, measured with {of_workers(basis)} on {basis.cores} cores")
    print_plainly(console, PREDICTION_HEAD)
    for row in prediction.rows:
        print_plainly(console, prediction_line(row))
    for line in prediction_summary(prediction):
        print_plainly(console, line)
    if json_file is not None:
        write_rows(json_file, prediction.rows)
    if plot_file is not None:
        plot_rows("predict", prediction, plot_file)


def basis_for(source: Path | None, model: str | None, batch: int | None, steps: int) -> Basis:
    """Return what a prediction is made from: a file, or what this machine does now."""
    if source is not None:
        return read_basis(source, model, batch)
    return measured_here(model or "lenet", batch or 128, steps)


def of_workers(basis: Basis) -> str:
    """Return how many workers were measured."""
    counts = " and ".join(str(point.workers) for point in basis.points)
    return f"{counts} worker" + ("" if counts == "1" else "s")


def measured_here(model: str, batch: int, steps: int) -> Basis:
    """Measure one worker on this machine, and two where it has two cores."""
    scaling = Scaling(
        models=(model,),
        batches=(batch,),
        workers=(1, 2) if cores() > 1 else (1,),
        transports=("auto",),
        servers=(1,),
        is_weak=True,
        micro_batches_per_worker=2,
        steps=steps,
        rounds=1,
    )
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        return basis_of_rows(list(ScalingBench(scaling, Path(folder), click.echo).rows()))
