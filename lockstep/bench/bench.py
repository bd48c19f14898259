"""A bench: options, rows whose fields say how they are printed, and panels in which they are plotted."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

import click
import msgspec
from click.types import convert_type

from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.completion import MODELS, complete_list
from lockstep.cli.options.types import number_range, whole_number
from lockstep.common.transport.transports import Transport
from lockstep.results.display import counted
from lockstep.runs import job_file

R = TypeVar("R", bound=msgspec.Struct)


class TableColumn(msgspec.Struct, frozen=True):
    """The column in which a field of a row is printed: an annotation of the field."""

    title: str
    #: Characters; below zero, the text is at the left of them.
    width: int
    #: As of `format`, and what follows the value. None is printed as `-`.
    form: str = ""
    unit: str = ""
    #: Printed instead of the field: a function of the row.
    of: Callable[[Any], Any] | None = None

    def aligned(self, text: str) -> str:
        """Return a text in the width of the column."""
        return text.rjust(self.width) if self.width > 0 else text.ljust(-self.width)

    def heading(self) -> str:
        """Return its title in the width of the column."""
        return self.aligned(self.title)

    def cell(self, row: msgspec.Struct, field: str) -> str:
        """Return the cell of a row."""
        value = getattr(row, field) if self.of is None else self.of(row)
        return self.aligned("-" if value is None else f"{value:{self.form}}{self.unit}")


def columns_of(kind: type[msgspec.Struct]) -> list[tuple[str, TableColumn]]:
    """Return the fields of a row that are printed, and their columns."""
    hints = get_type_hints(kind, include_extras=True).items()
    return [(name, column) for name, hint in hints for column in getattr(hint, "__metadata__", ())]


def heading(kind: type[msgspec.Struct]) -> str:
    """Return the heading above rows; empty if they are not printed in columns."""
    return " ".join(column.heading() for _, column in columns_of(kind))


def line(row: msgspec.Struct) -> str:
    """Return a row as a line below its heading."""
    return " ".join(column.cell(row, name) for name, column in columns_of(type(row)))


class Series(msgspec.Struct, frozen=True):
    """The values of one colour in a panel."""

    #: Its name in the legend; empty if it has no entry.
    name: str
    #: A name of the plotter's colours.
    colour: str
    values: Sequence[float | None]
    #: `bar`, `-` for an upright line at each value, or a marker or line of matplotlib.
    shape: str = "bar"
    #: The places of the values, if the panel has curves.
    at: Sequence[float] = ()


class Panel(msgspec.Struct, frozen=True):
    """Curves, or horizontal bars if the panel has `names`."""

    title: str
    #: Label of the axis of values.
    unit: str
    series: Sequence[Series]
    #: The name of each bar, from top to bottom, and the text at its end.
    names: Sequence[str] = ()
    texts: Sequence[str] = ()
    #: Whether the bars of one place lie next to one another, and not end to end.
    is_grouped: bool = False
    is_log: bool = False
    #: The end of the axis of values, as a multiple of its end without texts; of curves, its end.
    end: float | None = None
    #: Relative to other panels of the figure.
    width: float = 1.0
    #: Label of the other axis of curves.
    along: str = "workers"


@dataclass(kw_only=True)
class Bench(ABC, Generic[R]):
    """A bench: its docstring is the help of its command, its fields are the options."""

    name: ClassVar[str]
    summary: ClassVar[str]
    row: ClassVar[type[msgspec.Struct]]
    #: Whether the heading of the rows is the first line.
    has_heading: ClassVar[bool] = True
    has_plot: ClassVar[bool] = True

    @classmethod
    def options(cls) -> "list[Field[Any]]":
        """Return the fields that are options of the command: those that several benches share are the last."""
        known = [each for each in fields(cls) if each.metadata]
        return sorted(known, key=lambda each: each.name not in cls.__annotations__)

    @abstractmethod
    def measure(self, session: BenchSession) -> Iterator[R]:
        """Yield each row as soon as it is known."""

    def report(self, session: BenchSession) -> Iterator[R]:
        """Measure, print each row as soon as it is known, and yield it."""
        if self.has_heading and (titles := heading(self.row)):
            session.say(titles)
        for row in self.measure(session):
            for text in self.lines(row):
                session.say(text)
            yield row

    def lines(self, row: R) -> list[str]:
        """Return a row as lines of at most 80 columns."""
        return [line(row)]

    def advice(self, rows: Sequence[R]) -> str:
        """Return advice for a person who has run this bench alone; empty without advice."""
        return ""

    def panels(self, rows: Sequence[R]) -> list[list[Panel]]:
        """Return the panels of a plot, in rows."""
        return []


def described(row: Any, teams: int = 1) -> str:
    """Return how many workers in how many teams, and servers, a row is of, and what carried their messages."""
    carried = row.transport if row.transport == row.carrier else f"{row.transport} ({row.carrier})"
    together = f" in {teams} teams" if teams > 1 else ""
    servers = f", {row.servers} servers" if row.servers > 1 else ""
    return f"{counted(row.workers, 'worker')}{together}, {carried}{servers}"


def over(title: str, width: int) -> TableColumn:
    """Return a column for the workers, the servers and the transport."""
    return TableColumn(title, width, of=lambda row: f"{row.workers}+{row.servers} {row.transport}")


def ranged(value: float, spread: tuple[float, float], form: str = ".2f") -> str:
    """Return a figure of the middle turn, and those of the lowest and the highest one, if there were several."""
    low, high = spread
    return f"{value:{form}}" if low == high else f"{value:{form}} ({low:{form}} to {high:{form}})"


#: A column for how much faster than the baseline a row is.
TORCH = TableColumn("/torch", 6, ".2f", "x", of=lambda row: row.peer and row.peer.ratio)


def with_torch(texts: Sequence[str], rows: Sequence[Any]) -> list[str]:
    """Return the texts at the ends of bars, with the ratio to the baseline if there is one."""
    ratios = [row.peer and f", {row.peer.ratio:.2f}x torch" for row in rows]
    return [text + (ratio or "") for text, ratio in zip(texts, ratios, strict=True)]


def torch_marks(rows: Sequence[Any], figure: str) -> Series:
    """Return a figure of the baseline as markers."""
    return Series("torch over gloo", "torch", [row.peer and getattr(row.peer, figure) for row in rows], "D")


def whole_machine_marks(rows: Sequence[Any], figure: str) -> list[Series]:
    """Return a figure of PyTorch in one process with all threads as markers, if it was measured."""
    values = [row.all_threads and getattr(row.all_threads, figure) for row in rows]
    return [Series("torch, one process, all threads", "model", values, "s")] if any(values) else []


#: The parts of a step.
PARTS = ("compute", "exchange", "update", "waiting")

#: The colours of curves.
CURVES = ("compute", "exchange", "update", "torch", "ceiling", "model")


def split_columns(*titles: str) -> list[TableColumn]:
    """Return a column for each part of a step, as a share of it."""

    def share(name: str) -> Callable[[Any], float]:
        return lambda row: getattr(row.split, f"{name}_s") / row.split.step_s

    return [TableColumn(title, len(title), ".0%", of=share(name)) for title, name in zip(titles, PARTS, strict=True)]


def split_series(rows: Sequence[Any]) -> list[Series]:
    """Return the parts of steps in milliseconds."""
    return [Series(name, name, [max(0.0, getattr(row.split, f"{name}_s")) * 1e3 for row in rows]) for name in PARTS]


if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: A kind of values, as click takes it: a type, or a function of a text.
Kind = click.ParamType[Any] | Callable[..., Any]

#: Fewest steady steps: below, a median and quartiles say nothing.
FEWEST_STEPS = 8

#: Most processes, in all.
MOST_PROCESSES = 1024

#: Seconds by their units, and the longest time that a micro-batch may sleep.
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
LONGEST_S = 60.0


class Several(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them, each of one kind and once; they arrive as a tuple.

    Numbers may be a range too: FROM..TO stands for both ends and the powers of two between.
    """

    name = "list"

    def __init__(self, kind: Kind, offered: Iterable[str] = (), *, has_ranges: bool = False) -> None:
        self.kind = convert_type(kind)
        self.offered = self.kind.choices if isinstance(self.kind, click.Choice) else offered
        self.has_ranges = has_ranges

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values in the order given; a usage error names the one that is wrong."""
        if isinstance(value, tuple):
            return value
        if self.has_ranges and (".." in value or ":" in value):
            numbers = number_range(value)
            first, last = (self.kind.convert(number, param, ctx) for number in (numbers.start, numbers.stop - 1))
            between = (2**power for power in range(1, last.bit_length()))
            return tuple(dict.fromkeys((first, *(number for number in between if first < number < last), last)))
        words = [word.strip() for word in str(value).split(",")]
        return tuple(dict.fromkeys(self.kind.convert(word, param, ctx) for word in words))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return what may come next in the list."""
        return complete_list(self.offered, incomplete)


