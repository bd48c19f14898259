"""The command line's root: all commands, in the groups that its help shows. A command is imported when it is called."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from lockstep.common.errors import nearest
from lockstep.common.runtime.environment import collector_paused
from lockstep.common.runtime.version import VERSION

#: The commands by what they are for, and the module and the function of each below this package. The import is
#: always one of these texts, never a text from outside.
SECTIONS: dict[str, dict[str, str]] = {
    "Train": {
        "train": "training.train:train",
        "find-lr": "training.find_lr:find_lr",
        "doctor": "training.doctor:doctor",
    },
    "Use a run": {
        "evaluate": "results.evaluate:evaluate",
        "predict": "results.predict:predict",
        "export": "results.export:export",
        "plot": "results.plot:plot",
        "watch": "results.watch:watch",
    },
    "Check": {
        "ledger": "checking.ledger:ledger",
        "verify": "checking.verify:verify",
        "replay": "checking.replay:replay_command",
    },
    "Data": {
        "pack": "data_folders:pack_command",
        "check-data": "data_folders:check_data",
    },
    "Several machines": {
        "server": "machines.server:server",
        "worker": "machines.worker:worker",
        "shard": "machines.shard:shard",
        "node": "machines.node:node",
        "keys": "machines.keys:keys",
        "status": "machines.status:status",
        "promote": "machines.promote:promote",
        "drain": "machines.drain:drain",
    },
    "Develop": {
        "bench": "bench:bench",
        "simulate": "simulate:simulate_command",
    },
    "Shell": {"completion": "completion:completion"},
}

PLACES = {name: place for places in SECTIONS.values() for name, place in places.items()}


class Commands(Mapping[str, click.Command]):
    """All commands by name, each imported when it is looked up: the processes of a run need one command each."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = PLACES[name].partition(":")
        with collector_paused():
            command: click.Command = getattr(import_module(f"lockstep.cli.{module}"), function)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


class Root(click.Group):
    """A group whose help shows its commands in sections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands = Commands()  # type: ignore[assignment]  # none is added later

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, with the rest; a usage error has the nearest name."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command {name!r}{nearest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of commands: click's own place for this."""
        for heading, names in SECTIONS.items():
            commands = [self.commands[name] for name in names]
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
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
