"""The picture of a range test: losses over learning rates."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lockstep.reports.plots.style import COLOURS, logarithmic, new_figure, tidy


def rates_figure(
    rates: NDArray[np.float64], losses: NDArray[np.float64], smoothed: NDArray[np.float64], marks: Mapping[str, float]
) -> Figure:
    """Return the losses of a range test, as they were and smoothed, (steps,) each, and named rates as lines."""
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=COLOURS[0], alpha=0.35, linewidth=1.0, label="loss of the batch")
    axes.plot(rates, smoothed, color=COLOURS[0], linewidth=2.0, label="smoothed")
    for place, (name, rate) in enumerate(marks.items(), 1):
        axes.axvline(rate, color=COLOURS[place], linestyle="--", linewidth=1.4, label=f"{name}  {rate:.2g}")
    logarithmic(axes.xaxis)
    # What comes after the minimum would press all that is of interest to the ground.
    axes.set_ylim(0.0, 1.3 * float(losses[: int(smoothed.argmin()) + 1].max()))
    tidy(axes, title="learning-rate range test", x="learning rate", y="training loss")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return figure
