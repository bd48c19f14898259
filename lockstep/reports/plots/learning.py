"""Draws loss, accuracy or R², and learning rate over the steps, of one run or several."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.reports.plots.course import Floats, RunCurves, smoothed
from lockstep.reports.plots.style import colour, logarithmic, new_figure, tidy, whole_numbers

#: Parts that a run's steps are smoothed over, and points of a line that are drawn at most.
PARTS, POINTS = 100, 2000


def learning(courses: Sequence[RunCurves]) -> Figure:
    """Return three panels; training as a line, tests and validations as marks at the end of each epoch."""
    figure = new_figure(13.0, 4.2)
    figure.set_layout_engine("constrained", wspace=0.06)
    loss, score, rate = figure.subplots(1, 3)
    is_regression = all(course.is_regression for course in courses)
    scores = R2 if is_regression else ACCURACIES
    for place, course in enumerate(courses):
        # Runs of one job coincide to the bit: the wider line below is seen on both sides of the one above.
        look = Look(colour(place), 1.2 + 1.3 * min(3, len(courses) - 1 - place))
        _draw(loss, course, look, LOSSES)
        if course.is_regression == is_regression:
            _draw(score, course, look, scores)
        rate.plot(*thinned(course.column("step"), course.column("lr")), color=look.colour, linewidth=look.width)
    kinds = {"mean squared error" if course.is_regression else "cross-entropy" for course in courses}
    tidy(loss, title="loss", x="step", y=" or ".join(sorted(kinds)))
    logarithmic(loss.yaxis)
    name, unit = ("R²", "share of the variance") if is_regression else ("accuracy", "share that is right")
    tidy(score, title=name, x="step", y=unit)
    _focus(score, scores, courses)
    tidy(rate, title="learning rate", x="step", y="rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, score, rate):
        whole_numbers(axes)
    handles, names = loss.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    return figure


class Names(NamedTuple):
    """What one figure is called in the records of steps, of tests, and of validations."""

    of_step: str
    of_test: str
    #: Empty where a validation does not tell it.
    of_validation: str


LOSSES = Names("loss", "test_loss", "val_loss")
ACCURACIES = Names("accuracy", "test_accuracy", "val_accuracy")
R2 = Names("r2", "test_r2", "")


class Look(NamedTuple):
    """How one run's lines look."""

    colour: str
    #: In points.
    width: float


def _draw(axes: Axes, course: RunCurves, look: Look, names: Names) -> None:
    steps, values = course.column("step"), course.column(names.of_step)
    line = smoothed(values, max(1, len(values) // PARTS))
    axes.plot(*thinned(steps, line), color=look.colour, linewidth=look.width, label=f"{course.name}: training")
    for name, kind, mark in ((names.of_test, "test", "o--"), (names.of_validation, "validation", "s:")):
        ended = [epoch for epoch in course.epochs if epoch.epoch in course.ends]
        ended = [epoch for epoch in ended if name and getattr(epoch, name) is not None]
        if ended:
            places, figures = [course.ends[epoch.epoch] for epoch in ended], [getattr(epoch, name) for epoch in ended]
            size, label = 5 + look.width, f"{course.name}: {kind}"
            axes.plot(places, figures, mark, color=look.colour, linewidth=0.8, markersize=size, label=label)


def _focus(axes: Axes, names: Names, courses: Sequence[RunCurves]) -> None:
    """Leave out of sight the first steps, which only guess: what matters lies in the last few percent."""
    shown = [course for course in courses if getattr(course.steps[0], names.of_step) is not None]
    later = [smoothed(course.column(names.of_step), max(1, len(course.steps) // PARTS)) for course in shown]
    tests: list[float] = [getattr(epoch, names.of_test) for course in shown for epoch in course.epochs]
    lows = [float(np.quantile(values, 0.1)) for values in later] + tests
    highest = max(tests + [float(values.max()) for values in later])
    bottom = max(0.0, min(lows) - 0.02)
    # Neither ever exceeds 1, and is often so near that an even margin would be all one sees.
    axes.set_ylim(bottom=bottom, top=min(1.002, highest + 0.05 * (highest - bottom)) if highest > bottom else 1.002)


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return so many points, evenly spaced, that a line looks the same."""
    every = max(1, len(x) // POINTS)
    return x[::every], y[::every]
