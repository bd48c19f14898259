"""Flags and kinds of values that the benches have in common."""

import re
from pathlib import Path
from typing import Any, get_args

import click

from common.errors import UsageError
from lockstep.reports.cost_model import MOST_WORKERS
from lockstep.runs.job_file import fields
from lockstep.runs.launch_config import Transport
from lockstep.runs.optional_packages import demand


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


class Range(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them, or FROM..TO, which stands for both and the powers of two between."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        text = str(value)
        if ".." not in text:
            return NUMBERS.convert(value, param, ctx)
        kind: click.ParamType[int] = click.INT
        first, last = (kind.convert(word, param, ctx) for word in text.split("..", 1))
        if not 1 <= first <= last <= MOST_WORKERS:
            self.fail(f"{text!r} is no range: expected FROM..TO, numbers from 1 to {MOST_WORKERS}", param, ctx)
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
            self.fail(f"{value!r} is no speed: expected one as 100Mbit, 1Gbit, 2.5Gbit", param, ctx)
        return speed


NUMBERS = Several(click.IntRange(min=1))
WORKERS = Several(click.IntRange(1, 1024))
CROWDS = Several(click.IntRange(1, 4096))
SERVERS = Several(click.IntRange(1, 64))
RANGE, LINK = Range(), LinkParam()
PARAMETERS = Several(click.IntRange(1, 2**30))
WORDS = Several(click.STRING)
TRANSPORTS = Several(click.Choice(get_args(Transport)))
WIRES, WIRES_OF_WEIGHTS = click.Choice(fields()["wire"].choices), click.Choice(fields()["wire_weights"].choices)

#: Fewest steady steps: below, a median and quartiles say nothing.
FEWEST_STEPS = 8

JSON_OPTION = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="write the rows to FILE, as one list"
)
PLOT_OPTION = click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), metavar="FILE", help="draw them as FILE, a .png"
)
WIRE_OPTION = click.option("--wire", type=WIRES, metavar="TYPE", help="of sums on the link  [that of the basis]")
WIRE_WEIGHTS_OPTION = click.option(
    "--wire-weights", type=WIRES_OF_WEIGHTS, metavar="TYPE", help="of weights on the link  [that of the basis]"
)
PEER_OPTION = click.option(
    "--peer-python",
    type=click.Path(path_type=Path),
    metavar="PYTHON",
    help="the Python of an environment with torch: measure it in turns with ours",
)
ROUNDS_OPTION = click.option(
    "--rounds", type=click.IntRange(min=1), default=3, metavar="N", help="turns in which all alternate  [3]"
)


def check_plot(plot_file: Path | None) -> None:
    """Raise `UsageError` if a picture could not be drawn in the end: before minutes are spent on measuring."""
    if plot_file is None:
        return
    if plot_file.suffix.lower() != ".png":
        raise UsageError(f"--plot {str(plot_file)!r}: only PNG can be drawn: expected a name that ends in .png")
    demand("matplotlib", "plot", "--plot")
