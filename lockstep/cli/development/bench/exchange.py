"""`lockstep bench exchange`: what moving gradients and weights costs."""

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.bench.exchange import Exchange, ExchangeBench
from lockstep.bench.reports.rows import ExchangeRow, plot_rows, write_rows
from lockstep.bench.reports.tables import EXCHANGE_HEAD, exchange_line
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    JSON_OPTION,
    PARAMETERS,
    PEER_OPTION,
    PLOT_OPTION,
    ROUNDS_OPTION,
    SERVERS,
    TRANSPORTS,
    WIRES,
    WIRES_OF_WEIGHTS,
    WORKERS,
    Several,
    check_plot,
)
from lockstep.reports.display import print_plainly


@click.command(short_help="Push, sum, update, pull: what an exchange costs.")
@click.option(
    "--params", "parameters", type=PARAMETERS, default="535818", metavar="LIST", help="sizes of a gradient  [535818]"
)
@click.option("--workers", type=WORKERS, default="2", metavar="LIST", help="numbers of worker processes  [2]")
@click.option(
    "--transports", "--transport", type=TRANSPORTS, default="auto", metavar="LIST", help="as of train  [auto]"
)
@click.option("--servers", type=SERVERS, default="1", metavar="LIST", help="numbers of server processes  [1]")
@click.option(
    "--steps", type=click.IntRange(min=FEWEST_STEPS), default=300, metavar="N", help="exchanges timed, from 8  [300]"
)
@click.option(
    "--wire", "wires", type=Several(WIRES), default="float32", metavar="LIST", help="types of sums  [float32]"
)
@click.option(
    "--wire-weights", type=WIRES_OF_WEIGHTS, default="float32", metavar="TYPE", help="type of weights  [float32]"
)
@ROUNDS_OPTION
@PEER_OPTION
@JSON_OPTION
@PLOT_OPTION
def exchange(json_file: Path | None, plot_file: Path | None, **asked: Any) -> None:
    """Time the exchange alone: each worker fills a gradient with a number instead of computing one.

    Server and workers are those of `lockstep train`. In turns with them runs the baseline: the all-reduce of torch
    over gloo among as many processes, with the same filling and the same update.

    \b
      lockstep bench exchange --params 535818,25000000 --transports auto,tcp
      lockstep bench exchange --transport tcp --wire float32,float16,bfloat16,int8
      lockstep bench exchange --workers 2,4 --peer-python ~/torch/bin/python --plot exchange.png
    """
    check_plot(plot_file)
    console, rows = Console(highlight=False), list[ExchangeRow]()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        bench = ExchangeBench(Exchange(**asked), Path(folder), lambda text: print_plainly(console, text))
        print_plainly(console, EXCHANGE_HEAD)
        for row in bench.rows():
            rows.append(row)
            print_plainly(console, exchange_line(row))
            if json_file is not None:
                write_rows(json_file, rows)
    if plot_file is not None:
        plot_rows("exchange", rows, plot_file)
