"""Interrupts at any time: everything is gone within five seconds, and nothing is left on disk but the run's folder."""

import os
import signal

import pytest

from tests.system.jobs import BRIEF, ENDLESS, gated_model
from tests.system.processes import GONE_S, Place, Process

#: How `train` is ended, and the exit code that a shell sees.
ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -signal.SIGKILL)]


def stopped_at(place: Place, moment: str) -> tuple[Process, int]:
    """Start a run that waits at a gate at that moment; return it with the gate, held from the other side."""
    gate = place.folder / ("gate.py" if moment == "loading" else "gate")
    os.mkfifo(gate)
    # While it loads, the server stands in reading the model's own file.
    model = "gate.py:build"
    if moment != "loading":
        model = gated_model(place.folder, gate, is_training=moment == "training")
    flags = [*BRIEF, "--model", model, "--steps", "1", "--workers", "2", "--run-dir", "run"]
    process = place.start("train", *flags)
    # Opening waits for the reader: who gets past here knows that a process stands at the gate.
    return process, os.open(gate, os.O_WRONLY)


@pytest.mark.parametrize("moment", ["loading", "training", "evaluating"])
@pytest.mark.parametrize(("number", "code"), ENDINGS, ids=[number.name for number, _ in ENDINGS])
def test_everything_is_gone(place: Place, moment: str, number: signal.Signals, code: int) -> None:
    process, gate = stopped_at(place, moment)
    process.send(number)
    ended = process.end(GONE_S)
    assert ended[0] == code
    assert code < 0 or ended[2].endswith("error: interrupted\n")
    assert place.is_empty(GONE_S)
    os.close(gate)
    assert (place.folder / "run").exists() == (moment != "loading")


@pytest.mark.parametrize("process_group", [False, True])
def test_an_impatient_person_changes_nothing(place: Place, process_group: bool) -> None:
    process = place.start("train", *ENDLESS, "--workers", "2", "--run-dir", "run")
    process.line_with("epoch 2/")
    pid = process.popen.pid
    while process.popen.poll() is None:
        # Again and again until the very end: not one of them may cut short what the first has begun.
        if process_group:
            os.killpg(pid, signal.SIGINT)
        else:
            os.kill(pid, signal.SIGINT)
    code, out, error = process.end(GONE_S)
    assert (code, error.strip()) == (130, "error: interrupted")
    assert "the last good weights are kept in run\n" in out
    assert place.is_empty(GONE_S)
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert not (place.folder / "run" / "result.json").exists()


def test_alone_in_one_process(place: Place) -> None:
    process = place.start("train", *ENDLESS, "--workers", "0", "--run-dir", "run")
    process.line_with("epoch 2/")
    process.send(signal.SIGINT)
    assert process.end(GONE_S)[0] == 130
    assert (place.folder / "run" / "weights.safetensors").is_file()


def test_a_reader_that_goes_away_ends_the_run(place: Place) -> None:
    process = place.start("train", *ENDLESS, "--workers", "1", "--run-dir", "run")
    process.line_with("epoch 1/")
    assert process.popen.stdout is not None
    process.popen.stdout.close()
    assert process.popen.wait(GONE_S) == 1
    assert place.is_empty(GONE_S)
