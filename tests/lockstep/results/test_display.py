"""The display of a run: lines that fit 80 columns, and not too many of them; one output in a notebook."""

import io
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from rich.console import Console

from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.notice import notice
from lockstep.results.display import (
    MOST_LINES,
    MOST_WORKER_LINES,
    Display,
    Lines,
    LiveRegion,
    NotebookPage,
    cell_output,
    display_for,
    duration,
    epoch_line,
    figures,
    in_teams,
    output_by,
    stride_of,
)
from tests.lockstep.statuses import EPOCH, status, worker

EPOCH_LINE = "epoch 1/8  loss 0.5000  accuracy 87.50%  test 93.75%  12.3 s"


def console(*, is_terminal: bool, kind: str = "xterm") -> Console:
    return Console(
        width=80, height=24, file=io.StringIO(), force_terminal=is_terminal, record=True, _environ={"TERM": kind}
    )


def shown(on: Console) -> list[str]:
    """Return the lines printed, without colours and cursor movements."""
    return [line.rstrip() for line in on.export_text().splitlines()]


def picture(of: Status) -> list[str]:
    """Return the live picture of a status as lines of text."""
    region, paper = LiveRegion(console(is_terminal=True)), console(is_terminal=False)
    paper.print(region.picture(of))
    return shown(paper)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (99.6, "1 min 40 s"), (200.0, "3 min 20 s"), (3600.0, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_trained_is_announced_once_and_not_before_the_run_is_known_to_be_good() -> None:
    to = console(is_terminal=False)
    with display_for(to, ManualClock(), ["training mlp", "weights go to runs/mine"]) as display:
        display.say("notice: something")
        display.show(status())
        display.show(status())
    lines = shown(to)
    assert lines[:3] == ["notice: something", "training mlp", "weights go to runs/mine"]
    assert lines.count("training mlp") == 1


@pytest.mark.parametrize(("epochs", "stride"), [(1, 1), (30, 1), (31, 2), (60, 2), (61, 5), (300, 10), (10**6, 50_000)])
def test_of_many_epochs_some_are_shown(epochs: int, stride: int) -> None:
    assert stride_of(epochs) == stride


def test_a_long_run_shows_its_first_epochs_each_and_the_last() -> None:
    on = console(is_terminal=False)
    with display_for(on, ManualClock()) as display:
        for epoch in range(1, 77):
            history = [msgspec.structs.replace(EPOCH, epoch=epoch)]
            display.show(status(epoch=epoch, epochs=76, history=history))
    message = re.findall(r"epoch (\d+)/76  loss 0.5000", "\n".join(shown(on)))
    assert list(map(int, message)) == [*range(1, 31), *range(32, 61, 2), 65, 70, 75, 76]


def test_an_epoch_on_one_line() -> None:
    assert epoch_line(EPOCH, 8) == EPOCH_LINE
    assert epoch_line(EPOCH, 8, has_test=False) == "epoch 1/8  loss 0.5000  accuracy 87.50%  12.3 s"


def test_the_figure_of_a_validation_set_is_of_the_kind_of_the_others() -> None:
    numbers = msgspec.structs.replace(
        EPOCH, accuracy=None, test_accuracy=None, r2=0.5, test_r2=0.25, val_loss=7.0, val_r2=0.125
    )
    assert epoch_line(numbers, 8) == "epoch 1/8  loss 0.5000  R² 0.5000  val 0.1250  test 0.2500  12.3 s"
    own = msgspec.structs.replace(EPOCH, accuracy=None, test_accuracy=None, val_loss=7.0)
    assert epoch_line(own, 8) == f"epoch 1/8  loss 0.5000  val 7.0000  test {EPOCH.test_loss:.4f}  12.3 s"


def test_figures_of_a_run_that_has_begun() -> None:
    assert figures(status()) == "loss 0.1235  accuracy 96.12%  12,346 samples/s  3 min 20 s left"


@pytest.mark.parametrize("elapsed_s", [0.0, 20.0])
def test_a_run_that_waits_shows_what_for_instead_of_a_speed(elapsed_s: float) -> None:
    waiting = status(waiting="waiting for shards: 0 of 1 are ready", elapsed_s=elapsed_s)
    assert figures(waiting) == waiting.waiting
    assert picture(waiting)[1] == waiting.waiting


def test_a_run_without_a_step_shows_its_phase() -> None:
    assert figures(status(elapsed_s=0.0)) == "training"


def test_the_live_display() -> None:
    bar, line, *workers = picture(status(workers=[worker(0), worker(1, state="preparing", samples=0, compute_s=0.0)]))
    assert bar.startswith("epoch 2/8  step 700/3752 ━━━")
    assert bar.endswith("19%")
    assert len(bar) == 80
    assert line == "training  loss 0.1235  accuracy 96.12%  12,346 samples/s  3 min 20 s left"
    assert workers == [
        "worker 0  computing  24,000 samples  computes 12,000/s  alpha:4000",
        "worker 1  preparing  0 samples                          alpha:4001",
    ]


def test_a_team_has_one_line_with_the_number_of_its_workers_and_their_speed_together() -> None:
    _, _, *lines = picture(status(workers=[worker(0, processes=4), worker(1)]))
    assert lines == [
        "team 0: 4 workers  computing  24,000 samples  computes 48,000/s  alpha:4000",
        "worker 1           computing  24,000 samples  computes 12,000/s  alpha:4001",
    ]


def test_how_many_workers_there_are_in_how_many_teams() -> None:
    assert [in_teams(1, 1), in_teams(4, 1), in_teams(8, 2), in_teams(2, 2)] == [
        "1 worker",
        "4 workers in 1 team",
        "8 workers in 2 teams",
        "2 workers in 2 teams",
    ]
    # A run of an older version.
    assert in_teams(3, 0) == "3 workers"


def test_the_live_display_neither_wraps_nor_outgrows_the_terminal() -> None:
    many = [
        worker(rank, host="a-host-with-a-name-that-is-long." * 3, samples=10**8, compute_s=1e3) for rank in range(200)
    ]
    lines = picture(status(epochs=10**6, steps=10**9, images_per_s=1e12, eta_s=1e7, loss=1e12, workers=many))
    assert len(lines) == 2 + MOST_WORKER_LINES + 1
    assert max(map(len, lines)) <= 80
    assert lines[-1] == f"and {200 - MOST_WORKER_LINES} more"


def test_a_live_display_scrolls_finished_epochs_and_leaves_nothing_else() -> None:
    on, clock = console(is_terminal=True), ManualClock()
    with display_for(on, clock) as display:
        for step in range(3):
            clock.advance(1.0)
            display.show(status(step=700 + step))
        display.say("worker 1 left")
    raw = on.file.getvalue() if isinstance(on.file, io.StringIO) else ""
    assert raw.count(EPOCH_LINE) == 1
    assert raw.count("worker 1 left") == 1
    # The cursor is shown again, and the picture's two lines are erased: two up, each cleared.
    assert raw.endswith("\x1b[?25h\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_notice_keeps_its_words_whole_and_a_line_that_is_copied_stays_one(*, is_terminal: bool) -> None:
    on, words = console(is_terminal=is_terminal), "abcdefgh " * 12
    display = display_for(on, ManualClock())
    display.say(notice(words.strip()))
    display.say(words.strip())
    lines = shown(on)
    kept = ["notice: " + ("abcdefgh " * 8).strip(), ("abcdefgh " * 4).strip()]
    assert lines == [*(kept if is_terminal else [f"notice: {words.strip()}"]), words.strip()]


def test_a_live_display_says_a_reminder_once_until_something_else_is_said() -> None:
    on = console(is_terminal=True)
    with display_for(on, ManualClock()) as display:
        for _ in range(3):
            display.remind("waiting for workers: 0 of 1 are ready")
        display.say("worker 0 joined")
        display.remind("waiting for workers: 0 of 1 are ready")
    assert on.export_text().count("0 of 1 are ready") == 2


def test_a_live_display_makes_a_few_updates_a_second_at_most() -> None:
    on, clock = console(is_terminal=True), ManualClock()
    with display_for(on, clock) as display:
        for step in range(1000):
            clock.advance(0.001)
            display.show(status(step=step, history=[]))
    assert on.export_text().count("epoch 2/8") <= 7


def test_plain_lines_one_an_epoch_and_one_now_and_then() -> None:
    on, clock = console(is_terminal=False), ManualClock()
    with display_for(on, clock) as display:
        display.show(status())
        clock.advance(Lines.every_s - 1.0)
        display.show(status())
        clock.advance(1.0)
        display.show(status())
        display.show(status())
    assert shown(on) == [EPOCH_LINE, f"epoch 2/8  step 700/3752  {figures(status())}"]


def window(first: int, last: int) -> Status:
    """Return the status of a long run, which tells of some epochs only."""
    return status(history=[msgspec.structs.replace(EPOCH, epoch=number) for number in range(first, last + 1)])


@pytest.mark.parametrize("is_terminal", [False, True])
def test_each_epoch_is_reported_once_where_a_status_tells_of_the_last_ones(is_terminal: bool) -> None:
    on = console(is_terminal=is_terminal)
    with display_for(on, ManualClock()) as display:
        # Between the last two more epochs ended than a status tells of; a server that was started again has fewer.
        for first, last in ((1, 3), (3, 5), (4, 5), (4, 6), (3, 4), (9, 11)):
            display.show(window(first, last))
    message = re.findall(r"epoch (\d+)/8  loss 0.5000", "\n".join(shown(on)))
    assert list(map(int, message)) == [1, 2, 3, 4, 5, 6, 9, 10, 11]


def test_plain_lines_repeat_reminders() -> None:
    on = console(is_terminal=False)
    display = display_for(on, ManualClock())
    display.remind("waiting")
    display.remind("waiting")
    assert shown(on) == ["waiting", "waiting"]


def test_a_plain_line_stays_one_line_and_is_no_markup() -> None:
    on = console(is_terminal=False)
    display_for(on, ManualClock()).say("[bold]" + "x" * 200)
    assert shown(on) == ["[bold]" + "x" * 200]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_silence(is_terminal: bool) -> None:
    on = console(is_terminal=is_terminal)
    on.quiet = True
    with display_for(on, ManualClock()) as display:
        assert display.is_silent
        display.show(status())
        display.say("word")
        print("of the user's own")
    assert isinstance(on.file, io.StringIO)
    assert on.file.getvalue() == ""
    assert not display_for(console(is_terminal=is_terminal), ManualClock()).is_silent


def test_whoever_listens_receives_each_status() -> None:
    heard: list[Status] = []
    display = Display(Lines(console(is_terminal=False).print), ManualClock(), listener=heard.append)
    display.show(status(step=1))
    display.show(status(step=2))
    assert [each.step for each in heard] == [1, 2]


@pytest.mark.parametrize(
    ("is_terminal", "kind", "medium"),
    [(True, "xterm", LiveRegion), (True, "dumb", Lines), (False, "xterm", Lines)],
)
def test_the_display_fits_the_console(is_terminal: bool, kind: str, medium: type[object]) -> None:
    assert type(display_for(console(is_terminal=is_terminal, kind=kind), ManualClock()).medium) is medium


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
    show = output_by(shown.display)
    show("")
    assert shown.calls == []
    show("a")
    show("b")
    assert shown.calls == [("new", "a"), ("update", "b")]


def test_outside_a_notebook_there_is_no_page() -> None:
    assert cell_output() is None
