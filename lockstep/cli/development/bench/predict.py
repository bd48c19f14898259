"""`lockstep bench predict`: what more machines would bring."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lockstep.bench.predict import Basis, basis_of_rows, predict, read_basis
from lockstep.bench.reports.tables import PREDICTION_HEAD, prediction_line, prediction_summary
from lockstep.bench.scaling import Scaling, ScalingBench
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    LINK,
    MODEL_LIST,
    RANGE,
    SERVERS,
    WIRE_OPTION,
    WIRE_WEIGHTS_OPTION,
)
from lockstep.cli.development.bench.output import RowOutput, check_one_model, with_output
from lockstep.cli.options.types import WholeNumber
from lockstep.common.runtime.environment import cores


@click.command("predict", short_help="The speed that more machines would bring.")
@click.option("--workers", type=RANGE, default="1..1024", metavar="LIST", help="numbers, or FROM..TO  [1..1024]")
@click.option("--link", type=LINK, default="1Gbit", metavar="SPEED", help="speed of each machine's network  [1Gbit]")
@click.option("--servers", type=SERVERS, default="1,4,16", metavar="LIST", help="numbers of servers  [1,4,16]")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="result.json of a run, or rows of `lockstep bench scaling --to FILE`  [measure this machine]",
)
@click.option(
    "--model", "models", type=MODEL_LIST, metavar="LIST", help="models to measure, or to take from FILE  [lenet]"
)
@click.option(
    "--batch", type=WholeNumber(1), metavar="N", help="batch size per worker to measure, or to take from FILE  [128]"
)
@click.option("--steps", type=WholeNumber(FEWEST_STEPS), default=100, metavar="N", help="steps to measure  [100]")
@WIRE_OPTION
@WIRE_WEIGHTS_OPTION
@with_output("predict")
def predict_command(
    workers: tuple[int, ...],
    servers: tuple[int, ...],
    link: float,
    wire: str | None,
    wire_weights: str | None,
    models: tuple[str, ...] | None,
    output: RowOutput,
    **asked: Any,
) -> None:
    """Predict the speed of many machines with one worker each, from measurements on one machine.

    The time of a step is the slowest worker's computing, the exchange and the update. In an exchange, each worker sends
    its sums of gradients to the servers and gets the weights back: 8 bytes per parameter, or fewer with --wire, over
    links of the given speed. The time for rounding is included only if the measurement includes it.

    \b
      lockstep bench predict --model mlp
      lockstep bench predict --from runs/mine/result.json --link 10Gbit
      lockstep bench predict --from scaling.json --servers 1,8 --plot p.png
    """
    check_one_model(models or (), output)
    types = None if wire is None and wire_weights is None else (wire or "float32", wire_weights or "float32")
    for model in models or (None,):
        basis = basis_for(model=model, output=output, **asked)
        prediction = predict(basis, workers, servers, link, types)
        output.say(f"from {prediction.name}, measured with {of_workers(basis)} on {basis.cores} cores")
        output.say(PREDICTION_HEAD)
        for row in prediction.rows:
            output.add(row, prediction_line(row))
        for line in prediction_summary(prediction):
            output.say(line)
        output.plotted = prediction


def basis_for(source: Path | None, model: str | None, batch: int | None, steps: int, output: RowOutput) -> Basis:
    """Return what a prediction is made from: a file, or measurements on this machine."""
    if source is not None:
        return read_basis(source, model, batch)
    return measured_here(model or "lenet", batch or 128, steps, output)


def of_workers(basis: Basis) -> str:
    """Return how many workers were measured."""
    counts = " and ".join(str(point.workers) for point in basis.points)
    return f"{counts} worker" + ("" if counts == "1" else "s")


def measured_here(model: str, batch: int, steps: int, output: RowOutput) -> Basis:
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
        return basis_of_rows(list(ScalingBench(scaling, Path(folder), output.say).rows()))
