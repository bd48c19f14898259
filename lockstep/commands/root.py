"""The command line's root."""

import importlib.metadata

import click

from lockstep.commands.bench import bench
from lockstep.commands.doctor import doctor
from lockstep.commands.evaluate import evaluate
from lockstep.commands.export import export
from lockstep.commands.find_lr import find_lr
from lockstep.commands.keys import keys
from lockstep.commands.ledger import ledger
from lockstep.commands.node import node
from lockstep.commands.plot import plot
from lockstep.commands.predict import predict
from lockstep.commands.replay import replay_command as replay
from lockstep.commands.server import server
from lockstep.commands.shard import shard
from lockstep.commands.simulate import simulate_command as simulate
from lockstep.commands.status import status
from lockstep.commands.train import train
from lockstep.commands.verify import verify
from lockstep.commands.worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("lockstep"), prog_name="lockstep", message="%(prog)s %(version)s")
def cli() -> None:
    """Train neural networks on many processes, in NumPy: the same job gives the same bits.

    \b
    On this machine, a server and a worker a core:
      lockstep train --model lenet
    On several machines, the server on one and any number of workers anywhere:
      lockstep server --job job.toml --bind tcp://127.0.0.1:5555
      lockstep worker tcp://127.0.0.1:5555
    `lockstep COMMAND --help` tells more. Exit codes: 0 done, 2 wrong usage or
    job, 1 failed run, 130 interrupted.
    """


for command in (
    train,
    server,
    worker,
    shard,
    node,
    keys,
    evaluate,
    predict,
    plot,
    export,
    ledger,
    verify,
    replay,
    simulate,
    status,
    doctor,
    find_lr,
    bench,
):
    cli.add_command(command)
