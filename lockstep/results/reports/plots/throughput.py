"""Plot how fast runs are, and where the time of their steps goes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.results.reports.plots.curves import Floats, RunCurves, smoothed
from lockstep.results.reports.plots.learning import thinned
from lockstep.results.reports.plots.style import PARTS, PLAIN, colour, new_figure, tidy, whole_numbers

#: Windows over which a run is smoothed, and most runs whose time is split up.
SMOOTHED, MOST_DIVIDED = 60, 4


def throughput(runs: Sequence[RunCurves]) -> Figure:
    """Return samples per second of all runs, and below it the parts of a step, one panel per run."""
    split = runs[:MOST_DIVIDED]
    figure = new_figure(12.0, 3.4 + 2.6 * len(split))
    speed, *panels = figure.subplots(1 + len(split), 1, height_ratios=[3.4, *(2.6 for _ in split)])
    for place, run in enumerate(runs):
        speed.plot(*thinned(run.column("step"), _speed(run)), color=colour(place), label=run.name)
    tidy(speed, title="throughput", x="step", y="samples / s")
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(PLAIN)
    whole_numbers(speed)
    if len(runs) > 1:
        _legend_above(speed)
    for axes, run in zip(panels, split, strict=True):
        _plot_split(axes, run)
    return figure


def _legend_above(axes: Axes) -> None:
    """Put the legend next to the title of the panel, where there are no lines."""
    axes.set_title(axes.get_title(), loc="left")
    axes.set_title("")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize="small")


def _window(run: RunCurves) -> int:
    return max(1, len(run.steps) // SMOOTHED)


def _speed(run: RunCurves) -> Floats:
    """Return samples per second, from sums over a window, so that a slow step counts by its duration."""
    samples, seconds = (smoothed(run.column(field), _window(run)) for field in ("samples", "round_s"))
    return np.divide(samples, seconds, out=np.zeros_like(samples), where=seconds > 0)


def parts_of(run: RunCurves) -> dict[str, Floats]:
    """Return the four parts of each step in seconds; what is neither computing nor update is exchange."""
    whole, mean, slowest = (run.column(field) for field in ("round_s", "mean_s", "slowest_s"))
    update = run.column("update_s")
    # A step waits for the update of the step before.
    before = np.concatenate([[0.0], update[:-1]])
    return {
        "compute": mean,
        "exchange": np.maximum(0.0, whole - slowest - before),
        "update": before,
        "waiting": np.maximum(0.0, slowest - mean),
    }


def _plot_split(axes: Axes, run: RunCurves) -> None:
    steps = run.column("step")
    parts = {name: 1e3 * smoothed(values, _window(run)) for name, values in parts_of(run).items()}
    areas = [thinned(steps, values)[1] for values in parts.values()]
    axes.stackplot(thinned(steps, steps)[0], areas, labels=list(parts), colors=[PARTS[name] for name in parts])
    tidy(axes, title=f"time of a step, {run.name}", x="step", y="ms")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    _legend_above(axes)
