"""Jobs for tests with real processes: done in a moment, never done, or stopped at a moment of the test's choice."""

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path

#: Flags of a job that is over in a moment.
BRIEF = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "8")

#: The file of a model that takes its time: a run that others are to look at, or to end, needs no core for it.
UNHURRIED = '''
import time

from lockstep import nn


class Unhurried(nn.Module):
    def __init__(self, pause_s=0.01, scores=None):
        super().__init__()
        self.scores, self.pause_s = scores or nn.Linear(784, 10), pause_s

    def forward(self, images):
        if self.training:
            time.sleep(self.pause_s)
        return self.scores(images.reshape(images.shape[0], 784))


def without_pauses():
    return Unhurried(0.0)


def delicate(pause_s=0.008):
    """Return one with all that could depend on who computes: dropout, and running statistics."""
    layers = nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)
    return Unhurried(pause_s, nn.Sequential(*layers))


def delicate_without_pauses():
    return delicate(0.0)
'''

#: What a `Place` has at first.
FILES = {"tiny.npz", "unhurried.py"}

#: Flags of a job that is never over, in the folder of a `Place`.
ENDLESS = ("--model", "unhurried.py:Unhurried", "--data", "tiny.npz", "--global-batch", "32", "--epochs", "1000000")

#: Flags after those, for a run whose speed is measured.
AT_FULL_SPEED = ("--model", "linear")

#: A model that stops at a gate, a FIFO, in one phase of a run. The server tries a model with two samples.
GATED = """
from lockstep import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)

    def forward(self, images):
        if self.training == {is_training} and images.shape[0] > 2:
            with open({gate!r}, "rb") as gate:
                gate.read()
        return self.scores(images.reshape(images.shape[0], 784))


def build():
    return Gated()
"""


#: Seconds between two looks at a gate.
LOOK_S = 0.02


def hold(gate: Path, process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> int:
    """Wait until somebody stands at the gate; return it, held from the other side until it is closed.

    An open that waits would wait forever if the process that is to come there has failed.
    """
    while True:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
            raise AssertionError(f"ended with {process.returncode} before anybody stood at the gate")


def gated_model(folder: Path, gate: Path, *, is_training: bool) -> str:
    """Write the file of a model that stops at `gate` in training or in evaluation; return the job's value."""
    (folder / "gated.py").write_text(GATED.format(gate=str(gate), is_training=is_training))
    return "gated.py:build"
