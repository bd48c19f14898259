"""Jobs for tests with real processes: done in a moment, never done, or stopped at a moment of the test's choice."""

from pathlib import Path

#: Flags of a job that is over in a moment.
BRIEF = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "8")

#: Flags of a job that is never over.
ENDLESS = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "32", "--epochs", "1000000")

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


def gated_model(folder: Path, gate: Path, *, is_training: bool) -> str:
    """Write the file of a model that stops at `gate` in training or in evaluation; return the job's value."""
    (folder / "gated.py").write_text(GATED.format(gate=str(gate), is_training=is_training))
    return "gated.py:build"
