"""`lockstep bench coordinator`: what deciding costs with a thousand workers."""

from pathlib import Path

import click
from rich.console import Console

from common.runtime.clock import SystemClock
from lockstep.bench.coordinator import MAX_MICRO_BATCHES, measure
from lockstep.bench.reports.rows import CoordinatorRow, plot_rows, write_rows
from lockstep.bench.reports.tables import COORDINATOR_HEAD, coordinator_line
from lockstep.cli.development.bench.options import CROWDS, JSON_OPTION, PLOT_OPTION, check_plot
from lockstep.reports.display import print_plainly


@click.command(short_help="The coordinator alone: decisions a second.")
@click.option(
    "--workers", type=CROWDS, default="1,10,100,1000", metavar="LIST", help="simulated workers  [1,10,100,1000]"
)
@click.option(
    "--pieces",
    type=click.IntRange(1, MAX_MICRO_BATCHES),
    default=4,
    metavar="N",
    help="micro-batches for each worker  [4]",
)
@click.option("--steps", type=click.IntRange(min=1), default=20, metavar="N", help="steps of each run  [20]")
@JSON_OPTION
@PLOT_OPTION
def coordinator(
    workers: tuple[int, ...], pieces: int, steps: int, json_file: Path | None, plot_file: Path | None
) -> None:
    """Let the real coordinator lead a run of simulated workers, in virtual time, and time its decisions.

    No vector is moved and no message: it is what a server's one thread spends on who computes what. It must stay small
    next to the exchange, and an event must cost the same for any number of workers.
    """
    check_plot(plot_file)
    console, rows = Console(highlight=False), list[CoordinatorRow]()
    print_plainly(console, COORDINATOR_HEAD)
    for row in measure(workers, pieces, steps, SystemClock()):
        rows.append(row)
        print_plainly(console, coordinator_line(row))
    if json_file is not None:
        write_rows(json_file, rows)
    if plot_file is not None:
        plot_rows("coordinator", rows, plot_file)
