"""`lockstep bench wire`: what the types of the wire cost where they are computed."""

import click

from lockstep.bench.quantization import measure
from lockstep.bench.reports.tables import QUANTIZATION_HEAD, quantization_line
from lockstep.cli.development.bench.output import RowOutput, with_output
from lockstep.cli.options.types import WholeNumber
from lockstep.common.runtime.clock import SystemClock


@click.command(short_help="The formats of --wire: nanoseconds per value.")
@click.option("--values", type=WholeNumber(1, 2**28), default=262_144, metavar="N", help="values to round  [262144]")
@click.option("--repeats", type=WholeNumber(1), default=100, metavar="N", help="repeats, the fastest counts  [100]")
@with_output("wire", has_plot=False)
def wire(values: int, repeats: int, output: RowOutput) -> None:
    """Time what --wire adds to a step, in nanoseconds per value.

    Each node of the tree is the rounded sum of its two halves, which one process computes. Packing and unpacking are
    for each message.

    \b
      lockstep bench wire
    """
    output.say(QUANTIZATION_HEAD)
    for row in measure(values, repeats, SystemClock()):
        output.add(row, quantization_line(row))
