"""Small jobs on small data, whose runs take milliseconds, with all that could depend on which worker computes."""

from functools import cache
from typing import Any

import msgspec
import numpy as np

from lockstep.common import nn
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.model.source import open_model
from lockstep.common.nn.description import describe
from lockstep.common.random import Purpose, generator

#: The name of the data in a job.
DATA = "simulated"

#: Training and test samples; an epoch ends with a short batch.
TRAIN, TEST = 20, 9

CLASSES = 3


@cache
def data() -> TrainTest:
    """Return some images of noise."""
    return TrainTest(DATA, _noise(TRAIN, 0), _noise(TEST, 1))


def _noise(count: int, part: int) -> Dataset:
    rng = generator(0, Purpose.SIMULATE, at=part)
    images = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    return Dataset(images, rng.integers(0, CLASSES, count).astype(np.int64), CLASSES)


def load(name: str) -> TrainTest:
    """Load the data of a job."""
    return data()


def _job(net: nn.Module, **values: Any) -> Job:
    usual = {"data": DATA, "seed": 5, "steps": 6, "lr": 0.05, "global_batch": 8, "micro_batches": 4}
    return msgspec.convert({**usual, **values, "model": dict(describe(net))}, Job)


def _wide(width: int) -> nn.Module:
    """Return a net whose weights can be split over several servers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, CLASSES))


@cache
def jobs() -> dict[str, Job]:
    """Return the jobs by name."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    noisy = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, CLASSES)
    )
    return {
        "plain": _job(linear),
        "noisy": _job(
            noisy,
            global_batch=9,
            micro_batches=3,
            optimizer="adam",
            clip_norm=0.5,
            max_shift=1,
            schedule="one-cycle",
            wire="float16",
            wire_weights="bfloat16",
        ),
        # The short batch of an epoch has two samples for five micro-batches.
        "short": _job(linear, global_batch=6, micro_batches=5, steps=8, schedule="cosine", warmup_steps=2),
        # Stops early, and ends with the weights of an epoch that is not the last.
        "stopped": _job(linear, steps=16, lr=0.02, validation_split=0.3, patience=2, keep_best=True),
        "long": _job(_wide(14_000), steps=4, momentum=0.0, wire="bfloat16"),
        # Two workers make most steps by themselves.
        "paired": _job(_wide(520), global_batch=2, micro_batches=2, steps=30, momentum=0.9, wire_weights="bfloat16"),
        "wide": _job(_wide(520), steps=5),
        "clipped": _job(_wide(520), steps=5, optimizer="adamw", clip_norm=0.1, wire="int8", wire_weights="bfloat16"),
    }


@cache
def size_of(name: str) -> int:
    """Return the number of values in the vector of a job's model."""
    return open_model(jobs()[name].model, 0).layout.size


def job_named(name: str, steps: int | None) -> Job:
    """Return a job, with another number of steps if that is given."""
    job = jobs()[name]
    return job if steps is None else msgspec.structs.replace(job, steps=steps)


#: The jobs whose weights can be split over three servers, the one whose sums travel in several frames, which takes
#: longer, and the one for two workers on a machine.
SHARDED, LONG, PAIRED = ("wide", "clipped"), "long", "paired"
