"""Where the rows of a bench go: into a table on the screen, as JSON, into a file, and into a plot."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console, RenderableType

from lockstep.bench.reports.rows import plot_rows, write_rows
from lockstep.common.errors import UsageError
from lockstep.results.reports.display import print_plainly
from lockstep.runs.optional_packages import demand

F = TypeVar("F", bound=Callable[..., Any])


class RowOutput:
    """The output of one bench. With JSON, nothing else is printed on standard output."""

    def __init__(self, kind: str, *, as_json: bool = False, file: Path | None = None, plot: Path | None = None) -> None:
        if plot is not None:
            check_plot(plot)
        self.kind, self.as_json, self.file, self.plot_file = kind, as_json, file, plot
        self.console = Console(highlight=False, stderr=as_json)
        self.rows: list[msgspec.Struct] = []
        #: What is plotted, if not the rows.
        self.plotted: msgspec.Struct | None = None

    def say(self, text: str) -> None:
        """Print a line for a person."""
        print_plainly(self.console, text)

    def show(self, table: RenderableType) -> None:
        """Print a table for a person."""
        self.console.print(table)

    def add(self, row: msgspec.Struct, *lines: str) -> None:
        """Keep a row, and print its lines."""
        self.rows.append(row)
        for line in lines:
            self.say(line)
        if self.file is not None:
            write_rows(self.file, self.rows)  # each time: an interrupt loses only the row that is being measured

    def end(self) -> None:
        """Print the rows as JSON and plot them, if that is wanted."""
        if self.as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(self.rows), indent=2).decode())
        if self.plot_file is not None:
            plot_rows(self.kind, self.plotted or self.rows, self.plot_file)


def check_plot(file: Path) -> None:
    """Raise `UsageError` if a plot could not be made at the end: before minutes are spent on measuring."""
    if file.suffix.lower() != ".png":
        raise UsageError(f"--plot {str(file)!r}: expected a name that ends in .png, the only format")
    demand("matplotlib", "plot", "--plot")


def check_one_model(models: Sequence[str], output: RowOutput) -> None:
    """Raise `UsageError` if several models are to be plotted by a bench whose plot has room for one."""
    if len(models) > 1 and output.plot_file is not None:
        raise UsageError(f"--plot with --model {','.join(models)}: expected one model")


def with_output(kind: str, *, has_plot: bool = True) -> Callable[[F], F]:
    """Add the flags that say where rows go; they arrive as `output`."""

    def decorate(command: F) -> F:
        @wraps(command)
        def with_rows(
            *arguments: Any, as_json: bool, rows_file: Path | None, plot_file: Path | None = None, **values: Any
        ) -> None:
            output = RowOutput(kind, as_json=as_json, file=rows_file, plot=plot_file)
            command(*arguments, output=output, **values)
            output.end()

        options = [JSON_OPTION, TO_OPTION, *([PLOT_OPTION] if has_plot else [])]
        for option in reversed(options):
            with_rows = option(with_rows)
        return with_rows  # type: ignore[return-value]  # the same function, with other parameters

    return decorate


JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print the rows as JSON")
TO_OPTION = click.option(
    "--to", "rows_file", type=click.Path(path_type=Path), metavar="FILE", help="write the rows to FILE, as JSON"
)
PLOT_OPTION = click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), metavar="FILE", help="plot the rows as FILE, a .png"
)
