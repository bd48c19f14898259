"""The style of plots: colours, axes, and how a figure becomes a file. Knows nothing of runs."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

from lockstep.common.files.atomic import write_atomically

#: The colours by Okabe and Ito without yellow, which people with a colour vision deficiency can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

#: The parts of a step, as in the benches.
PARTS = {"compute": "#0072B2", "exchange": "#E69F00", "update": "#009E73", "waiting": "#BBBBBB"}

PLAIN = StrMethodFormatter("{x:,.0f}")

#: Dots per inch.
RESOLUTION = 120


def colour(place: int) -> str:
    """Return the colour of the run or worker at that place."""
    return COLOURS[place % len(COLOURS)]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches; without pyplot, so that nothing is global."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Give axes their texts, a faint grid, and no frame at the top and right."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: Axes) -> None:
    """Show steps as whole numbers, with commas."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(PLAIN)


class PlainLogFormatter(LogFormatter):
    """Labels the places that its base class chooses, as 0.6 and not as 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a place, empty without one."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axis: XAxis | YAxis) -> None:
    """Use a logarithmic scale with plain numbers, since `save` does not render formulas."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(PlainLogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def save(figure: Figure, path: Path, source: str = "") -> None:
    """Write a figure as a PNG, with a text that tells what it shows and that no one sees.

    All text is plain, since a run or a host may be called `$x_{`.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    image = io.BytesIO()
    figure.savefig(image, dpi=RESOLUTION, format="png", metadata={"Source": source} if source else None)
    write_atomically(path, [image.getvalue()])
