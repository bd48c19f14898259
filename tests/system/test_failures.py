"""Processes that die and models that fail: the run goes on, or ends with the root cause and leaves nothing running."""

import os
import signal

import pytest

from tests.system.alone import run_here
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import GONE_S, Place, Process

#: Flags by which nobody who died is started again.
ONCE = ("--set", "max_restarts=0")

RAISES = """
from lockstep import nn


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.calls = nn.Linear(784, 10), 0

    def forward(self, images):
        self.calls += self.training
        if self.calls > 8:
            raise ValueError("one too many")
        return self.scores(images.reshape(images.shape[0], 784))


def build():
    return Raises()
"""


GATED_BUILD = """
import os
from lockstep import nn


def build():
    if os.path.exists("gate"):
        open("gate").read()
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


def endless(place: Place, *flags: str) -> Process:
    """Start a run that never ends; return it when its first epoch has."""
    process = place.start("train", *ENDLESS, "--run-dir", "run", *flags)
    process.line_with("epoch 1/")
    return process


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_and_the_run_goes_on(place: Place) -> None:
    process = endless(place, "--workers", "2")
    (first, _) = place.pids("lockstep worker")
    kill([first])
    process.line_with(f"a worker (pid {first}) was killed by SIGKILL; its micro-batches go to the others")
    process.line_with("epoch ")
    process.line_with("epoch ")
    process.interrupt()
    assert place.is_empty(GONE_S)


def test_a_worker_that_dies_before_the_run_begins_ends_it(place: Place) -> None:
    gate = place.folder / "gate"
    os.mkfifo(gate)
    (place.folder / "gated.py").write_text(GATED_BUILD)
    process = place.start("train", *BRIEF, "--model", "gated.py:build", "--workers", "2", "--run-dir", "run", *ONCE)
    # While the server stands at the gate, the workers are there or on their way, and cannot have begun.
    with gate.open("w"):
        gate.unlink()
        while len(pids := place.pids("lockstep worker")) < 2:
            pass
        kill(pids[:1])
    code, _, error = process.end()
    assert (code, error.count("\n")) == (1, 1)
    assert error.endswith(f": a worker (pid {pids[0]}) was killed by SIGKILL\n")
    assert place.is_empty(GONE_S)


def test_a_run_without_workers_ends(place: Place) -> None:
    process = endless(place, "--workers", "2", *ONCE)
    kill(place.pids("lockstep worker"))
    code, _, error = process.end()
    assert code == 1
    assert error.startswith("error: no worker is left: a worker (pid ")
    assert error.endswith("was killed by SIGKILL\n")
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize("workers", ["0", "2", pytest.param("1", marks=pytest.mark.slow)])
def test_an_exception_of_the_model_reaches_the_person_with_its_traceback(place: Place, workers: str) -> None:
    (place.folder / "raises.py").write_text(RAISES)
    flags = ("--model", "raises.py:build", "--workers", workers, "--run-dir", "run", "--steps", "1000")
    code, out, error = place.start("train", *BRIEF, *flags).end()
    assert code == 1
    assert error.startswith("error: ")
    assert "Traceback (most recent call last):\n" in error
    assert 'raise ValueError("one too many")' in error
    assert error.endswith("ValueError: one too many\n")
    assert "its micro-batches go to the others" not in out
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights(place: Place, workers: str) -> None:
    flags = ("--model", "mlp", "--lr", "1e20", "--schedule", "constant", "--workers", workers, "--run-dir", "run")
    code, out, error = place.start("train", *BRIEF, *flags).end()
    assert code == 1
    assert error.startswith("error: the loss of step ")
    assert ", is not finite; first seen in layer " in error
    assert ", micro-batch " in error
    assert error.count("\n") == 1
    assert out.endswith("the last good weights are kept in run\n")
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_input_leaves_nothing(place: Place, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    before = sorted(place.folder.rglob("*"))
    code, out, error = run_here(place.folder, capsys, "train", "--data", "gone", "--workers", workers)
    assert (code, out) == (2, "")
    assert error.startswith("error: no dataset 'gone'")
    assert error.count("\n") == 1
    assert sorted(place.folder.rglob("*")) == before
    assert place.is_empty(0.0)
