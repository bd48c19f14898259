"""Small jobs on small data, whose runs take milliseconds, with all that could depend on which worker computes."""

from functools import cache
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.common import nn
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.errors import DataError
from lockstep.common.job.job import Job
from lockstep.common.model.source import default_numerics
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.rules import RULES

#: The names of data in a job: few samples, many, and as many with numbers for labels.
DATA, MANY, NUMBERS = "simulated", "simulated-many", "simulated-numbers"

#: Training and test samples; an epoch ends with a short batch. Of many, one has more steps than a team may be ahead of
#: the server.
TRAIN, TEST, MANY_TRAIN = 20, 9, 161

CLASSES = 3


@cache
def data(name: str = DATA) -> TrainTest:
    """Return some images of noise."""
    count = TRAIN if name == DATA else MANY_TRAIN
    return TrainTest(name, _noise(count, 0, name), _noise(TEST, 1, name))


def _noise(count: int, part: int, name: str) -> Dataset:
    rng = generator(0, Purpose.SIMULATE, at=part)
    images = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    if name == NUMBERS:
        return Dataset(images, rng.random((count, CLASSES)).astype(np.float32), 0)
    return Dataset(images, rng.integers(0, CLASSES, count).astype(np.int64), CLASSES)


def _job(net: nn.Module, **values: Any) -> Job:
    usual = {"data": DATA, "seed": 5, "steps": 6, "lr": 0.05, "global_batch": 8, "micro_batches": 4}
    given = {"numerics": default_numerics(()), **usual, **values}
    return msgspec.convert({**given, "model": dict(describe(net))}, Job)


def _linear(inputs: int) -> nn.Module:
    """Return a net of one layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, CLASSES))


def _wide(width: int) -> nn.Module:
    """Return a net whose weights can be split over several servers, or cut into slices."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, CLASSES))


def _noisy(width: int) -> nn.Module:
    """Return a net that draws numbers, and has statistics of what it sees."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(width, CLASSES),
    )


@cache
def jobs() -> dict[str, Job]:
    """Return the jobs by name."""
    linear = _linear(16)
    return {
        "plain": _job(linear),
        "noisy": _job(
            _noisy(8),
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
        "short": _job(
            linear,
            global_batch=6,
            micro_batches=5,
            steps=8,
            schedule="cosine",
            warmup_steps=2,
            class_weights=(1.0, 2.5, 0.3),
        ),
        # Stops early, and ends with the weights of an epoch that is not the last.
        "stopped": _job(linear, steps=16, lr=0.02, validation_split=0.3, patience=2, keep_best=True),
        "long": _job(_wide(14_000), steps=4, momentum=0.0, wire="bfloat16"),
        "wide": _job(_wide(520), steps=5),
        "clipped": _job(_wide(520), steps=5, optimizer="adamw", clip_norm=0.1, wire="int8", wire_weights="bfloat16"),
        **_team_jobs(),
        **_local_jobs(),
    }


def _local_jobs() -> dict[str, Job]:
    """Return the jobs whose micro-batches take several steps."""
    return {
        # Shares that the local steps do not divide, and in the short batch of an epoch, local steps without samples.
        "local": _job(
            _noisy(8),
            global_batch=9,
            micro_batches=3,
            local_steps=3,
            local_optimizer="adam",
            local_lr=0.01,
            local_clip_norm=0.5,
            local_schedule="one-cycle",
            max_shift=1,
            nesterov=True,
            validation_split=0.1,
            patience=3,
        ),
        "wide-local": _job(
            _wide(520), steps=5, micro_batches=2, local_steps=4, nesterov=True, wire="int8", wire_weights="bfloat16"
        ),
        "team-local": _job(
            _noisy(1_700),
            data=MANY,
            global_batch=12,
            micro_batches=4,
            steps=18,
            local_steps=2,
            local_momentum=0.8,
            local_weight_decay=0.01,
            schedule="cosine",
            max_shift=1,
        ),
    }


def _team_jobs() -> dict[str, Job]:
    """Return the jobs whose steps a team makes by itself, one for each update rule among them.

    Their vectors are cut into one to four slices.
    """
    found = {
        # More than an epoch, in which the rings run full if the server is slow.
        "team-long": _job(_wide(1_700), data=MANY, global_batch=2, micro_batches=2, steps=90, schedule="one-cycle"),
        "team-quick": _job(
            _linear(16), data=MANY, global_batch=2, micro_batches=2, steps=120, momentum=0.0, schedule="step"
        ),
        "team-sevenths": _job(
            _noisy(1_700),
            data=MANY,
            global_batch=9,
            micro_batches=7,
            steps=20,
            optimizer="adam",
            lr=0.003,
            schedule="exponential",
            wire="float16",
            max_shift=1,
        ),
        "team-clipped": _job(
            _noisy(3_300),
            data=MANY,
            global_batch=10,
            micro_batches=5,
            steps=18,
            optimizer="adamw",
            lr=0.003,
            weight_decay=0.1,
            clip_norm=0.1,
            schedule="cosine",
            warmup_steps=4,
            wire_weights="bfloat16",
        ),
        **_team_jobs_of_options(),
    }
    others = [name for name in RULES if name not in {job.optimizer for job in found.values()}]
    return found | {f"{TEAM}{name}": replace(found["team-sevenths"], optimizer=name) for name in others}


def _team_jobs_of_options() -> dict[str, Job]:
    return {
        "team-numbers": _job(
            _wide(1_700),
            data=NUMBERS,
            loss="mse",
            global_batch=6,
            micro_batches=3,
            steps=26,
            optimizer="rmsprop",
            lr=0.001,
            schedule="polynomial",
            wire="int8",
            validation_split=0.2,
            clip_norm=1.0,
        ),
        "team-rounded": _job(
            _wide(3_300),
            data=MANY,
            global_batch=8,
            micro_batches=6,
            steps=20,
            wire="bfloat16",
            nesterov=True,
            class_weights=(1.0, 2.5, 0.3),
        ),
        "team-one": _job(
            _wide(3_300),
            data=MANY,
            global_batch=4,
            micro_batches=1,
            steps=30,
            validation_split=0.1,
            clip_value=0.01,
            ema_decay=0.9,
        ),
    }


@cache
def audited_job() -> Job:
    """Return the job that shows after how many steps an audit finds a worker: no scenario draws it."""
    return _job(_linear(16), data=MANY, global_batch=32, micro_batches=32, steps=30)


def job_named(name: str, steps: int | None) -> Job:
    """Return a job, with another number of steps if that is given."""
    job = audited_job() if name == AUDITED else jobs()[name]
    return job if steps is None else replace(job, steps=steps)


#: The job of `audited_job`.
AUDITED = "audited"

#: The jobs whose weights can be split over three servers, and the one whose sums travel in several frames, which takes
#: longer; and those of a team that is left alone.
SHARDED, LONG, TEAM = ("wide", "clipped"), "long", "team-"

#: The jobs with local steps: for one server, for several, and for a team that is left alone.
LOCAL, LOCAL_SHARDED, LOCAL_TEAM = "local", "wide-local", "team-local"


def load_nothing(name: str) -> TrainTest:
    """Load a dataset on a host that has none, so that the server ships it."""
    raise DataError(f"no dataset {name!r} on this host")
