"""Flags and kinds of values that the benches have in common."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from lockstep.cli.options.completion import MODELS, complete_list
from lockstep.cli.options.types import WholeNumber, number_range
from lockstep.common.transport.transports import Transport
from lockstep.runs.cost_model import MOST_WORKERS
from lockstep.runs.job_file import fields

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Several(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them, each of one kind and once; they arrive as a tuple."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values in the order given; a usage error names the one that is wrong."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        return tuple(dict.fromkeys(self.kind.convert(word, param, ctx) for word in words))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return what may come next in the list, if there is a choice."""
        return complete_list(self.kind.choices, incomplete) if isinstance(self.kind, click.Choice) else []


class ModelList(click.ParamType[tuple[str, ...]]):
    """Models with commas between them."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the models in the order given, each once."""
        return value if isinstance(value, tuple) else Several(click.STRING).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return the models that may come next in the list."""
        return complete_list(MODELS, incomplete)


class PowersRange(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them, or FROM..TO, which stands for both ends and the powers of two between."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        text = str(value)
        if ".." not in text and ":" not in text:
            return NUMBERS.convert(value, param, ctx)
        numbers = number_range(text)
        first, last = numbers.start, numbers.stop - 1
        if not 1 <= first <= last <= MOST_WORKERS:
            self.fail(f"{text!r}: expected FROM..TO, with numbers from 1 to {MOST_WORKERS}", param, ctx)
        between = (2**power for power in range(1, last.bit_length()))
        return tuple(dict.fromkeys((first, *(number for number in between if first < number < last), last)))


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


NUMBERS = Several(WholeNumber(1))
WORKERS = Several(WholeNumber(1, 1024))
CROWDS = Several(WholeNumber(1, 4096))
SERVERS = Several(WholeNumber(1, 64))
RANGE, LINK = PowersRange(), LinkParam()
PARAMETERS = Several(WholeNumber(1, 2**30))
MODEL_LIST = ModelList()
TRANSPORTS = Several(click.Choice(get_args(Transport)))
WIRES, WIRES_OF_WEIGHTS = click.Choice(fields()["wire"].choices), click.Choice(fields()["wire_weights"].choices)

#: Fewest steady steps: below, a median and quartiles say nothing.
FEWEST_STEPS = 8

WIRE_OPTION = click.option(
    "--wire", type=WIRES, metavar="TYPE", help="type in which sums of gradients travel  [as measured]"
)
WIRE_WEIGHTS_OPTION = click.option(
    "--wire-weights", type=WIRES_OF_WEIGHTS, metavar="TYPE", help="type in which weights travel  [as measured]"
)
PEER_OPTION = click.option(
    "--peer-python",
    type=click.Path(path_type=Path),
    metavar="PYTHON",
    help="a Python with torch: measure torch too, in turns",
)
ROUNDS_OPTION = click.option(
    "--rounds", type=WholeNumber(1), default=3, metavar="N", help="turns in which the measurements alternate  [3]"
)
