"""`lockstep evaluate`: a finished run's weights on a test set."""

from dataclasses import replace
from pathlib import Path

import click
import msgspec

from common.data.evaluation import evaluation_pieces
from common.data.source import load
from common.errors import JobError
from common.layout import weights_digest
from common.model import build_model
from common.reduction import Node
from common.safetensors import read
from lockstep.job_file import read_values, resolve
from lockstep.launch import default_launch
from lockstep.run_dir import JOB
from ps.run_folder import WEIGHTS
from worker.compute import Compute


@click.command(short_help="Evaluate a finished run on a test set.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", help="test on this data instead: a folder of IDX files, or an .npz")
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def evaluate(run: Path, data: str | None, as_json: bool) -> None:
    """Evaluate the weights in the folder RUN on its test set, or on another.

    \b
      lockstep evaluate runs/20261124-231714-lenet
      lockstep evaluate runs/20261124-231714-lenet --data my_digits.npz
    """
    if not (run / JOB).is_file() or not (run / WEIGHTS).is_file():
        raise JobError(f"{str(run)!r} holds no weights of a run: expected a run folder, with {JOB} and {WEIGHTS}")
    job, _ = resolve(read_values(run / JOB), {}, default_launch())
    arrays, _ = read(run / WEIGHTS)
    trained_on = load(job.data)
    compute = Compute(job, build_model(job.model), trained_on)
    compute.layout.write(compute.weights, arrays)
    if data is not None:
        # The constants of the preparation stay those of the data that the weights were trained on.
        compute.data = replace(trained_on, test=load(data).test)
    tally = compute.evaluate(Node(0, evaluation_pieces(len(compute.data.test))))
    figures = {
        "run": run.name,
        "dataset": data or job.data,
        "test_loss": tally.loss,
        "test_accuracy": tally.accuracy,
        "samples": tally.count,
        "weights_sha256": weights_digest(compute.weights),
    }
    if as_json:
        click.echo(msgspec.json.encode(figures).decode())
        return
    click.echo(f"test accuracy  {tally.accuracy:.2%} of {tally.count:,} samples of {figures['dataset']}")
    click.echo(f"test loss      {tally.loss:.4f}")
    click.echo(f"weights sha256 {figures['weights_sha256']}")
