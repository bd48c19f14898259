"""Draws who computed what and when: each worker's part over the run, and every lease of some steps."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.reports.plots.attendance import Attendance, Given
from lockstep.reports.plots.course import Floats, RunCurves
from lockstep.reports.plots.style import colour, new_figure, tidy, whole_numbers

#: Runs of steps that are told apart over the whole run; steps, and workers, that are shown lease by lease.
BINS, CLOSE_STEPS, MOST_CLOSE_WORKERS = 160, 12, 24

#: Of what was computed in vain.
VAIN = "#D55E00"


def timeline(course: RunCurves, attendance: Attendance) -> Figure:
    """Return two panels: the whole run, and a few steps closely."""
    workers = len(attendance.names)
    height = 1.2 + 0.32 * max(3, min(workers, 40))
    figure = new_figure(13.0, 2 * height + 1.0)
    whole, close = figure.subplots(2, 1)
    _whole(whole, course, attendance)
    _close(close, attendance)
    return figure


def _whole(axes: Axes, course: RunCurves, attendance: Attendance) -> None:
    shares, edges = attendance.shares(BINS)
    seconds = _seconds_at(course, edges)
    rows = np.arange(len(attendance.names) + 1) - 0.5
    mesh = axes.pcolormesh(seconds, rows, 100 * shares, cmap="Blues", vmin=0, vmax=max(1.0, 100 * float(shares.max())))
    vain = [given for given in attendance.vain if given.step in attendance.used]
    if vain:
        times = _seconds_at(course, np.array([given.step for given in vain], dtype=np.float64))
        axes.plot(times, [given.row for given in vain], "x", color=VAIN, label="computed or begun in vain")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    tidy(axes, title="each worker's part of the micro-batches", x="seconds of training", y="worker")
    axes.grid(visible=False)
    _name_rows(axes, attendance)
    axes.figure.colorbar(mesh, ax=axes, label="%", pad=0.01)


def _seconds_at(course: RunCurves, steps: Floats) -> Floats:
    """Return when steps began, in seconds of training; steps that no time is known of count as one second each."""
    known = course.column("step") + 1
    if not course.seconds[-1] > 0:
        return steps
    times: Floats = np.interp(steps, np.concatenate([[known[0] - 1], known]), np.concatenate([[0.0], course.seconds]))
    return times


def close_steps(attendance: Attendance) -> list[int]:
    """Return the steps that are shown closely: around the first that something of was in vain, or in the middle."""
    steps = sorted(attendance.used)
    vain = [given.step for given in attendance.vain if given.step in attendance.used]
    at = steps.index(min(vain)) if vain else len(steps) // 2
    first = max(0, min(at - CLOSE_STEPS // 3, len(steps) - CLOSE_STEPS))
    return steps[first : first + CLOSE_STEPS]


def _close(axes: Axes, attendance: Attendance) -> None:
    steps = close_steps(attendance)
    shown = set(steps)
    for step in steps:
        for given in attendance.used[step]:
            _lease(axes, given, attendance.micro_batches, is_used=True)
    for given in attendance.vain:
        if given.step in shown:
            _lease(axes, given, attendance.micro_batches, is_used=False)
    for step in (*steps, steps[-1] + 1):
        axes.axvline(step, color="#888888", linewidth=0.8)
    tidy(axes, title="leases: which micro-batches of a step each worker computed", x="step", y="worker")
    axes.grid(visible=False)
    axes.set_xlim(steps[0], steps[-1] + 1)
    _name_rows(axes, attendance)
    whole_numbers(axes)


def _lease(axes: Axes, given: Given, micro_batches: int, *, is_used: bool) -> None:
    """Draw micro-batches as a bar in its worker's row, at their place within the step."""
    left, width = given.step + given.lo / micro_batches, (given.hi - given.lo) / micro_batches
    if is_used:
        axes.barh(given.row, width, left=left, height=0.8, linewidth=0.5, color=colour(given.row), edgecolor="white")
    else:
        axes.barh(given.row, width, left=left, height=0.8, color="none", edgecolor=VAIN, hatch="////")
    if is_used and width * 8 >= 1 and given.row < MOST_CLOSE_WORKERS:
        text = str(given.lo) if given.hi == given.lo + 1 else f"{given.lo}-{given.hi - 1}"
        axes.text(left + width / 2, given.row, text, ha="center", va="center", fontsize=6.5, color="white")


def _name_rows(axes: Axes, attendance: Attendance) -> None:
    """Name the workers, from top to bottom; only some where there are many."""
    count = len(attendance.names)
    places = range(0, count, max(1, count // 40))
    axes.set_yticks(list(places), [attendance.names[place] for place in places], fontsize="small")
    axes.set_ylim(count - 0.5, -0.5)
