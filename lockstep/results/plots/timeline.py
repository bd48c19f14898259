"""Plot which worker computed what and when: its share over the run, and every lease of some steps in time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lockstep.results.plots.curves import ComputedShare, Floats, RunCurves, WorkerTimeline
from lockstep.results.plots.style import PARTS, colour, new_figure, tidy

#: Bins of steps over the whole run.
BINS = 160

#: Steps that are shown in time; most workers whose leases are labelled.
TIMED_STEPS, MOST_LABELLED_WORKERS = 6, 24

#: The share of the axis that a step takes at least if there is room for its name.
NAMED = 0.07

#: The colour of unused shares, and how their bars look.
UNUSED = "#D55E00"
NOT_USED: Mapping[str, Any] = {"color": "none", "edgecolor": UNUSED, "hatch": "////"}

#: The least share of the panel's width that has room for a label.
LABEL_WIDTH = 0.02

#: The row below the workers, in which the server updates the weights.
UPDATE = "update"


class TimedStep(msgspec.Struct, frozen=True):
    """A step, and when it took place, in seconds from the begin of the first one that is shown."""

    step: int
    began_s: float
    #: The last result came then.
    ended_s: float
    #: Seconds of the update at its begin; 0 if that came before an evaluation.
    update_s: float


def timeline(curves: RunCurves, workers: WorkerTimeline) -> Figure:
    """Return two panels: the whole run, and a few steps in time, which the ledger of a run in one process lacks."""
    steps, height = timed_steps(curves, workers), 1.2 + 0.32 * max(3, min(len(workers.names), 40))
    heights = [height, height + 0.6] if steps else [height]
    figure = new_figure(13.0, sum(heights) + 1.0)
    whole, *close = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _whole(whole, curves, workers)
    for axes in close:
        in_time(axes, steps, workers)
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
    known = curves.steps["step"] + 1
    if not curves.seconds[-1] > 0:
        return steps
    times: Floats = np.interp(steps, np.concatenate([[known[0] - 1], known]), np.concatenate([[0.0], curves.seconds]))
    return times


def label_workers(axes: Axes, workers: WorkerTimeline, below: Sequence[str] = ()) -> None:
    """Label the rows from top to bottom: the workers, only some if there are many, and other rows `below` them."""
    count = len(workers.names)
    places = [*range(0, count, max(1, count // 40)), *range(count, count + len(below))]
    axes.set_yticks(places, [[*workers.names, *below][place] for place in places], fontsize="small")
    axes.set_ylim(count + len(below) - 0.5, -0.5)


def shown_steps(steps: Sequence[int], unused: Sequence[ComputedShare], count: int) -> list[int]:
    """Return the steps to show: around the last with an unused share, or the last ones."""
    places = {step: place for place, step in enumerate(steps)}
    at = max((places[share.step] for share in unused if share.step in places), default=len(steps) - 1)
    first = max(0, min(len(steps), at + 1 + count // 3) - count)
    return list(steps[first : first + count])


# In time


def timed_steps(curves: RunCurves, workers: WorkerTimeline) -> list[TimedStep]:
    """Return the steps to show in time; none if the ledger has no times."""
    places = {step: place for place, step in enumerate(curves.steps["step"].astype(int).tolist())}
    rounds = curves.steps["round_s"]
    known = [step for step in sorted(workers.used) if step in places and all(map(_is_timed, workers.used[step]))]
    found, at_s = list[TimedStep](), 0.0
    for step in shown_steps(known, workers.unused, TIMED_STEPS):
        at = places[step]
        found.append(TimedStep(step, at_s, at_s + float(rounds[at]), curves.steps.update_before(at)))
        at_s += float(rounds[at])
    return found


def _is_timed(share: ComputedShare) -> bool:
    return share.ended_s is not None


def in_time(axes: Axes, steps: Sequence[TimedStep], workers: WorkerTimeline) -> None:
    """Draw steps as long as they lasted, with the shares of all workers."""
    end_s = steps[-1].ended_s
    for step in steps:
        unused = [share for share in workers.unused if share.step == step.step and _is_timed(share)]
        bars = list(bars_of([*workers.used[step.step], *unused]))
        for share, start_s, stop_s in bars:
            left, width = 1e3 * (step.began_s + start_s), 1e3 * (stop_s - start_s)
            _bar(axes, share, left, width, 1e3 * end_s, is_used=share not in unused)
        _plot_waiting(axes, step, bars, max(workers.used[step.step], key=lambda share: share.ended_s or 0.0))
        row = len(workers.names)
        axes.barh(row, 1e3 * step.update_s, left=1e3 * step.began_s, height=0.8, color=PARTS["update"])
        axes.axvline(1e3 * step.began_s, color="#888888", linewidth=0.8)
        place = 1e3 * (step.began_s + step.ended_s) / 2
        if step.ended_s - step.began_s > NAMED * end_s:
            named = f"step {step.step}"
            axes.annotate(named, (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    axes.axvline(1e3 * steps[-1].ended_s, color="#888888", linewidth=0.8)
    tidy(axes, title="leases in time: which micro-batches each worker computed, and when", x="milliseconds", y="worker")
    axes.set_title(axes.get_title(), pad=18)
    axes.grid(visible=False)
    axes.set_xlim(0, 1e3 * end_s)
    label_workers(axes, workers, [UPDATE])
    _legend(axes)


def bars_of(shares: Sequence[ComputedShare]) -> Iterator[tuple[ComputedShare, float, float]]:
    """Yield shares of one step, used or not, with the seconds at which their workers began and ended computing them.

    A worker is leased more than it computes at a time, so that it never waits: it begins with a lease once it is done
    with the one before. If the time of a lease is not known, the bar follows from that alone.
    """
    free_s: dict[int, float] = {}
    for share in sorted(shares, key=lambda share: share.ended_s or 0.0):
        assert share.ended_s is not None
        free = free_s.get(share.row, share.ended_s if share.began_s is None else 0.0)
        start_s = min(share.ended_s, max(share.began_s or 0.0, free))
        free_s[share.row] = share.ended_s
        yield share, start_s, share.ended_s


def _plot_waiting(
    axes: Axes, step: TimedStep, bars: Sequence[tuple[ComputedShare, float, float]], last: ComputedShare
) -> None:
    """Plot how long each worker waits for the last result of the step, and mark the worker that sent it."""
    end_s = last.ended_s or 0.0
    for row, stop_s in {share.row: stop_s for share, _, stop_s in bars}.items():
        left, width = 1e3 * (step.began_s + stop_s), 1e3 * max(0.0, end_s - stop_s)
        axes.barh(row, width, left=left, height=0.3, color=PARTS["waiting"])
    axes.plot([1e3 * (step.began_s + end_s)], [last.row], "<", color="black", markersize=6, clip_on=False)


def _bar(axes: Axes, share: ComputedShare, left: float, width: float, whole: float, *, is_used: bool = True) -> None:
    """Plot a share as a bar, with its micro-batches if there is room in a panel as wide as `whole`."""
    used: Mapping[str, Any] = {"color": colour(share.row), "edgecolor": "white", "linewidth": 0.5}
    axes.barh(share.row, width, left=left, height=0.8, **(used if is_used else NOT_USED))
    if width >= LABEL_WIDTH * whole and share.row < MOST_LABELLED_WORKERS:
        ink, box = ("white", None) if is_used else ("black", {"facecolor": "white", "edgecolor": "none", "pad": 1.0})
        place: Mapping[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "clip_on": True}
        axes.text(left + width / 2, share.row, share.named(), color=ink, bbox=box, **place)


def _legend(axes: Axes) -> None:
    """Add a legend below the panel, of all that may occur."""
    key = [
        Patch(facecolor="none", edgecolor=UNUSED, hatch="////", label="a copy that was not used"),
        Patch(color=PARTS["waiting"], label="waits for the last worker"),
        Line2D([], [], marker="<", color="black", linestyle="none", label="the last worker of the step"),
        Patch(color=PARTS["update"], label="update of the weights"),
    ]
    axes.legend(handles=key, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(key), frameon=False)
