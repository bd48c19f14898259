"""Plot what training shows over its steps: loss, accuracy or R², learning rate, speed, and where the time goes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lockstep.results.plots.curves import Floats, RunCurves, parts_of, smoothed
from lockstep.results.plots.style import (
    COLOURS,
    PARTS,
    PLAIN,
    colour,
    logarithmic,
    new_figure,
    tidy,
    whole_numbers,
)

#: Windows over which a run is smoothed, and most points of a line.
WINDOWS, POINTS = 100, 2000


def learning(runs: Sequence[RunCurves]) -> Figure:
    """Return panels of loss, score if a run has one, and rate.

    Training is a line, and evaluations are markers at the end of each epoch.
    """
    scored = [run for run in runs if run.has_score]
    panels = 3 if scored else 2
    figure = new_figure(4.33 * panels, 4.2)
    figure.set_layout_engine("constrained", wspace=0.06)
    loss, *scores, rate = figure.subplots(1, panels)
    for place, run in enumerate(runs):
        # Runs of one job coincide to the bit: a wider line below is visible on both sides of the one above.
        width = 1.2 + 1.3 * min(3, len(runs) - 1 - place)
        _plot(loss, run, "loss", colour(place), width)
        if run.has_score:
            _plot(scores[0], run, _score_of(run), colour(place), width)
        rate.plot(*thinned(run.steps["step"], run.steps["lr"]), color=colour(place), linewidth=width)
    tidy(loss, title="loss", x="step", y=_either(_loss_name(run) for run in runs))
    logarithmic(loss.yaxis)
    for score in scores:
        title = _either("R²" if run.is_regression else "accuracy" for run in scored)
        unit = _either("the variance" if run.is_regression else "correct samples" for run in scored)
        tidy(score, title=title, x="step", y=f"share of {unit}")
        _focus(score, scored)
    tidy(rate, title="learning rate", x="step", y="rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, *scores, rate):
        whole_numbers(axes)
    handles, names = loss.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    return figure


def _either(names: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(names))


#: Longer names of losses on an axis; others have that of the job, or of their function.
LOSS_NAMES = {"mse": "mean squared error", "l1": "mean absolute error", "bce": "binary cross-entropy", "": "loss"}


def _loss_name(run: RunCurves) -> str:
    return LOSS_NAMES.get(run.loss, run.loss.rpartition(":")[2])


def _score_of(run: RunCurves) -> str:
    return "r2" if run.is_regression else "accuracy"


def _plot(axes: Axes, run: RunCurves, name: str, colour: str, width: float) -> None:
    """Plot one figure of a run, its training as a line of that width in points."""
    steps, values, ends = run.steps["step"], run.steps[name], run.ends
    line = smoothed(values, max(1, len(values) // WINDOWS))
    axes.plot(*thinned(steps, line), color=colour, linewidth=width, label=f"{run.name}: training")
    for part, kind, marker in (("test", "test", "o--"), ("val", "validation", "s:")):
        found = [(ends.get(epoch.epoch), getattr(epoch, f"{part}_{name}")) for epoch in run.epochs]
        ended = [(place, figure) for place, figure in found if place is not None and figure is not None]
        if ended:
            size, label = 5 + width, f"{run.name}: {kind}"
            axes.plot(*zip(*ended, strict=True), marker, color=colour, linewidth=0.8, markersize=size, label=label)


def _focus(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """Leave out the first steps, in which the model only guesses: what matters is in the last few percent."""
    later = [smoothed(run.steps[_score_of(run)], max(1, run.steps.count // WINDOWS)) for run in runs]
    tests: list[float] = [getattr(epoch, f"test_{_score_of(run)}") for run in runs for epoch in run.epochs]
    lows = [float(np.quantile(values, 0.1)) for values in later] + tests
    highest = max(tests + [float(values.max()) for values in later])
    ends = [float(values[-1]) for values in later]
    ends += [getattr(run.epochs[-1], f"test_{_score_of(run)}") for run in runs if run.epochs]
    # Below 0 only what a run ends with is in sight: the R² of a first epoch may be far below.
    margin = max(0.02, 0.05 * (highest - min(lows)))
    bottom = max(min(0.0, min(ends) - margin) if min(ends) < 0.0 else 0.0, min(lows) - margin)
    # Neither exceeds 1, and both are often so near it that an even margin would take all the space.
    axes.set_ylim(bottom=bottom, top=min(1.002, highest + 0.05 * (highest - bottom)) if highest > bottom else 1.002)


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return so many points, evenly spaced, that a line looks the same."""
    every = max(1, len(x) // POINTS)
    return x[::every], y[::every]


#: Windows over which the speed is smoothed, and most runs whose time is split up.
SMOOTHED, MOST_DIVIDED = 60, 4


def throughput(runs: Sequence[RunCurves]) -> Figure:
    """Return samples per second of all runs, and below it the parts of a step, one panel per run."""
    split = runs[:MOST_DIVIDED]
    figure = new_figure(12.0, 3.4 + 2.6 * len(split))
    speed, *panels = figure.subplots(1 + len(split), 1, height_ratios=[3.4, *(2.6 for _ in split)])
    for place, run in enumerate(runs):
        speed.plot(*thinned(run.steps["step"], _speed(run)), color=colour(place), label=run.name)
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
    return max(1, run.steps.count // SMOOTHED)


def _speed(run: RunCurves) -> Floats:
    """Return samples per second, from sums over a window, so that a slow step counts by its duration."""
    samples, seconds = (smoothed(run.steps[field], _window(run)) for field in ("samples", "round_s"))
    return np.divide(samples, seconds, out=np.zeros_like(samples), where=seconds > 0)


def _plot_split(axes: Axes, run: RunCurves) -> None:
    steps = run.steps["step"]
    parts = {name: 1e3 * smoothed(values, _window(run)) for name, values in parts_of(run.steps).items()}
    areas = [thinned(steps, values)[1] for values in parts.values()]
    axes.stackplot(thinned(steps, steps)[0], areas, labels=list(parts), colors=[PARTS[name] for name in parts])
    tidy(axes, title=f"time of a step, {run.name}", x="step", y="ms")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    _legend_above(axes)


def rates_figure(
    rates: NDArray[np.float64], losses: NDArray[np.float64], smoothed: NDArray[np.float64], markers: Mapping[str, float]
) -> Figure:
    """Plot the losses of a range test, (steps,), the same smoothed, and named rates as vertical lines."""
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=COLOURS[0], alpha=0.35, linewidth=1.0, label="loss of the batch")
    axes.plot(rates, smoothed, color=COLOURS[0], linewidth=2.0, label="smoothed")
    for place, (name, rate) in enumerate(markers.items(), 1):
        axes.axvline(rate, color=COLOURS[place], linestyle="--", linewidth=1.4, label=f"{name}  {rate:.2g}")
    logarithmic(axes.xaxis)
    # The losses after the minimum would dwarf everything of interest.
    axes.set_ylim(0.0, 1.3 * float(losses[: int(smoothed.argmin()) + 1].max()))
    tidy(axes, title="learning-rate range test", x="learning rate", y="training loss")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return figure
