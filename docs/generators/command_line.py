"""The commands in the groups of `lockstep --help`, each from its own help."""

import sys
from collections.abc import Sequence

import click

from lockstep.cli.main import SECTIONS, cli


def command_line() -> str:
    """Return a heading for each group, and below it the entries of its commands."""
    return "\n".join(
        f"## {title}\n\n" + "\n".join(_entry(name, cli.commands[name]) for name in names)
        for title, names in SECTIONS.items()
    )


def _entry(name: str, command: click.Command) -> str:
    nested = "full" if isinstance(command, click.Group) else "none"
    return f"```{{eval-rst}}\n.. click:: {place_of(command)}\n   :prog: lockstep {name}\n   :nested: {nested}\n```\n"


def place_of(command: click.Command) -> str:
    """Return where a command is defined, as `module:name`."""
    assert command.callback is not None
    module = sys.modules[command.callback.__module__]
    return f"{module.__name__}:{next(name for name, value in vars(module).items() if value is command)}"


def literal_lines(lines: Sequence[str]) -> list[str]:
    """Return a description in which the lines that click keeps as they are, its examples, are a block to copy."""
    found: list[str] = []
    for line in lines:
        is_kept = line.startswith("| ")
        if is_kept and not (found and found[-1].startswith("   ")):
            found += [".. code-block:: text", ""]
        found.append(f"   {line[2:]}" if is_kept else line)
    return found
