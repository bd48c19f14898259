"""`lockstep bench wire`: what the types of the wire cost where they are computed."""

from pathlib import Path

import click
from rich.console import Console

from common.runtime.clock import SystemClock
from lockstep.bench.quantization import measure
from lockstep.bench.reports.rows import QuantizationRow, write_rows
from lockstep.bench.reports.tables import QUANTIZATION_HEAD, quantization_line
from lockstep.cli.development.bench.options import JSON_OPTION
from lockstep.reports.display import print_plainly


@click.command(short_help="The types of the wire: nanoseconds a value.")
@click.option("--values", type=click.IntRange(1, 2**28), default=262_144, metavar="N", help="a frame's  [262144]")
@click.option("--repeats", type=click.IntRange(min=1), default=100, metavar="N", help="the least counts  [100]")
@JSON_OPTION
def wire(values: int, repeats: int, json_file: Path | None) -> None:
    """Time what --wire adds to a step's computing, in nanoseconds a value.

    To add two halves of a node and round the sum, which every node takes once, by whoever computes it; and to pack and
    unpack what is sent.
    """
    console, rows = Console(highlight=False), list[QuantizationRow]()
    print_plainly(console, QUANTIZATION_HEAD)
    for row in measure(values, repeats, SystemClock()):
        rows.append(row)
        print_plainly(console, quantization_line(row))
    if json_file is not None:
        write_rows(json_file, rows)
