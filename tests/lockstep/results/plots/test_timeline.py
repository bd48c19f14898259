"""Leases in time: when workers computed what, who was waited for, and which steps are shown."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lockstep.ps.records.ledger import UnusedWork
from lockstep.results.plots.curves import ComputedShare, read_curves, read_timeline
from lockstep.results.plots.style import PARTS, colour
from lockstep.results.plots.timeline import (
    UNUSED,
    TimedStep,
    bars_of,
    in_time,
    shown_steps,
    timed_steps,
)
from tests.lockstep.results.plots.records import LEDGER, TIMED_LEDGER, write_ledger, write_steps


def bars_in(axes: Axes, *, face: str = "", edge: str = "") -> list[tuple[int, int, int]]:
    """Return begin, end and row of the bars of that colour, in whole milliseconds."""
    return [
        (round(bar.get_x()), round(bar.get_x() + bar.get_width()), round(bar.get_y() + bar.get_height() / 2))
        for bar in axes.patches
        if isinstance(bar, Rectangle)
        and (not face or to_hex(bar.get_facecolor()) == face.lower())
        and (not edge or to_hex(bar.get_edgecolor()) == edge.lower())
    ]


def marks_in(axes: Axes) -> list[tuple[float, float]]:
    """Return time and row of the marks at those who were waited for."""
    marked = [line for line in axes.get_lines() if line.get_marker() == "<"]
    return [(float(x), float(y)) for line in marked for x, y in np.asarray(line.get_xydata())]


def test_leases_are_drawn_in_time(tmp_path: Path) -> None:
    write_steps(tmp_path, range(5))
    write_ledger(tmp_path, TIMED_LEDGER)
    axes = Figure().subplots()
    workers = read_timeline(tmp_path)
    in_time(axes, timed_steps(read_curves(tmp_path), workers), workers)
    # Each step lasts for half a second, and the second worker begins and ends as the ledger says.
    assert bars_in(axes, face=colour(1)) == [(500 * step + 100, 500 * step + 500, 1) for step in range(4)]
    # The first worker began with its second lease when it was done with the first one.
    assert bars_in(axes, face=colour(0))[-2:] == [(2100, 2300, 0), (2300, 2500, 0)]
    assert bars_in(axes, edge=UNUSED) == [(2120, 2500, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0: here, pid 11", "1: there, pid 22", "update"]
    labels = [text.get_text() for text in axes.texts]
    assert labels[:3] == ["0-1", "2", "step 0"]
    assert axes.get_xlim() == (0, 2500)


def test_steps_without_room_for_a_name_have_none(tmp_path: Path) -> None:
    steps = [TimedStep(0, 0.0, 0.01, 0.0), TimedStep(1, 0.01, 0.02, 0.0), TimedStep(2, 0.02, 0.5, 0.0)]
    write_steps(tmp_path, range(5))
    write_ledger(tmp_path, TIMED_LEDGER)
    axes = Figure().subplots()
    in_time(axes, steps, read_timeline(tmp_path))
    assert [text.get_text() for text in axes.texts if text.get_text().startswith("step")] == ["step 2"]


def test_who_was_waited_for_is_marked(tmp_path: Path) -> None:
    write_steps(tmp_path, range(5))
    write_ledger(tmp_path, TIMED_LEDGER)
    axes = Figure().subplots()
    workers = read_timeline(tmp_path)
    in_time(axes, timed_steps(read_curves(tmp_path), workers), workers)
    waiting = [bar for bar in bars_in(axes, face=PARTS["waiting"]) if bar[0] < bar[1]]
    assert waiting == [(500 * step + 400, 500 * step + 500, 0) for step in range(4)]
    assert marks_in(axes) == [(500.0, 1), (1000.0, 1), (1500.0, 1), (2000.0, 1), (2500.0, 0)]


def test_a_copy_that_was_not_used_is_drawn_after_what_its_worker_computed_before(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1))
    unused = UnusedWork(work="train", step=0, lo=2, hi=3, rank=0, why="others had done it", began_s=0.1, ended_s=0.52)
    write_ledger(tmp_path, [*TIMED_LEDGER[:3], unused, TIMED_LEDGER[3]])
    axes = Figure().subplots()
    workers = read_timeline(tmp_path)
    in_time(axes, timed_steps(read_curves(tmp_path), workers), workers)
    assert bars_in(axes, face=colour(0)) == [(100, 400, 0)]
    assert bars_in(axes, edge=UNUSED) == [(400, 520, 0)]
    # Its worker did not wait, and the other one was waited for.
    assert [bar for bar in bars_in(axes, face=PARTS["waiting"]) if bar[0] < bar[1]] == []
    assert marks_in(axes) == [(500.0, 1)]


def test_the_update_is_in_the_round_after_its_step_within_an_epoch(tmp_path: Path) -> None:
    write_steps(tmp_path, range(5))
    write_ledger(tmp_path, TIMED_LEDGER)
    steps = timed_steps(read_curves(tmp_path), read_timeline(tmp_path))
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]
    # Of the fourth step it came before the evaluation.
    assert [step.update_s for step in steps] == [0.0, 0.1, 0.1, 0.1, 0.0]
    assert [(step.began_s, step.ended_s) for step in steps] == [(0.5 * at, 0.5 * at + 0.5) for at in range(5)]


def test_an_older_ledger_has_no_steps_to_show_in_time(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    write_ledger(tmp_path, LEDGER)
    assert timed_steps(read_curves(tmp_path), read_timeline(tmp_path)) == []


def test_a_worker_computes_its_leases_one_after_the_other() -> None:
    first, second = ComputedShare(0, 0, 2, 0, 0.0, 0.2), ComputedShare(0, 2, 4, 0, 0.0, 0.5)
    other, unknown = ComputedShare(0, 4, 6, 1, 0.1, 0.4), ComputedShare(0, 6, 8, 2, None, 0.45)
    another = ComputedShare(0, 8, 9, 2, None, 0.6)
    assert list(bars_of([second, other, another, unknown, first])) == [
        (first, 0.0, 0.2),
        (other, 0.1, 0.4),
        (unknown, 0.45, 0.45),
        (second, 0.2, 0.5),
        (another, 0.45, 0.6),
    ]


@pytest.mark.parametrize(
    ("unused", "first"), [(None, 94), (30, 27), (99, 94), (0, 0)], ids=["none", "within", "at the end", "at the begin"]
)
def test_the_last_steps_are_shown_or_those_around_the_last_unused_share(unused: int | None, first: int) -> None:
    shares = [] if unused is None else [ComputedShare(0, 0, 1, 0), ComputedShare(unused, 0, 1, 0)]
    assert shown_steps(range(100), shares, 6) == list(range(first, first + 6))
