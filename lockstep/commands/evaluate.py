"""`lockstep evaluate`: a finished run's weights on a test set."""

from pathlib import Path

import click
import msgspec
from rich.console import Console

from common.layout import weights_digest
from lockstep.assessment import assess
from lockstep.confusion import figures_lines, matrix_lines
from lockstep.display import print_plainly
from lockstep.trained import open_trained


@click.command(short_help="Evaluate a finished run on a test set.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", help="test on this data instead: a folder of IDX files, or an .npz")
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def evaluate(run: Path, data: str | None, as_json: bool) -> None:
    """Evaluate the weights in the folder RUN on its test set, or on another: in all, and class by class.

    Precision is the share of samples taken for a class that are of it; recall the share of its own samples that are
    taken for it.

    \b
      lockstep evaluate runs/20261124-231714-lenet
      lockstep evaluate runs/20261124-231714-lenet --data my_digits.npz
    """
    trained = open_trained(run)
    tested = assess(trained, data)
    tally, confusion, dataset = tested.tally, tested.confusion, data or trained.job.data
    figures = {
        "run": run.name,
        "dataset": dataset,
        "test_loss": tally.loss,
        "test_accuracy": tally.accuracy,
        "samples": tally.count,
        "weights_sha256": weights_digest(trained.weights),
        "classes": confusion.figures(),
        "confusion": confusion.counts.tolist(),
    }
    if as_json:
        click.echo(msgspec.json.encode(figures).decode())
        return
    lines = [
        f"test accuracy  {tally.accuracy:.2%} of {tally.count:,} samples of {dataset}",
        f"test loss      {tally.loss:.4f}",
        f"weights sha256 {figures['weights_sha256']}",
        "",
        *figures_lines(confusion.figures()),
    ]
    matrix = matrix_lines(confusion)
    console = Console(highlight=False)
    for line in [*lines, "", *matrix] if matrix else lines:
        print_plainly(console, line)
