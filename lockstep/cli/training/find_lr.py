"""`lockstep find-lr`: a range test of learning rates on a job."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.api.learning_rates import rates_of
from lockstep.cli.options.job import JOB_FIELDS, GroupedCommand, job_options
from lockstep.reports.display import print_plainly
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch_config import default_launch

#: What is printed of a test, in that order.
FIGURES = ("suggestion", "steepest", "at_minimum")


@click.command("find-lr", cls=GroupedCommand, short_help="Find a learning rate by trying them.")
@click.argument("job_file", metavar="[JOB]", required=False, type=click.Path(path_type=Path))
@click.option("--lowest", type=float, default=1e-6, metavar="RATE", help="rate of the first step  [1e-06]")
@click.option("--highest", type=float, default=10.0, metavar="RATE", help="rate of the last step  [10.0]")
@click.option("--tries", type=click.IntRange(min=1), default=100, metavar="INT", help="steps in all  [100]")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="draw losses over rates as a PNG")
@click.option("--json", "as_json", is_flag=True, help="print rates and losses as JSON")
@job_options(JOB_FIELDS)
def find_lr(
    job_file: Path | None,
    lowest: float,
    highest: float,
    tries: int,
    plot: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Find a learning rate for the job file JOB, or for the job that train's flags give.

    The rate rises from step to step, and the loss shows where it is too large (Smith's range test). It takes seconds,
    in this process, and writes no run. Schedule and length are the test's own; the rest is the job's.

    \b
      lockstep find-lr --model lenet --plot rates.png
      lockstep find-lr job.toml --optimizer adam
    """
    given = {key: value for key, value in flags.items() if value is not None}
    job, _ = resolve(read_values(job_file) if job_file else {}, given, default_launch())
    test = rates_of(job, lowest=lowest, highest=highest, steps=tries)
    if plot is not None:
        test.plot(plot)
    if as_json:
        figures = {name: getattr(test, name) for name in FIGURES}
        click.echo(msgspec.json.encode({**figures, "rates": test.rates.tolist(), "losses": test.losses.tolist()}))
        return
    for name in FIGURES:
        print_plainly(Console(highlight=False), f"{name.replace('_', ' '):<11} {getattr(test, name):.2g}")
