"""`lockstep bench`: how fast it is, measured."""

import click

from lockstep.commands.bench_coordinator import coordinator
from lockstep.commands.bench_exchange import exchange
from lockstep.commands.bench_lone import lone
from lockstep.commands.bench_predict import predict_command
from lockstep.commands.bench_scaling import scaling
from lockstep.commands.bench_step import step
from lockstep.commands.bench_wire import wire


@click.group(short_help="Measure how fast it is.")
def bench() -> None:
    """Measure how fast it is on this machine."""


for command in (step, scaling, exchange, predict_command, coordinator, wire, lone):
    bench.add_command(command)
