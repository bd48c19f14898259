"""The command line's root: all commands, in the groups that its help shows."""

import click

from common.version import VERSION
from lockstep.cli.bench.coordinator import coordinator
from lockstep.cli.bench.exchange import exchange
from lockstep.cli.bench.predict import predict_command
from lockstep.cli.bench.scaling import scaling
from lockstep.cli.bench.single import lone
from lockstep.cli.bench.step import step
from lockstep.cli.bench.wire import wire
from lockstep.cli.checking.doctor import doctor
from lockstep.cli.checking.find_lr import find_lr
from lockstep.cli.checking.ledger import ledger
from lockstep.cli.checking.replay import replay_command as replay
from lockstep.cli.checking.simulate import simulate_command as simulate
from lockstep.cli.checking.verify import verify
from lockstep.cli.results.evaluate import evaluate
from lockstep.cli.results.export import export
from lockstep.cli.results.plot import plot
from lockstep.cli.results.predict import predict
from lockstep.cli.training.keys import keys
from lockstep.cli.training.node import node
from lockstep.cli.training.server import server
from lockstep.cli.training.shard import shard
from lockstep.cli.training.status import status
from lockstep.cli.training.train import train
from lockstep.cli.training.worker import worker


class Root(click.Group):
    """A group whose help shows its commands in sections."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of commands: click's own place for this."""
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


@click.group(cls=Root)
@click.version_option(VERSION, prog_name="lockstep", message="%(prog)s %(version)s")
def cli() -> None:
    """Train neural networks on many processes, in NumPy: the same job gives the same bits.

    \b
    On this machine, a server and one worker per core:
      lockstep train --model lenet
    On several machines, the server on one and any number of workers anywhere:
      lockstep server --job job.toml --bind tcp://127.0.0.1:5555
      lockstep worker tcp://127.0.0.1:5555
    `lockstep COMMAND --help` explains a command. Exit codes: 0 done, 2 wrong
    usage or job, 1 failed run, 130 interrupted.
    """


@click.group(short_help="Measure how fast it is.")
def bench() -> None:
    """Measure how fast it is on this machine."""


for measurement in (step, scaling, exchange, predict_command, coordinator, wire, lone):
    bench.add_command(measurement)

#: The commands by what they are for; each section is a folder next to this file.
SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Training": (train, server, worker, shard, node, keys, status),
    "Results": (evaluate, predict, plot, export),
    "Checking": (doctor, find_lr, verify, replay, ledger, simulate),
    "Benches": (bench,),
}

for section in SECTIONS.values():
    for command in section:
        cli.add_command(command)
