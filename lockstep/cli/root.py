"""The command line's root."""

import click

from common.protocol.numerics import own_version
from lockstep.cli.bench.group import bench
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(own_version(), prog_name="lockstep", message="%(prog)s %(version)s")
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