def duration(value: str | float) -> float:
    """Return the seconds of a time such as `20ms`. Raises BadParameter."""
    if isinstance(value, float):
        return value
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(us|ms|s)", value)
    if found is None or not (seconds := float(found[1]) * UNITS_S[found[2]]) <= LONGEST_S:
        raise click.BadParameter(f"{value!r} is not a valid time: expected one such as 20ms or 1.5s, up to 60s")
    return seconds


def link_speed(value: str | float) -> float:
    """Return bytes a second of a speed in bits, as people name links: `1Gbit`. Raises BadParameter."""
    if isinstance(value, float):
        return value
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMGT])bit(?:/s)?", value, re.IGNORECASE)
    speed = float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper())) / 8 if found else 0.0
    if not speed:
        raise click.BadParameter(f"{value!r} is not a valid speed: expected one such as 100Mbit, 1Gbit or 2.5Gbit")
    return speed


def option(flags: str, kind: Kind, text: str, default: str | None = None, *, shown: str = "", metavar: str = "") -> Any:
    """Return a field of a bench, with `flags` separated by blanks.

    `default` is written as a user would write it, and shown in the help unless something else is `shown`.
    """
    value = None if default is None else convert_type(kind).convert(default, None, None)
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


NUMBERS = Several(whole_number(1))
WIRES, WIRES_OF_WEIGHTS = (click.Choice(job_file.fields()[name].choices) for name in ("wire", "wire_weights"))
TRANSPORTS = Several(click.Choice(get_args(Transport)))

