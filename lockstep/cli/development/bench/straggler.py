"""`lockstep bench straggler`: what a slow worker costs, or brings."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lockstep.bench.reports.tables import STRAGGLER_HEAD, straggler_line
from lockstep.bench.slowdown import PATTERNS
from lockstep.bench.straggler import Straggler, StragglerBench
from lockstep.cli.development.bench.options import FEWEST_STEPS, MODEL_LIST, ROUNDS_OPTION, Several
from lockstep.cli.development.bench.output import RowOutput, check_one_model, with_output
from lockstep.cli.options.types import WholeNumber
from lockstep.common.runtime.clock import SystemClock


@click.command(short_help="One slow worker: images/s, compared with the others alone.")
@click.option("--model", "models", type=MODEL_LIST, default="lenet", metavar="LIST", help="models  [lenet]")
@click.option("--batch", type=WholeNumber(1), default=128, metavar="N", help="batch size  [128]")
@click.option("--micro-batches", type=WholeNumber(1, 4096), default=8, metavar="N", help="micro-batches per step  [8]")
@click.option(
    "--workers", type=WholeNumber(2, 1024), default=2, metavar="N", help="worker processes, with the slow one  [2]"
)
@click.option(
    "--cases",
    type=Several(click.Choice(tuple(PATTERNS))),
    default="2,3,10,stall,stopped",
    metavar="LIST",
    help="how the last worker is slowed down  [2,3,10,stall,stopped]",
)
@click.option(
    "--steps", type=WholeNumber(FEWEST_STEPS), default=300, metavar="N", help="steps to measure in each case  [300]"
)
@ROUNDS_OPTION
@with_output("straggler")
def straggler(models: tuple[str, ...], output: RowOutput, **asked: Any) -> None:
    """Train with one slow worker, and compare the speed with the fast workers alone and with all workers fast.

    The last worker is slowed down from outside. Its process is paused again and again, so that it runs for 1 of every
    2, 3 or 10 ms, or for 20 of every 60 ms (a stall). Or it is stopped for good. Ideally, the speeds of all workers
    add up. "twice" is the share of micro-batches that were leased and not used. "fast" and "slow" are the micro-batches
    per step of each fast worker and of the slow one.

    Images/s count from the step in which the worker is slowed down, after 20 steps, in the median turn. Ratios are
    medians over the turns. The start, evaluations and the step after each evaluation are not measured.

    \b
      lockstep bench straggler
      lockstep bench straggler --model cnn --cases 3,stopped --to straggler.json
      lockstep bench straggler --workers 4 --micro-batches 32 --plot straggler.png
    """
    check_one_model(models, output)
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        output.say(STRAGGLER_HEAD)
        for model in models:
            if len(models) > 1:
                output.say(model)
            bench = StragglerBench(Straggler(model=model, **asked), Path(folder), output.say, SystemClock())
            for row in bench.rows():
                output.add(row, straggler_line(row))
