"""`lockstep bench`: the group of all benches."""

import click

from lockstep.cli.development.bench.coordinator import coordinator
from lockstep.cli.development.bench.exchange import exchange
from lockstep.cli.development.bench.predict import predict_command
from lockstep.cli.development.bench.scaling import scaling
from lockstep.cli.development.bench.single import lone
from lockstep.cli.development.bench.step import step
from lockstep.cli.development.bench.straggler import straggler
from lockstep.cli.development.bench.wire import wire


@click.group(short_help="Measure how fast Lockstep is.")
def bench() -> None:
    """Measure how fast Lockstep is on this machine.

    \b
      lockstep bench step --model linear,mlp,lenet,cnn
      lockstep bench scaling --help
    """


for measurement in (step, scaling, straggler, exchange, predict_command, coordinator, wire, lone):
    bench.add_command(measurement)
