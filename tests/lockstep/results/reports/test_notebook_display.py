"""What is shown under a notebook's cell: one output that is replaced, and not a stream."""

from dataclasses import dataclass, field
from typing import Any

from lockstep.common.runtime.clock import ManualClock
from lockstep.results.reports.display import (
    MOST_LINES,
    CellOutput,
    Display,
    NotebookPage,
    cell_output,
    figures,
)
from tests.lockstep.results.reports.test_display import EPOCH_LINE
from tests.lockstep.statuses import status


def display_on(pages: list[str], clock: ManualClock | None = None) -> Display:
    return Display(NotebookPage(pages.append), clock or ManualClock())


def test_epochs_stay_and_one_line_moves() -> None:
    pages, clock = list[str](), ManualClock()
    with display_on(pages, clock) as display:
        display.show(status(history=[], step=1))
        clock.advance(NotebookPage.every_s)
        display.show(status(step=700))
        assert pages[-1].splitlines() == [EPOCH_LINE, f"epoch 2/8  step 700/3752  {figures(status())}"]
        display.say("worker 1 left")
        clock.advance(NotebookPage.every_s)
        display.show(status(step=701))
        assert pages[-1].splitlines()[:2] == [EPOCH_LINE, "worker 1 left"]
    assert pages[-1].splitlines() == [EPOCH_LINE, "worker 1 left"]


def test_a_few_updates_a_second_at_most() -> None:
    pages, clock = list[str](), ManualClock()
    with display_on(pages, clock) as display:
        for step in range(1000):
            clock.advance(0.001)
            display.show(status(step=step, history=[]))
    assert len(pages) <= 4


def test_a_long_run_does_not_fill_the_notebook() -> None:
    pages: list[str] = []
    display = display_on(pages)
    for number in range(1000):
        display.say(f"line {number}")
    lines = pages[-1].splitlines()
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
    assert cell_output() is None
