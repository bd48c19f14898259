"""The parameters of benches: each is a field of a bench, and an option of its command."""

import re
from collections.abc import Iterable
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from lockstep.cli.options.completion import MODELS, complete_list
from lockstep.cli.options.types import WholeNumber, number_range
from lockstep.common.transport.transports import Transport
from lockstep.runs.job_file import fields

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Fewest steady steps: below, a median and quartiles say nothing.
FEWEST_STEPS = 8

#: Most processes, in all.
MOST_PROCESSES = 1024

#: Seconds by their units, and the longest time that a micro-batch may sleep.
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
LONGEST_S = 60.0


class Several(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them, each of one kind and once; they arrive as a tuple."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any], offered: Iterable[str] = ()) -> None:
        self.kind = kind
        self.offered = kind.choices if isinstance(kind, click.Choice) else offered

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values in the order given; a usage error names the one that is wrong."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        return tuple(dict.fromkeys(self.kind.convert(word, param, ctx) for word in words))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return what may come next in the list."""
        return complete_list(self.offered, incomplete)


class PowersRange(Several):
    """Numbers with commas between them, or FROM..TO, which stands for both ends and the powers of two between."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        if isinstance(value, tuple) or (".." not in value and ":" not in value):
            return super().convert(value, param, ctx)
        numbers = number_range(value)
        first, last = (self.kind.convert(number, param, ctx) for number in (numbers.start, numbers.stop - 1))
        between = (2**power for power in range(1, last.bit_length()))
        return tuple(dict.fromkeys((first, *(number for number in between if first < number < last), last)))


class DurationParam(click.ParamType[float]):
    """A time such as `20ms`; it arrives in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds; a usage error says how they are written."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(us|ms|s)", str(value))
        if found is None or not (seconds := float(found[1]) * UNITS_S[found[2]]) <= LONGEST_S:
            self.fail(f"{value!r} is not a valid time: expected one such as 20ms or 1.5s, up to 60s", param, ctx)
        return seconds


class LinkParam(click.ParamType[float]):
    """A speed in bits a second, as people name links; it arrives in bytes a second."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the speed; a usage error says how it is written."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMGT])bit(?:/s)?", str(value), re.IGNORECASE)
        speed = float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper())) / 8 if found else 0.0
        if not speed:
            self.fail(f"{value!r} is not a valid speed: expected one such as 100Mbit, 1Gbit or 2.5Gbit", param, ctx)
        return speed


def option(
    flags: str, kind: click.ParamType[Any], text: str, default: str | None = None, *, shown: str = "", metavar: str = ""
) -> Any:
    """Return a field of a bench, with `flags` separated by blanks.

    `default` is written as a user would write it, and shown in the help unless something else is `shown`.
    """
    value = None if default is None else kind.convert(default, None, None)
    brackets = shown or ("" if kind is click.BOOL else default)
    made = partial(
        click.Option,
        type=kind,
        is_flag=kind is click.BOOL,
        default=value,
        metavar=metavar or ("LIST" if isinstance(kind, Several) else "N"),
        help=f"{text}  [{brackets}]" if brackets else text,
    )
    return field(default=value, metadata={"option": made, "flags": flags.split()})


NUMBERS = Several(WholeNumber(1))
WIRES, WIRES_OF_WEIGHTS = click.Choice(fields()["wire"].choices), click.Choice(fields()["wire_weights"].choices)
TRANSPORTS = Several(click.Choice(get_args(Transport)))

# Parameters of several benches: functions, because each bench needs a field of its own.
models = partial(option, kind=Several(click.STRING, MODELS))
workers = partial(
    option, "--workers", PowersRange(WholeNumber(1, MOST_PROCESSES)), "numbers of worker processes, or FROM..TO"
)
servers = partial(option, "--servers", Several(WholeNumber(1, 64)))
transports = partial(option, "--transport --transports", TRANSPORTS, "transports, as of train", "auto")
steps = partial(option, "--steps", WholeNumber(FEWEST_STEPS))


def rounds(default: str = "3") -> Any:
    """Return the number of turns."""
    return option("--rounds", WholeNumber(1), "turns in which the measurements alternate", default)


wire_weights = partial(option, "--wire-weights", WIRES_OF_WEIGHTS, "type in which weights travel", metavar="TYPE")
PEER_TEXT = "a Python with torch: measure torch too, in turns"
compiles = partial(
    option, "--compile/--no-compile", click.BOOL, "of torch, measure torch.compile too", "yes", shown="compile"
)
peer_python = partial(option, "--peer-python", click.Path(path_type=Path), PEER_TEXT, metavar="PYTHON")
