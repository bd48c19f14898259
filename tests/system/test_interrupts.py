"""Interrupts at any time: everything is gone within five seconds, and nothing is left on disk but the run's folder."""

import os
import random
import signal
from contextlib import suppress

import pytest

from lockstep.common.runtime.clock import SystemClock
from tests.system.jobs import BRIEF, ENDLESS, gated_model, hold
from tests.system.processes import GONE_S, Place, Process

#: How `train` is ended, and the exit code that a shell sees.
ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 130, signal.SIGKILL: -signal.SIGKILL}

#: Where a run stands meanwhile.
MOMENTS = ("loading", "training", "evaluating")

#: Those of the suite: each signal, and each moment. The others take `scripts/test --all`.
COVERING = {
    ("loading", signal.SIGTERM),
    ("training", signal.SIGHUP),
    ("training", signal.SIGKILL),
    ("evaluating", signal.SIGINT),
}


def stopped_at(place: Place, moment: str) -> tuple[Process, int]:
    """Start a run that waits at a gate at that moment; return it with the gate, held from the other side."""
    gate = place.folder / "gate"
    os.mkfifo(gate)
    if moment == "loading":
        (place.folder / "loading.py").write_text(f"open({str(gate)!r}).read()\n")
        model = "loading.py:build"
    else:
        model = gated_model(place.folder, gate, is_training=moment == "training")
    flags = [*BRIEF, "--model", model, "--steps", "1", "--workers", "2", "--run-dir", "run"]
    process = place.start("train", *flags)
    return process, hold(gate, process.popen)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(
            moment,
            number,
            marks=[] if (moment, number) in COVERING else pytest.mark.slow,
            id=f"{number.name}-{moment}",
        )
        for moment in MOMENTS
        for number in ENDINGS
    ],
)
def test_everything_is_gone(place: Place, moment: str, number: signal.Signals) -> None:
    code, (process, gate) = ENDINGS[number], stopped_at(place, moment)
    process.send(number)
    ended = process.end(GONE_S)
    assert ended[0] == code
    assert code < 0 or ended[2].endswith("error: interrupted\n")
    assert place.is_empty(GONE_S)
    os.close(gate)
    assert (place.folder / "run").exists() == (moment != "loading")


@pytest.mark.parametrize("process_group", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_impatient_person_changes_nothing(place: Place, process_group: bool) -> None:
    process = place.start("train", *ENDLESS, "--workers", "2", "--run-dir", "run")
    process.line_with("epoch 2/")
    pid = process.popen.pid
    while process.popen.poll() is None:
        # Again and again until the very end: not one of them may cut short what the first has begun.
        # A process that has just ended may be reaped by the one that forked it.
        with suppress(ProcessLookupError):
            (os.killpg if process_group else os.kill)(pid, signal.SIGINT)
    code, out, error = process.end(GONE_S)
    assert (code, error.strip()) == (130, "error: interrupted")
    assert "the last good weights are kept in run\n" in out
    assert place.is_empty(GONE_S)
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert not (place.folder / "run" / "result.json").exists()


def test_alone_in_one_process(place: Place) -> None:
    process = place.start("train", *ENDLESS, "--workers", "0", "--run-dir", "run")
    process.line_with("epoch 2/")
    process.interrupt()
    assert (place.folder / "run" / "weights.safetensors").is_file()


def test_a_reader_that_goes_away_ends_the_run(place: Place) -> None:
    process = place.start("train", *ENDLESS, "--workers", "1", "--run-dir", "run")
    process.line_with("epoch 1/")
    assert process.popen.stdout is not None
    process.popen.stdout.close()
    assert process.popen.wait(GONE_S) == 1
    assert place.is_empty(GONE_S)


#: A run of some seconds that does all that a run does: it loads, begins, trains, evaluates, writes checkpoints, ends.
WHOLE = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "60", "--micro-batches", "4", "--epochs", "16",
         "--set", "checkpoint_every_steps=3", "--workers", "2")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 100])
def test_an_interrupt_at_any_moment_of_a_whole_run(place: Place, times: int) -> None:
    """Moments are spread over a run's whole life, from the start of its first process to the end of its last.

    How long that is shows anew with each run that ends before its moment: other programs may have slowed the first.
    """
    clock, draw = SystemClock(), random.Random(times)
    began = clock.now()
    assert place.start("train", *WHOLE, "--run-dir", "calm").end()[0] == 0
    whole_s, hit, tried = clock.now() - began, 0, 0
    while hit < times:
        tried += 1
        assert tried < 10 + 2 * times, f"{hit} of {tried} interrupts came before the end"
        # One in each part of it, so that none is left out.
        moment = (hit + draw.random()) / times
        began = clock.now()
        process = place.start("train", *WHOLE, "--run-dir", f"run-{tried}")
        if process.ends_within(moment * whole_s):
            whole_s = min(whole_s, clock.now() - began)
            continue
        number = (signal.SIGINT, signal.SIGTERM)[tried % 2]
        process.send(number)
        code, out, error = process.end(GONE_S)
        assert place.is_empty(GONE_S)
        if code == 0:
            whole_s = min(whole_s, clock.now() - began)
            continue  # it came when all was done
        hit += 1
        # Before our first line is run, Python ends as any process does: a shell sees the same code of it.
        assert code in (130, -number), (moment, out, error)
        assert code == -number or error.endswith("error: interrupted\n"), (moment, error)


#: A model that raises where a worker is to build it, or in one kind of pass.
RAISING = """
import sys

from lockstep import nn


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)

    def forward(self, images):
        if {phase!r} == ("training" if self.training else "evaluating") and images.shape[0] > 2:
            raise ValueError("as it was asked to")
        return self.scores(images.reshape(images.shape[0], 784))


def build():
    if {phase!r} == "building" and "worker" in sys.argv:
        raise ValueError("as it was asked to")
    return Raising()
"""


@pytest.mark.parametrize("phase", ["building", "evaluating", pytest.param("training", marks=pytest.mark.slow)])
def test_an_exception_leaves_nothing_either(place: Place, phase: str) -> None:
    (place.folder / "raising.py").write_text(RAISING.format(phase=phase))
    process = place.start("train", *BRIEF, "--model", "raising.py:build", "--workers", "2", "--run-dir", "run")
    code, out, error = process.end()
    assert code == (2 if phase == "building" else 1)
    assert "as it was asked to" in out + error
    assert "error: " in error
    assert place.is_empty(GONE_S)
