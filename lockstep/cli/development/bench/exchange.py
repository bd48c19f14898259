"""`lockstep bench exchange`: what moving gradients and weights costs."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lockstep.bench.exchange import Exchange, ExchangeBench
from lockstep.bench.reports.tables import EXCHANGE_HEAD, exchange_line
from lockstep.cli.development.bench.options import (
    FEWEST_STEPS,
    PARAMETERS,
    PEER_OPTION,
    ROUNDS_OPTION,
    SERVERS,
    TRANSPORTS,
    WIRES,
    WIRES_OF_WEIGHTS,
    WORKERS,
    Several,
)
from lockstep.cli.development.bench.output import RowOutput, with_output
from lockstep.cli.options.types import WholeNumber


@click.command(short_help="The exchange of gradients and weights alone.")
@click.option(
    "--params",
    "parameters",
    type=PARAMETERS,
    default="535818",
    metavar="LIST",
    help="sizes of the gradient, in parameters  [535818]",
)
@click.option("--workers", type=WORKERS, default="2", metavar="LIST", help="numbers of worker processes  [2]")
@click.option(
    "--transport",
    "--transports",
    "transports",
    type=TRANSPORTS,
    default="auto",
    metavar="LIST",
    help="transports, as of train  [auto]",
)
@click.option("--servers", type=SERVERS, default="1", metavar="LIST", help="numbers of server processes  [1]")
@click.option("--steps", type=WholeNumber(FEWEST_STEPS), default=300, metavar="N", help="exchanges to measure  [300]")
@click.option(
    "--wire",
    "wires",
    type=Several(WIRES),
    default="float32",
    metavar="LIST",
    help="types in which sums of gradients travel  [float32]",
)
@click.option(
    "--wire-weights",
    type=WIRES_OF_WEIGHTS,
    default="float32",
    metavar="TYPE",
    help="type in which weights travel  [float32]",
)
@ROUNDS_OPTION
@PEER_OPTION
@with_output("exchange")
def exchange(output: RowOutput, **asked: Any) -> None:
    """Time only the exchange of gradients and weights. Workers fill a gradient with a number instead of computing one.

    Server and workers are those of `lockstep train`. With --peer-python, torch's all-reduce over gloo runs in turns
    with them, with as many processes, the same filling and the same update.

    \b
      lockstep bench exchange --params 535818,25000000 --transport auto,tcp
      lockstep bench exchange --transport tcp --wire float32,float16,int8
      lockstep bench exchange --workers 2,4 --peer-python ~/torch/bin/python
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        bench = ExchangeBench(Exchange(**asked), Path(folder), output.say)
        output.say(EXCHANGE_HEAD)
        for row in bench.rows():
            output.add(row, exchange_line(row))
