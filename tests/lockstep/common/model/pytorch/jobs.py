"""Small jobs whose models are PyTorch's, and models of a test's own."""

from pathlib import Path
from typing import Any

import numpy as np

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.model.port import Model
from lockstep.common.model.source import open_model
from lockstep.common.numerics.random import Purpose, generator
from tests.simulation.small import job_of

#: The file of the nine nets.
NETS = Path(__file__).with_name("nets.py")

NAMES = ("mlp", "lenet", "cnn", "transformer", "gru", "lstm", "depthwise", "upsampling", "resnet18")

#: Begins a model file of a test.
HEADER = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n\n"


def torch_job(name: str, **values: Any) -> Job:
    """Return a job of one of the nine nets: three steps over unequal micro-batches."""
    fixed = {"steps": 3, "global_batch": 10, "micro_batches": 4, "momentum": 0.9, "numerics": "native"}
    return job_of(**{**fixed, **values, "model": f"{NETS}:{name}"})


def model_file(folder: Path, text: str) -> str:
    """Write a file with a class `Net`, or a function `build`, and return the name of the model."""
    if "def build(" not in text:
        text += "\n\ndef build():\n    return Net()\n"
    path = folder / "net.py"
    path.write_text(HEADER + text, encoding="utf-8")
    return f"{path}:build"


def model_of(folder: Path, text: str) -> Model:
    """Build the model of a text."""
    return open_model(model_file(folder, text), 3)


def batch(count: int = 5) -> tuple[Any, Any]:
    """Return some samples and their classes."""
    rng = generator(1, Purpose.SIMULATE)
    return rng.standard_normal((count, 1, 28, 28), dtype=np.float32), np.arange(count) % 10


def characters() -> TrainTest:
    """Return sequences of tokens, each to be followed by the next one."""
    rng = generator(2, Purpose.SIMULATE)
    tokens = rng.integers(0, 7, (24, 6)).astype(np.int32)
    train, test = (Dataset(part, np.roll(part, -1, axis=1).astype(np.int64), 7) for part in (tokens[:16], tokens[16:]))
    return TrainTest("characters", train, test)
