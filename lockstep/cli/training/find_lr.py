"""`lockstep find-lr`: a range test of learning rates on a job."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.api.learning_rates import rates_of
from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import DIRECT_OPTIONS, direct_options, with_packed_data
from lockstep.cli.options.types import whole_number
from lockstep.results.display import print_plainly

#: The printed values of a test, in that order.
FIGURES = ("suggestion", "steepest", "at_minimum")


@click.command("find-lr", cls=JobCommand, short_help="Find a good learning rate in seconds.")
@takes_job()
@click.option("--tries", type=whole_number(1), default=100, metavar="INT", help="number of steps  [100]")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="plot the loss over the rate as FILE, a .png",
)
@click.option("--json", "as_json", is_flag=True, help="print the rates and losses as JSON")
@DIRECT_OPTIONS
@takes_trust
def find_lr(
    job: JobRequest,
    tries: int,
    plot: Path | None,
    as_json: bool,
    **packing_flags: Any,
) -> None:
    """Find a good learning rate for the job file JOB, or for the job that the flags describe.

    The rate rises from 0.000001 to 10 in a hundred steps, until the loss shows that it is too large (Smith's range
    test). The test takes seconds and leaves no run.

    \b
      lockstep find-lr job.toml --plot rates.png
    """
    packing = direct_options(packing_flags)
    # On standard error: the report of packing is not a figure.
    resolved, _ = with_packed_data(job, packing, Console(stderr=True, highlight=False)).resolve()
    test = rates_of(resolved, steps=tries)
    if plot is not None:
        test.plot(plot)
    if as_json:
        figures = {name: getattr(test, name) for name in FIGURES}
        click.echo(msgspec.json.encode({**figures, "rates": test.rates.tolist(), "losses": test.losses.tolist()}))
        return
    optimizer = resolved.optimizer if resolved.local_steps == 1 else resolved.local_optimizer
    print_plainly(
        Console(stderr=True, highlight=False), f"for {optimizer} and batches of {resolved.global_batch} samples:"
    )
    for name in FIGURES:
        print_plainly(Console(highlight=False), f"{name.replace('_', ' '):<11} {getattr(test, name):.2g}")
