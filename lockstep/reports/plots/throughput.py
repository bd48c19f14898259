"""Draws how fast runs are, and where the time of their steps goes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.reports.plots.course import Floats, RunCurves, smoothed
from lockstep.reports.plots.learning import thinned
from lockstep.reports.plots.style import PARTS, PLAIN, colour, new_figure, tidy, whole_numbers

#: Parts that a run's steps are smoothed over, and runs whose time is divided up.
SMOOTHED, MOST_DIVIDED = 60, 4


def throughput(courses: Sequence[RunCurves]) -> Figure:
    """Return samples a second of all runs, and below it the parts of a step, a panel for each run."""
    divided = courses[:MOST_DIVIDED]
    figure = new_figure(12.0, 3.4 + 2.6 * len(divided))
    speed, *panels = figure.subplots(1 + len(divided), 1, height_ratios=[3.4, *(2.6 for _ in divided)])
    for place, course in enumerate(courses):
        speed.plot(*thinned(course.column("step"), _speed(course)), color=colour(place), label=course.name)
    tidy(speed, title="throughput", x="step", y="samples / s")
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(PLAIN)
    whole_numbers(speed)
    if len(courses) > 1:
        _legend_above(speed)
    for axes, course in zip(panels, divided, strict=True):
        _divide(axes, course)
    return figure


def _legend_above(axes: Axes) -> None:
    """Name the lines beside the panel's title, where none of them runs."""
    axes.set_title(axes.get_title(), loc="left")
    axes.set_title("")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize="small")


def _window(course: RunCurves) -> int:
    return max(1, len(course.steps) // SMOOTHED)


def _speed(course: RunCurves) -> Floats:
    """Return samples a second: of sums over a window, so that one slow step counts as long as it took."""
    samples, seconds = (smoothed(course.column(field), _window(course)) for field in ("samples", "round_s"))
    return np.divide(samples, seconds, out=np.zeros_like(samples), where=seconds > 0)


def parts_of(course: RunCurves) -> dict[str, Floats]:
    """Return the four parts of each step, in seconds: what is neither computed nor updated is exchange."""
    whole, mean, slowest = (course.column(field) for field in ("round_s", "mean_s", "slowest_s"))
    update = course.column("update_s")
    # A step waits for the update of the one before.
    before = np.concatenate([[0.0], update[:-1]])
    return {
        "compute": mean,
        "exchange": np.maximum(0.0, whole - slowest - before),
        "update": before,
        "waiting": np.maximum(0.0, slowest - mean),
    }


def _divide(axes: Axes, course: RunCurves) -> None:
    steps = course.column("step")
    parts = {name: 1e3 * smoothed(values, _window(course)) for name, values in parts_of(course).items()}
    drawn = [thinned(steps, values)[1] for values in parts.values()]
    axes.stackplot(thinned(steps, steps)[0], drawn, labels=list(parts), colors=[PARTS[name] for name in parts])
    tidy(axes, title=f"time of a step, {course.name}", x="step", y="ms")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    _legend_above(axes)
