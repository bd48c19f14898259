"""The command line's root: all commands, in the groups that its help shows. A command is imported when it is called."""

from collections.abc import Iterator, Mapping
from typing import Any

import click

from lockstep.common.runtime.version import VERSION

#: The commands by what they are for, as the help shows them.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Train": ("train", "find-lr", "doctor"),
    "Use a run": ("evaluate", "predict", "export", "plot", "watch"),
    "Check": ("ledger", "verify", "replay"),
    "Data": ("pack", "check-data"),
    "Several machines": ("server", "worker", "shard", "node", "keys", "status"),
    "Develop": ("bench", "simulate"),
    "Shell": ("completion",),
}


class Commands(Mapping[str, click.Command]):
    """All commands by name, each imported when it is looked up: the processes of a run need one command each."""

    def __getitem__(self, name: str) -> click.Command:
        command = command_named(name)
        if command is None:
            raise KeyError(name)
        return command

    def __iter__(self) -> Iterator[str]:
        return (name for names in SECTIONS.values() for name in names)

    def __len__(self) -> int:
        return sum(map(len, SECTIONS.values()))


class Root(click.Group):
    """A group whose help shows its commands in sections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands = Commands()  # type: ignore[assignment]  # none is added later

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of commands: click's own place for this."""
        for heading, names in SECTIONS.items():
            commands = [self.commands[name] for name in names]
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


@click.group(cls=Root)
@click.version_option(VERSION, prog_name="lockstep", message="%(prog)s %(version)s")
def cli() -> None:
    """Train neural networks on many processes, in NumPy: the same job gives the same bits.

    \b
    On this machine, with a server and one worker per core:
      lockstep train --model lenet
    On several machines. On the first, whose address is 192.168.1.7 here:
      lockstep keys create keys
      lockstep server --model lenet --bind tcp://192.168.1.7:5555 --keys keys
    On each of the others, after copying keys/worker-1.key to it:
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key

    \b
    `lockstep COMMAND --help` explains a command.
    Exit codes: 0 success, 1 failed run, 2 wrong usage or job, 130 interrupted.
    """


def command_named(name: str) -> click.Command | None:
    """Return a command, None if there is none of this name.

    By statements and not by a path put together from the name: what is imported never depends on a text from outside.
    """
    match name:
        case "train":
            from lockstep.cli.training.train import train

            return train
        case "server":
            from lockstep.cli.machines.server import server

            return server
        case "worker":
            from lockstep.cli.machines.worker import worker

            return worker
        case "shard":
            from lockstep.cli.machines.shard import shard

            return shard
        case "node":
            from lockstep.cli.machines.node import node

            return node
        case "keys":
            from lockstep.cli.machines.keys import keys

            return keys
        case "status":
            from lockstep.cli.machines.status import status

            return status
        case "watch":
            from lockstep.cli.results.watch import watch

            return watch
        case "pack":
            from lockstep.cli.data.pack import pack_command

            return pack_command
        case "check-data":
            from lockstep.cli.data.check_data import check_data

            return check_data
        case "evaluate":
            from lockstep.cli.results.evaluate import evaluate

            return evaluate
        case "predict":
            from lockstep.cli.results.predict import predict

            return predict
        case "plot":
            from lockstep.cli.results.plot import plot

            return plot
        case "export":
            from lockstep.cli.results.export import export

            return export
        case "doctor":
            from lockstep.cli.training.doctor import doctor

            return doctor
        case "find-lr":
            from lockstep.cli.training.find_lr import find_lr

            return find_lr
        case "verify":
            from lockstep.cli.checking.verify import verify

            return verify
        case "replay":
            from lockstep.cli.checking.replay import replay_command

            return replay_command
        case "ledger":
            from lockstep.cli.checking.ledger import ledger

            return ledger
        case "simulate":
            from lockstep.cli.simulate import simulate_command

            return simulate_command
        case "completion":
            from lockstep.cli.completion import completion

            return completion
        case "bench":
            from lockstep.cli.bench import bench

            return bench
        case _:
            return None
