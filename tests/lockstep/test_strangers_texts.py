"""What workers, servers and files are called is shown as text: no escape reaches a terminal, no name is markup."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from lockstep.checking.recorded_run import LayerFigures, LayerReplay
from lockstep.cli.checking.replay import layers_table
from lockstep.cli.machines.status import show
from lockstep.cli.main import run
from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.client import say
from lockstep.ps.records.ledger import LedgerShare, RunBegun, StepDone, WorkerIn
from lockstep.results.display import Display, NotebookPage, display_for, print_plainly
from lockstep.results.plots.curves import read_timeline
from lockstep.results.summary import show_advice
from tests.lockstep.results.plots.records import write_ledger, write_steps
from tests.lockstep.statuses import result, status, worker

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
    display = display_for(console, ManualClock())
    display.say(EVIL)
    display.remind(EVIL)
    assert_harmless(written(console))


def test_the_live_display_survives_the_name_of_a_worker() -> None:
    console = paper(is_terminal=True)
    with display_for(console, ManualClock()) as display:
        display.show(status(workers=[worker(0, host="[/]"), worker(1, host="[bold")]))
    assert "[/]" in written(console)
    assert "[bold" in written(console)


def test_a_notebook_shows_what_is_said_as_text() -> None:
    pages: list[str] = []

    with Display(NotebookPage(pages.append), ManualClock()) as display:
        display.say(EVIL)
        display.show(status(run=EVIL, phase=EVIL, elapsed_s=0.0))
    assert_harmless(pages[0])
    assert_harmless(pages[-1])


def test_a_note_at_the_end_of_a_run() -> None:
    for is_terminal in (False, True):
        console = paper(is_terminal=is_terminal)
        show_advice(console, result(obstacle=EVIL))
        assert_harmless(written(console).replace("\x1b[1m", "").replace("\x1b[0m", ""))


def test_a_layers_name_in_a_replay() -> None:
    console, output = paper(), LayerFigures(shape=(2, 3), norm=1.0, largest=1.0, nonfinite=0)
    console.print(layers_table([LayerReplay(name=EVIL, kind=EVIL, output=output, gradients={EVIL: output})]))
    assert_harmless(written(console))
    assert written(console).count(SHOWN) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e300, 5e-324])
@pytest.mark.parametrize("field", ["eta_s", "elapsed_s", "loss", "accuracy", "images_per_s"])
def test_a_servers_figures_may_be_any_numbers(field: str, value: float) -> None:
    console = paper()
    odd = status(**{field: value}, workers=[worker(0, compute_s=value)])
    show(console, odd)
    with display_for(paper(is_terminal=True), ManualClock()) as display:
        display.show(odd)
    assert "worker 0" in written(console)


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
        RunBegun(step=0, weights_sha256="00"),
        WorkerIn(rank=0, host=name, pid=11),
        StepDone(step=0, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=1),
        StepDone(step=1, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=2),
    ]
    write_ledger(tmp_path, entries)
    (shown,) = read_timeline(tmp_path).names
    assert shown.isprintable()
    assert run(["plot", str(tmp_path)]) == 0
