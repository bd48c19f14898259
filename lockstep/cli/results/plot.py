"""`lockstep plot`: plots of runs, or their curves as event files of TensorBoard."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from lockstep.cli.options.completion import RunPath, as_given
from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import training_data_of
from lockstep.cli.options.run import TRAINING_DATA_OPTION
from lockstep.common.errors import UsageError
from lockstep.launch.run_end import PICTURE
from lockstep.ps.records.metrics import METRICS
from lockstep.results.display import print_plainly
from lockstep.results.plots.curves import RunCurves, read_curves, write_events
from lockstep.runs.own_command import demand, with_own_commands

#: The default folder for plots of several runs, and with a folder in it for each file of a run. Those of a single run
#: go into its own folder.
PLOTS = Path("plots")


@click.command(short_help="Plot runs as PNG files.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=RunPath())
@click.option(
    "--to",
    "to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="folder to write to  [RUN/plots; plots for several runs; plots/NAME for NAME.zip]",
)
@click.option("--learning", "is_brief", is_flag=True, help="plot only loss, accuracy and learning rate")
@click.option("--tensorboard", "is_events", is_flag=True, help="write event files for TensorBoard instead of plots")
@TRAINING_DATA_OPTION
@takes_trust
def plot(runs: tuple[Path, ...], to: Path | None, is_brief: bool, is_events: bool, training_data: str | None) -> None:
    """Plot the run in the folder RUN, or compare several runs, as PNG files.

    \b
    learning     loss, accuracy or R², and learning rate
    throughput   samples per second, and where the time of a step goes
    timeline     which worker computed what, and when
    confusion    the confusion matrix
    first_layer  the weights of the first layer
    mistakes     the most confident mistakes
    answers      for a regression, instead of the last three: outputs over targets

    For several runs, the first two plots show all of them. A run that has not finished is plotted as far as it is.
    Plots need the extra plot, and event files need the extra tensorboard.

    \b
      lockstep plot runs/20261124-231714-lenet
      lockstep plot runs/* --to plots
      lockstep plot runs/* --to events --tensorboard
    """
    folder = to or _folder_of(runs)
    console = Console(highlight=False)
    if is_events:
        demand("tensorboardX", "tensorboard", "--tensorboard")
    else:
        demand("matplotlib", "plot", "lockstep plot")
    curves = _curves_of(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to the folder {str(folder)!r}: {error.strerror}") from None
    plots = partial(_plots, training_data=training_data)
    lines = _events if is_events else _learning if is_brief else plots
    for line in lines(runs, curves, folder):
        print_plainly(console, with_own_commands(as_given(line)))


def _folder_of(runs: tuple[Path, ...]) -> Path:
    if len(runs) > 1:
        return PLOTS
    # A file is unpacked into the cache, where a person does not look for plots.
    return runs[0] / "plots" if as_given(str(runs[0])) == str(runs[0]) else PLOTS / _name_of(runs[0])


def _name_of(run: Path) -> str:
    """Return the name of a run's folder, or of the file that it was unpacked from."""
    given = Path(as_given(str(run)))
    return given.stem if given.is_file() else run.resolve().name


def _curves_of(runs: tuple[Path, ...]) -> list[RunCurves]:
    curves = [read_curves(run, _name_of(run)) for run in runs]
    names = [each.name for each in curves]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs have the name {twice!r}: expected folders or files with different names")
    return curves


def _learning(runs: tuple[Path, ...], curves: list[RunCurves], folder: Path) -> Iterator[str]:
    # Imported here as in `_plots`, and without the test set, which the others need.
    from lockstep.results.plots.style import save
    from lockstep.results.plots.training import learning

    save(learning(curves), folder / PICTURE)
    yield f"wrote {folder / PICTURE}"


def _plots(runs: tuple[Path, ...], curves: list[RunCurves], folder: Path, training_data: str | None) -> Iterator[str]:
    # Imported here, since the extra may not be installed, and takes half a second to load.
    from lockstep.results.plots.results import Subject, plot_runs

    places = [training_data_of(run, training_data) for run in runs]
    subjects = [Subject(run, each, place) for run, each, place in zip(runs, curves, places, strict=True)]
    return plot_runs(subjects, folder)


def _events(runs: tuple[Path, ...], curves: list[RunCurves], folder: Path) -> Iterator[str]:
    for run, each in zip(runs, curves, strict=True):
        # The last line was written when the run ended, or just now.
        ended = (run / METRICS).stat().st_mtime
        duration_s = max([float(each.seconds[-1]), *(epoch.wall_s for epoch in each.epochs)])
        write_events(each, folder / each.name, ended - duration_s)
        yield f"wrote {folder / each.name}: show it with `tensorboard --logdir {folder}`"
