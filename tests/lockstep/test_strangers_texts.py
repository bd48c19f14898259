"""What workers, servers and files are called is shown as text: no escape reaches a terminal, no name is markup."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from common.clock import ManualClock
from lockstep.commands.status import show
from lockstep.commands.worker import say
from lockstep.display import LiveDisplay, PlainDisplay, print_plainly
from lockstep.main import run
from lockstep.plots.attendance import read_attendance
from ps.ledger import Begun, Share, StepDone, WorkerIn
from tests.lockstep.plots.records import write_ledger, write_steps
from tests.lockstep.statuses import status, worker

#: What a terminal, `rich`, or a reader of lines would take for more than text.
EVIL = "\x1b[2J\x1b]0;title\x07[bold]a[/] :skull: [/]\r\u202e"
SHOWN = "[bold]a[/] :skull: [/]"


def paper(*, is_terminal: bool = False) -> Console:
    return Console(width=200, height=24, file=io.StringIO(), force_terminal=is_terminal, color_system=None)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def assert_harmless(text: str) -> None:
    assert SHOWN in text
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


def test_a_line_that_is_said() -> None:
    console = paper()
    print_plainly(console, f"worker 3 (host {EVIL}) joined")
    assert_harmless(written(console))


@pytest.mark.parametrize("field", ["host", "state"])
def test_a_status_that_a_server_sent(field: str) -> None:
    console = paper()
    show(console, status(run=EVIL, model=EVIL, phase=EVIL, failure=EVIL, workers=[worker(0, **{field: EVIL})]))
    assert_harmless(written(console))


def test_the_plain_display() -> None:
    console = paper()
    display = PlainDisplay(console, ManualClock())
    display.say(EVIL)
    display.remind(EVIL)
    assert_harmless(written(console))


def test_the_live_display_survives_the_name_of_a_worker() -> None:
    console = paper(is_terminal=True)
    with LiveDisplay(console, ManualClock()) as display:
        display.show(status(workers=[worker(0, host="[/]"), worker(1, host="[bold")]))
    assert "[/]" in written(console)
    assert "[bold" in written(console)


def test_what_a_worker_says(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"the server refused this worker: {EVIL}\nerror: forged")
    assert_harmless(capsys.readouterr().err)


def test_the_last_words_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", f"tcp://{EVIL}:1"]) == 2
    assert_harmless(capsys.readouterr().err)


def test_a_ledger_and_its_picture(tmp_path: Path) -> None:
    name = EVIL + "$x_{"
    write_steps(tmp_path, [0, 1])
    entries = [
        Begun(step=0, weights_sha256="00"),
        WorkerIn(rank=0, host=name, pid=11),
        StepDone(step=0, shares=[Share(0, 4, 0)], losses=bytes(16), mark=1),
        StepDone(step=1, shares=[Share(0, 4, 0)], losses=bytes(16), mark=2),
    ]
    write_ledger(tmp_path, entries)
    (shown,) = read_attendance(tmp_path).names
    assert shown.isprintable()
    assert run(["plot", str(tmp_path)]) == 0
