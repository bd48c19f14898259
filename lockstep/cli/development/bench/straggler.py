"""`lockstep bench straggler`: what a slow worker costs, or brings."""

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.runtime.clock import SystemClock
from lockstep.bench.reports.rows import StragglerRow, plot_rows, write_rows
from lockstep.bench.reports.tables import STRAGGLER_HEAD, straggler_line
from lockstep.bench.slowdown import PATTERNS
from lockstep.bench.straggler import Straggler, StragglerBench
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    JSON_OPTION,
    PLOT_OPTION,
    ROUNDS_OPTION,
    Several,
    check_plot,
)
from lockstep.reports.display import print_plainly


@click.command(short_help="One slow worker: images/s next to the others alone.")
@click.option("--model", default="lenet", metavar="MODEL", help="as of train  [lenet]")
@click.option("--batch", type=click.IntRange(min=1), default=128, metavar="N", help="samples of a step  [128]")
@click.option(
    "--micro-batches", type=click.IntRange(1, 4096), default=8, metavar="N", help="pieces that they are cut into  [8]"
)
@click.option(
    "--workers", type=click.IntRange(2, 1024), default=2, metavar="N", help="worker processes, the slow one too  [2]"
)
@click.option(
    "--cases",
    type=Several(click.Choice(tuple(PATTERNS))),
    default="2,3,10,stall,stopped",
    metavar="LIST",
    help="what is done to the last worker  [2,3,10,stall,stopped]",
)
@click.option(
    "--steps", type=click.IntRange(min=FEWEST_STEPS), default=300, metavar="N", help="steps of each case, from 8  [300]"
)
@ROUNDS_OPTION
@JSON_OPTION
@PLOT_OPTION
def straggler(json_file: Path | None, plot_file: Path | None, **asked: Any) -> None:
    """Train with one slow worker, and compare with the fast ones alone and with all of them fast.

    The last worker is slowed down from outside: its process is stopped and continued again and again, so that it runs
    for 1 of every 2, 3 or 10 ms; or for 20 of every 60 ms, which is a stall; or it is stopped for good. In the ideal
    the speeds of all workers add up. Twice is the share of the micro-batches that were leased and not used, as the
    ledger lists them; fast and slow are the micro-batches of a step that each fast worker computes, and the slow one.

    Images/s are those of all steps from the one on in which the worker is slowed down, after 20 steps, in the middle
    one of the turns. Ratios are medians over the turns. Not measured are the start, evaluations, and the step after
    one.

    \b
      lockstep bench straggler
      lockstep bench straggler --model cnn --cases 3,stopped --json straggler.json
      lockstep bench straggler --workers 4 --micro-batches 32 --plot straggler.png
    """
    check_plot(plot_file)
    console, rows = Console(highlight=False), list[StragglerRow]()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        bench = StragglerBench(
            Straggler(**asked), Path(folder), lambda text: print_plainly(console, text), SystemClock()
        )
        print_plainly(console, STRAGGLER_HEAD)
        for row in bench.rows():
            rows.append(row)
            print_plainly(console, straggler_line(row))
            if json_file is not None:
                write_rows(json_file, rows)
    if plot_file is not None:
        plot_rows("straggler", rows, plot_file)
