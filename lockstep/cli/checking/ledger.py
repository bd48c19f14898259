"""`lockstep ledger`: the report that each epoch of a run used every sample once."""

from pathlib import Path

import click
import msgspec

from lockstep.checking.recorded_run import read_run
from lockstep.checking.verify import coverage_lines, coverage_of, demand_coverage
from lockstep.cli.options.packing import training_data_of
from lockstep.cli.options.run import RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.common.files.sanitize import printable


@click.command(short_help="Check that a run used every sample once.")
@RUN_ARGUMENT
@click.option("--all", "lists_all", is_flag=True, help="list each lease that was computed more than once")
@click.option("--json", "as_json", is_flag=True, help="print the report as JSON")
@TRAINING_DATA_OPTION
def ledger(run: Path, lists_all: bool, as_json: bool, training_data: str | None) -> None:
    """Check in the ledger of the run in the folder RUN that each epoch used every sample exactly once.

    The report also names the micro-batches that were computed more than once, and why. If an epoch has more than three
    for the same reason, it counts them, and --all lists them. The command reads files only;
    to recompute a run, use `lockstep verify`. The exit code is 1 if the check fails.

    \b
      lockstep ledger runs/20261124-231714-lenet
    """
    recorded = read_run(run, training_data_of(run, training_data))
    report = coverage_of(recorded)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        for line in coverage_lines(recorded, report, lists_all=lists_all):
            click.echo(printable(line))
    demand_coverage(report)
