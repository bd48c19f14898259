"""Plot which worker computed what and when: its share over the run, and every lease of some steps."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.results.reports.plots.curves import Floats, RunCurves
from lockstep.results.reports.plots.leases import UNUSED, label_workers, leases
from lockstep.results.reports.plots.style import new_figure, tidy
from lockstep.results.reports.plots.worker_timeline import WorkerTimeline

#: Bins of steps over the whole run.
BINS = 160


def timeline(curves: RunCurves, workers: WorkerTimeline) -> Figure:
    """Return two panels: the whole run, and a few steps in detail."""
    count = len(workers.names)
    height = 1.2 + 0.32 * max(3, min(count, 40))
    figure = new_figure(13.0, 2 * height + 1.6)
    whole, close = figure.subplots(2, 1, height_ratios=[height, height + 0.6])
    _whole(whole, curves, workers)
    leases(close, curves, workers)
    return figure


def _whole(axes: Axes, curves: RunCurves, workers: WorkerTimeline) -> None:
    shares, edges = workers.shares(BINS)
    seconds = _seconds_at(curves, edges)
    rows = np.arange(len(workers.names) + 1) - 0.5
    mesh = axes.pcolormesh(seconds, rows, 100 * shares, cmap="Blues", vmin=0, vmax=max(1.0, 100 * float(shares.max())))
    unused = [share for share in workers.unused if share.step in workers.used]
    if unused:
        times = _seconds_at(curves, np.array([share.step for share in unused], dtype=np.float64))
        axes.plot(times, [share.row for share in unused], "x", color=UNUSED, label="computed or begun, not used")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    tidy(axes, title="share of each worker in the micro-batches", x="seconds of training", y="worker")
    axes.grid(visible=False)
    label_workers(axes, workers)
    axes.figure.colorbar(mesh, ax=axes, label="%", pad=0.01)


def _seconds_at(curves: RunCurves, steps: Floats) -> Floats:
    """Return when steps began, in seconds of training; if times are unknown, steps count as one second each."""
    known = curves.column("step") + 1
    if not curves.seconds[-1] > 0:
        return steps
    times: Floats = np.interp(steps, np.concatenate([[known[0] - 1], known]), np.concatenate([[0.0], curves.seconds]))
    return times
