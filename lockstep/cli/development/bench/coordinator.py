"""`lockstep bench coordinator`: what deciding costs with a thousand workers."""

import click

from lockstep.bench.coordinator import MAX_MICRO_BATCHES, measure
from lockstep.bench.reports.tables import COORDINATOR_HEAD, coordinator_line
from lockstep.cli.development.bench.options import CROWDS
from lockstep.cli.development.bench.output import RowOutput, with_output
from lockstep.cli.options.types import WholeNumber
from lockstep.common.runtime.clock import SystemClock


@click.command(short_help="The coordinator alone: events per second.")
@click.option(
    "--workers",
    type=CROWDS,
    default="1,10,100,1000",
    metavar="LIST",
    help="numbers of simulated workers  [1,10,100,1000]",
)
@click.option(
    "--micro-batches-per-worker",
    type=WholeNumber(1, MAX_MICRO_BATCHES),
    default=4,
    metavar="N",
    help="micro-batches per worker  [4]",
)
@click.option("--steps", type=WholeNumber(1), default=20, metavar="N", help="steps of each run  [20]")
@with_output("coordinator")
def coordinator(workers: tuple[int, ...], micro_batches_per_worker: int, steps: int, output: RowOutput) -> None:
    """Time the decisions of the coordinator in runs of simulated workers, in virtual time.

    The coordinator is the real one; no gradients and no messages travel. The time is what the server's thread needs to
    decide who computes what. It must stay small compared to the exchange, and an event must cost the same for any
    number of workers.

    \b
      lockstep bench coordinator --workers 1,1000
    """
    output.say(COORDINATOR_HEAD)
    for row in measure(workers, micro_batches_per_worker, steps, SystemClock()):
        output.add(row, coordinator_line(row))
