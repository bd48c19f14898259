"""`lockstep plot`: pictures of runs."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from common.errors import UsageError
from lockstep.launch.report import PICTURE
from lockstep.reports.display import print_plainly
from lockstep.reports.plots.curves import RunCurves, read_curves
from lockstep.runs.extras import demand
from ps.records.metrics import METRICS

#: Where pictures go that were given no folder: in the run's own, or, of several runs, here.
PLOTS = Path("plots")


@click.command(short_help="Draw pictures of runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", "to", type=click.Path(path_type=Path), metavar="DIR", help="folder for them  [RUN/plots]")
@click.option("--learning", "is_brief", is_flag=True, help="draw only the first of them")
@click.option("--tensorboard", "is_events", is_flag=True, help="write event files for TensorBoard instead")
def plot(runs: tuple[Path, ...], to: Path | None, is_brief: bool, is_events: bool) -> None:
    """Draw PNGs of the run in the folder RUN, or of several runs together.

    \b
    learning     loss, accuracy or R², learning rate
    throughput   samples a second, and where the time of a step goes
    timeline     who computed what, and when
    confusion    what is taken for what
    first_layer  the weights that see the samples
    mistakes     the samples that it is surest of, wrongly
    answers      of a regression instead: what it says over what is right

    Several runs share the first two. A run that is not finished is drawn as far as it has come. Pictures need the extra
    plot; event files need the extra tensorboard.

    \b
      lockstep plot runs/20261124-231714-lenet
      lockstep plot runs/* --to pictures
      lockstep plot runs/* --to events --tensorboard
    """
    folder = to or (runs[0] / "plots" if len(runs) == 1 else PLOTS)
    console = Console(highlight=False)
    if is_events:
        demand("tensorboardX", "tensorboard", "--tensorboard")
    else:
        demand("matplotlib", "plot", "lockstep plot")
    courses = _courses(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to the folder {str(folder)!r}: {error.strerror}") from None
    lines = _events if is_events else _learning if is_brief else _pictures
    for line in lines(runs, courses, folder):
        print_plainly(console, line)


def _courses(runs: tuple[Path, ...]) -> list[RunCurves]:
    courses = [read_curves(run) for run in runs]
    names = [course.name for course in courses]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs have the name {twice!r}: expected folders of different names")
    return courses


def _learning(runs: tuple[Path, ...], courses: list[RunCurves], folder: Path) -> Iterator[str]:
    # Here, as in `_pictures`; and without the test set, which the others need.
    from lockstep.reports.plots.learning import learning
    from lockstep.reports.plots.style import save

    save(learning(courses), folder / PICTURE)
    yield f"wrote {folder / PICTURE}"


def _pictures(runs: tuple[Path, ...], courses: list[RunCurves], folder: Path) -> Iterator[str]:
    # Here, as the extra may be missing if nobody draws; and it takes half a second to load.
    from lockstep.reports.plots.run_plots import Subject, plot_runs

    return plot_runs([Subject(run, course) for run, course in zip(runs, courses, strict=True)], folder)


def _events(runs: tuple[Path, ...], courses: list[RunCurves], folder: Path) -> Iterator[str]:
    # Here, as the extra may be missing if nobody writes event files.
    from lockstep.reports.plots.event_files import write_events

    for run, course in zip(runs, courses, strict=True):
        # The last line was written when the run ended, or just now.
        ended = (run / METRICS).stat().st_mtime
        lasted = max([float(course.seconds[-1]), *(epoch.wall_s for epoch in course.epochs)])
        write_events(course, folder / course.name, ended - lasted)
        yield f"wrote {folder / course.name}: show it by `tensorboard --logdir {folder}`"
