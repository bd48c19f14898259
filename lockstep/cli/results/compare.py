"""`lockstep compare`: the records of several runs, next to one another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lockstep.checking.comparison import (
    ComparedRun,
    ComparedValue,
    differences,
    figures,
    parting,
    read_compared,
)
from lockstep.cli.options.completion import RunPath, as_given
from lockstep.common.errors import UsageError
from lockstep.results.display import print_plainly
from lockstep.runs.job_file import NONE

#: Runs in one table: 80 columns have room for their digests.
MOST_IN_A_TABLE = 4

#: How figures are shown, if not with four places.
FORMATS = {"test accuracy": ".2%", "seconds": ".1f", "samples/s": ",.0f"}


@click.command(short_help="Compare runs: values that differ, results.")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=RunPath())
@click.option("--json", "as_json", is_flag=True, help="print the comparison as JSON")
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs by the records in their folders, or by their receipts.

    The command prints each value of the job, the data and its packing, the model and the versions that is not the same
    in all runs, then the results. Values in which the weights may differ come first. It computes nothing, and needs
    neither the data nor the model.

    \b
      lockstep compare runs/first runs/second
      lockstep compare runs/* --json
    """
    if len(runs) < 2:
        raise UsageError(f"one run, {str(runs[0])!r}: expected at least two, as `lockstep compare runs/*`")
    compared = [read_compared(path) for path in runs]
    found = differences(compared)
    if as_json:
        each = [{"run": as_given(str(path)), **figures(run)} for path, run in zip(runs, compared, strict=True)]
        click.echo(msgspec.json.encode({"differences": found, "results": each}).decode())
        return
    console = Console(highlight=False)
    named = [as_given(f"{number}  {run}") for number, run in enumerate(runs, 1)]
    print_plainly(console, *named, *weights_lines(compared))
    for first in range(0, len(runs), MOST_IN_A_TABLE):
        part = range(first, min(first + MOST_IN_A_TABLE, len(runs)))
        for heading, values in (("differs", found), ("result", results_of(compared))):
            if values:
                console.print("", table_of(heading, values, part))


def weights_lines(runs: Sequence[ComparedRun]) -> list[str]:
    """Return which of the runs have the weights of the first one, and where the others part from it."""
    lines = []
    for number, other in enumerate(runs[1:], 2):
        where = parting(runs[0].receipt, other.receipt)
        where = where.replace(" here", " in 1").replace(" there", f" in {number}")
        lines.append(f"1 and {number}: {where or 'the same weights'}")
    return ["", *lines]


def results_of(runs: Sequence[ComparedRun]) -> list[ComparedValue]:
    """Return the results as text, in the order in which a run shows them."""
    each = [figures(run) for run in runs]
    names = sorted(dict.fromkeys(name for one in each for name in one), key=lambda name: name == "weights sha256")
    return [ComparedValue(name=name, values=[_shown(name, one.get(name)) for one in each]) for name in names]


def _shown(name: str, value: Any) -> str:
    match value:
        case None:
            return NONE
        case str():
            return f"{value[:12]}…"
        case int():
            return f"{value:,}"
        case _:
            return format(value, FORMATS.get(name, ".4f"))


def table_of(heading: str, values: Sequence[ComparedValue], runs: range) -> Table:
    """Return a table of values, with a column for each of these runs."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(heading, overflow="fold")
    for run in runs:
        table.add_column(str(run + 1), overflow="fold")
    for value in values:
        # A text of a file may look like markup.
        table.add_row(Text(value.name), *(Text(value.values[run]) for run in runs))
    return table
