"""`lockstep bench`: a command for each bench, and where its rows go: to the screen, as JSON, to a file, into a plot."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.bench.bench import Bench
from lockstep.bench.coordinator import CoordinatorBench
from lockstep.bench.exchange import ExchangeBench, WireBench
from lockstep.bench.local_steps import LocalStepsBench
from lockstep.bench.performance import all_parts
from lockstep.bench.predict import PredictBench
from lockstep.bench.scaling import ScalingBench
from lockstep.bench.step import StepBench, lone
from lockstep.bench.straggler import StragglerBench
from lockstep.bench.timed_run import BenchSession
from lockstep.common.errors import RunError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.runs.own_command import demand

BENCHES: tuple[type[Bench[Any]], ...] = (
    StepBench,
    ScalingBench,
    StragglerBench,
    ExchangeBench,
    PredictBench,
    CoordinatorBench,
    WireBench,
    LocalStepsBench,
)


@click.group(short_help="Measure how fast Lockstep is.")
def bench() -> None:
    """Measure how fast Lockstep is on this machine.

    \b
      lockstep bench step --model linear,mlp,lenet,cnn
      lockstep bench scaling --help
      lockstep bench all --peer-python ~/torch/bin/python
    """


def command_of(kind: type[Bench[Any]]) -> click.Command:
    """Return the command of a bench: an option for each of its fields, and those for the rows."""

    def call(as_json: bool, rows_file: Path | None, plot_file: Path | None = None, **values: Any) -> None:
        if plot_file is not None:
            check_plot(kind, plot_file, values)
        run(kind(**values), as_json, rows_file, plot_file)

    path = click.Path(path_type=Path)
    options = [
        *(each.metadata["option"]((*each.metadata["flags"], each.name)) for each in kind.options()),
        click.Option(("--json", "as_json"), is_flag=True, help="print the rows as JSON"),
        click.Option(("--to", "rows_file"), type=path, metavar="FILE", help="write the rows to FILE, as JSON"),
    ]
    if kind.has_plot:
        text = "plot the rows as FILE, a .png"
        options.append(click.Option(("--plot", "plot_file"), type=path, metavar="FILE", help=text))
    return click.Command(kind.name, callback=call, params=options, help=kind.__doc__, short_help=kind.summary)


def check_plot(kind: type[Bench[Any]], file: Path, values: dict[str, Any]) -> None:
    """Raise `UsageError` if a plot could not be made at the end: before minutes are spent on measuring."""
    if file.suffix.lower() != ".png":
        raise UsageError(f"--plot {str(file)!r}: expected a name that ends in .png, the only format")
    demand("matplotlib", "plot", "--plot")
    if values.get("is_profiling"):
        raise UsageError("--plot with --profile, which has no plot: remove one")


def run(bench: Bench[Any], as_json: bool, rows_file: Path | None, plot_file: Path | None) -> None:
    """Measure, print each row as soon as it is known, and plot them. With JSON, nothing else is on standard output."""
    rows = list[msgspec.Struct]()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        session = BenchSession(Path(folder), Console(highlight=False, stderr=as_json))
        for row in bench.report(session):
            rows.append(row)
            if rows_file is not None:
                # Each time: an interrupt loses only the row that is being measured.
                write_atomically(rows_file, [json_of(rows), b"\n"])
        if advice := bench.advice(rows):
            session.say(advice)
    if as_json:
        click.echo(json_of(rows))
    if plot_file is not None:
        save_plot(bench, rows, plot_file)


def json_of(rows: Sequence[msgspec.Struct]) -> bytes:
    """Return rows as one JSON list."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=2)


def save_plot(bench: Bench[Any], rows: Sequence[msgspec.Struct], file: Path) -> None:
    """Plot rows as a PNG. Raises RunError if the file cannot be written."""
    # Imported here, since the extra may not be installed, and takes half a second to load.
    from lockstep.bench.plot import figure_of
    from lockstep.results.plots.style import save

    try:
        save(figure_of(bench.panels(rows)), file)
    except OSError as error:
        raise RunError(f"the plot {str(file)!r} could not be made: {type(error).__name__}: {error}") from None


for kind in BENCHES:
    bench.add_command(command_of(kind))
bench.add_command(all_parts)
bench.add_command(lone)