# Parameters of several benches: functions, because each bench needs a field of its own.
models = partial(option, kind=Several(click.STRING, MODELS))
workers = partial(
    option,
    "--workers",
    Several(whole_number(1, MOST_PROCESSES), has_ranges=True),
    "numbers of worker processes, or FROM..TO",
)
servers = partial(option, "--servers", Several(whole_number(1, 64)))
transports = partial(option, "--transport --transports", TRANSPORTS, "transports, as of train", "auto")
steps = partial(option, "--steps", whole_number(FEWEST_STEPS))


def rounds(default: str = "3") -> Any:
    """Return the number of turns."""
    return option("--rounds", whole_number(1), "turns in which the measurements alternate", default)


wire_weights = partial(option, "--wire-weights", WIRES_OF_WEIGHTS, "type in which weights travel", metavar="TYPE")
PEER_TEXT = "a Python with torch: measure torch too, in turns"


def peer_python() -> Any:
    """Return the Python of the baseline."""
    return option("--peer-python", click.Path(path_type=Path), PEER_TEXT, metavar="PYTHON")


@dataclass(kw_only=True)
class ComparedBench(Bench[R]):
    """A bench that takes turns with PyTorch, if it is given a Python that has it."""

    peer_python: Path | None = peer_python()
    is_compiling: bool = option(
        "--compile/--no-compile", click.BOOL, "of torch, measure torch.compile too", "yes", shown="compile"
    )
