"""Draw the panels of a bench. Imported only when a plot is wanted: matplotlib is an extra, and takes half a second."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from lockstep.bench.bench import Panel, Series
from lockstep.results.plots.style import PARTS, logarithmic, new_figure

#: The colours that benches name: the parts of a step, and the compared programs.
COLOURS = {**PARTS, "ours": PARTS["compute"], "torch": "#D55E00", "ceiling": "#000000", "model": "#555555"}

#: Inches of a bar, of a panel without its bars, of a panel of curves, and of the width of the figure.
BAR, FRAME, CURVES, WIDTH = 0.34, 1.3, 5.0, 12.0

#: Numbers with commas.
TICKS = StrMethodFormatter("{x:,.10g}")

#: Characters of the names in a line of the legend.
LEGEND = 100


def figure_of(panels: Sequence[Sequence[Panel]]) -> Figure:
    """Return a figure of rows of panels."""
    heights = [height_of(row[0]) for row in panels]
    figure = new_figure(WIDTH, sum(heights) + 0.5)
    grid = figure.subplots(
        len(panels),
        len(panels[0]),
        squeeze=False,
        height_ratios=heights,
        width_ratios=[panel.width for panel in panels[0]],
    )
    for axes, panel in zip(grid.flat, (panel for row in panels for panel in row), strict=True):
        (bars if panel.names else curves)(axes, panel)
    if panels[0][0].names:
        legend(figure, panels)
    return figure


def height_of(panel: Panel) -> float:
    """Return the inches of a panel."""
    bars = len(panel.names) * (len(panel.series) if panel.is_grouped else 1)
    return bars * BAR + FRAME if panel.names else CURVES


def bars(axes: Axes, panel: Panel) -> None:
    """Draw horizontal bars, markers, and a text at the end of each bar."""
    stacks = [series for series in panel.series if series.shape == "bar"]
    height, ends = 0.8 / len(stacks) if panel.is_grouped else 0.8, np.zeros(len(panel.names))
    for number, series in enumerate(stacks):
        places, widths = np.arange(len(panel.names), dtype=np.float64), numbers(series)
        if panel.is_grouped:
            places, lefts = places + height * (number - (len(stacks) - 1) / 2), np.zeros(len(widths))
        else:
            lefts = ends
        axes.barh(places, widths, height, lefts, color=COLOURS[series.colour], label=series.name)
        ends = np.maximum(ends, lefts + widths)
    least = min(width for series in stacks for width in numbers(series) if width)
    for series in panel.series:
        if series.shape != "bar":
            mark(axes, series)
            ends = np.maximum(ends, numbers(series))
    for at, text in enumerate(panel.texts):
        axes.annotate(text, (ends[at], at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(title=panel.title, xlabel=panel.unit)
    axes.set_yticks(range(len(panel.names)), panel.names)
    axes.invert_yaxis()
    if panel.is_log:
        logarithmic(axes.xaxis)
    else:
        axes.locator_params(axis="x", nbins=6)  # more numbers of six digits would overlap
    axes.xaxis.set_major_formatter(TICKS)
    axes.set_xlim(left=least / 2 if panel.is_log else 0, right=axes.get_xlim()[1] * (panel.end or 1.0))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def numbers(series: Series) -> npt.NDArray[np.float64]:
    """Return the values, with zeros for those that are missing."""
    return np.array([value or 0.0 for value in series.values])


def mark(axes: Axes, series: Series) -> None:
    """Draw a marker for each bar that has one, or an upright line."""
    color = COLOURS[series.colour]
    points = [(value, at) for at, value in enumerate(series.values) if value is not None]
    if points and series.shape == "-":
        axes.axvline(points[0][0], color=color, linewidth=1.2, label=series.name)
    elif points:
        size, width = (260, 2) if series.shape == "|" else (40, 1)
        values, places = zip(*points, strict=True)
        axes.scatter(values, places, size, color, marker=series.shape, linewidths=width, label=series.name, zorder=3)


def curves(axes: Axes, panel: Panel) -> None:
    """Draw curves over the number of workers, with a legend below."""
    for series in panel.series:
        color = COLOURS[series.colour]
        if series.shape == "-":
            axes.axvline(series.values[0] or 0.0, color=color, linestyle=":", label=series.name)
        else:
            axes.plot(series.at, numbers(series), series.shape, markersize=4, color=color, label=series.name)
    axes.set_title(panel.title, fontsize=11)
    axes.set(ylabel=panel.unit, xlabel=panel.along)
    plain_logarithmic(axes.xaxis, LogLocator(base=2, numticks=12))
    if panel.is_log:
        plain_logarithmic(axes.yaxis, LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        axes.set_ylim(0, panel.end)
        axes.yaxis.set_major_formatter(TICKS)
    axes.grid(alpha=0.3)
    if any(series.name for series in panel.series):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def plain_logarithmic(axis: XAxis | YAxis, places: LogLocator) -> None:
    """Use a logarithmic scale with whole numbers at these places, and none between them."""
    logarithmic(axis)
    axis.set_major_locator(places)
    axis.set_major_formatter(TICKS)
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, panels: Sequence[Sequence[Panel]]) -> None:
    """Add one legend for all panels above them, in the order of their series."""
    drawn = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in drawn}
    series = (each.name for row in panels for panel in row for each in panel.series)
    names = [name for name in dict.fromkeys(series) if name in handles]
    columns = len(names) if sum(map(len, names)) < LEGEND else 3
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=columns, frameon=False)
