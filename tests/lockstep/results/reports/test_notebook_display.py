"""What is shown under a notebook's cell: one output that is replaced, and not a stream."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from lockstep.common.runtime.clock import ManualClock
from lockstep.results.reports.display import figures
from lockstep.results.reports.notebook_display import (
    MOST_LINES,
    PAGE_EVERY_S,
    CellOutput,
    NotebookDisplay,
    notebook_page,
)
from tests.lockstep.results.reports.test_display import EPOCH_LINE
from tests.lockstep.statuses import EPOCH, status


@dataclass
class Paper:
    """A page that keeps what was on it."""

    pages: list[str] = field(default_factory=list)

    def show(self, text: str) -> None:
        self.pages.append(text)


def test_epochs_stay_and_one_line_moves() -> None:
    paper, clock = Paper(), ManualClock()
    with NotebookDisplay(paper, clock) as display:
        display.show(status(history=[], step=1))
        clock.advance(PAGE_EVERY_S)
        display.show(status(step=700))
        assert paper.pages[-1].splitlines() == [EPOCH_LINE, f"epoch 2/8  step 700/3752  {figures(status())}"]
        display.say("worker 1 left")
        clock.advance(PAGE_EVERY_S)
        display.show(status(step=701))
        assert paper.pages[-1].splitlines()[:2] == [EPOCH_LINE, "worker 1 left"]
    assert paper.pages[-1].splitlines() == [EPOCH_LINE, "worker 1 left"]


def test_each_epoch_stays_once_where_a_status_tells_of_the_last_ones() -> None:
    paper = Paper()
    with NotebookDisplay(paper, ManualClock()) as display:
        for first, last in ((1, 3), (3, 5), (4, 5)):
            epochs = [msgspec.structs.replace(EPOCH, epoch=number) for number in range(first, last + 1)]
            display.show(status(history=epochs))
    assert [line.split("/")[0] for line in paper.pages[-1].splitlines()] == [
        f"epoch {number}" for number in range(1, 6)
    ]


def test_a_few_updates_a_second_at_most() -> None:
    paper, clock = Paper(), ManualClock()
    with NotebookDisplay(paper, clock) as display:
        for step in range(1000):
            clock.advance(0.001)
            display.show(status(step=step, history=[]))
    assert len(paper.pages) <= 4


def test_a_reminder_is_reported_once_until_something_else_is_said() -> None:
    paper = Paper()
    display = NotebookDisplay(paper, ManualClock())
    for _ in range(3):
        display.remind("waiting")
    display.say("there")
    display.remind("waiting")
    assert paper.pages[-1].splitlines() == ["waiting", "there", "waiting"]


def test_a_long_run_does_not_fill_the_notebook() -> None:
    paper = Paper()
    display = NotebookDisplay(paper, ManualClock())
    for number in range(1000):
        display.say(f"line {number}")
    lines = paper.pages[-1].splitlines()
    assert len(lines) == MOST_LINES + 1
    assert (lines[0], lines[MOST_LINES // 2], lines[-1]) == ("line 0", f"… {1000 - MOST_LINES} more …", "line 999")


@dataclass
class Shown:
    """What IPython would show: the calls, and the bundles."""

    calls: list[tuple[str, Any]] = field(default_factory=list)

    def display(self, bundle: dict[str, str], **how: Any) -> "Shown":
        assert how == {"raw": True, "display_id": True}
        self.calls.append(("new", bundle["text/plain"]))
        return self

    def update(self, bundle: dict[str, str], **how: Any) -> None:
        assert how == {"raw": True}
        self.calls.append(("update", bundle["text/plain"]))


def test_a_cell_has_one_output_and_none_where_nothing_was_said() -> None:
    shown = Shown()
    page = CellOutput(shown.display)
    page.show("")
    assert shown.calls == []
    page.show("a")
    page.show("b")
    assert shown.calls == [("new", "a"), ("update", "b")]


def test_outside_a_notebook_there_is_no_page() -> None:
    assert notebook_page() is None
