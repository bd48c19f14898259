"""Small data and small jobs, so that a run takes a fraction of a second."""

from functools import cache
from typing import Any

import msgspec

from lockstep.common import nn
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.nn.description import describe

#: Training and test samples: neither a batch of 16 nor one of 18 divides the former.
TRAIN, TEST = 40, 30


@cache
def mnist() -> TrainTest:
    """All of MNIST, which takes a second to unpack."""
    return load("mnist")


@cache
def digits() -> TrainTest:
    """The first images of MNIST."""
    return TrainTest("digits", _first(mnist().train, TRAIN), _first(mnist().test, TEST))


@cache
def long_test_set() -> TrainTest:
    """Three pieces of evaluation."""
    return TrainTest("digits", _first(mnist().train, TRAIN), _first(mnist().test, 1100))


@cache
def other_digits() -> TrainTest:
    """Differs from `digits` in one pixel."""
    images = digits().train.images[:].copy()
    images[3, 0, 5, 5] += 1
    return TrainTest("digits", Dataset(images, digits().train.labels, 10), digits().test)


def _first(data: Dataset, count: int) -> Dataset:
    return Dataset(data.images[:count], data.labels[:count], data.classes)


def load_digits(name: str) -> TrainTest:
    return digits()


def job_of(**values: Any) -> Job:
    """Return a job on `digits`: four steps, the third of them short."""
    defaults = {"model": "linear", "data": "digits", "steps": 4, "global_batch": 16, "micro_batches": 4, "seed": 3}
    return msgspec.convert({**defaults, **values}, Job)


def noisy_net() -> dict[str, Any]:
    """A net with dropout and batch normalisation, as data."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 5, stride=3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(192, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(12, 10),
    )
    return dict(describe(net))


def wide_net() -> dict[str, Any]:
    """A net of `WIDE_SIZE` parameters, as data: three frames, of which the first two hold the first layer's weights."""
    layers = nn.Linear(784, 1500), nn.ReLU(), nn.Linear(1500, 300), nn.ReLU(), nn.Linear(300, 10)
    return dict(describe(nn.Sequential(nn.Flatten(), *layers)))


WIDE_SIZE = 1_630_810

#: Jobs for which the promise is shown: the four models, then all that could depend on who computes.
JOBS = {
    "linear": job_of(model="linear"),
    "mlp": job_of(model="mlp", steps=3, optimizer="adam", lr=0.001),
    "lenet": job_of(model="lenet", micro_batches=8, momentum=0.9, nesterov=True),
    "cnn": job_of(model="cnn", steps=2, global_batch=8, optimizer="rmsprop", lr=0.001),
    "noisy": job_of(
        model=noisy_net(),
        global_batch=18,
        micro_batches=6,
        max_shift=2,
        label_smoothing=0.1,
        clip_norm=0.5,
        optimizer="adamw",
        lr=0.01,
        weight_decay=0.01,
        schedule="one-cycle",
    ),
    # Eight local steps of one sample each; in the short batch of an epoch, three of four have none.
    "local-mlp": job_of(
        model="mlp", steps=3, global_batch=32, local_steps=8, local_lr=0.05, lr=0.7, momentum=0.6, nesterov=True
    ),
    # Four samples of each micro-batch in two local steps.
    "local-lenet": job_of(model="lenet", steps=3, local_steps=2, local_lr=0.1, momentum=0.9, nesterov=True),
    # Six samples in four local steps; the short batch of an epoch has four samples for twelve of them.
    "local": job_of(
        model=noisy_net(),
        global_batch=18,
        micro_batches=3,
        max_shift=2,
        label_smoothing=0.1,
        lr=0.7,
        momentum=0.9,
        nesterov=True,
        local_steps=4,
        local_optimizer="adamw",
        local_lr=0.01,
        local_weight_decay=0.01,
        local_clip_norm=0.5,
        local_schedule="one-cycle",
    ),
    # The sums of each micro-batch are divided by a number that nobody knows before.
    "weighted": job_of(
        model=noisy_net(),
        class_weights=[0.5, 1.0, 2.0, 0.25, 1.0, 3.0, 0.1, 1.0, 1.5, 0.7],
        ignore_index=7,
        no_decay=["vectors"],
        lr_factors=["0.*=0.5"],
        weight_decay=0.1,
        clip_norm=0.5,
        clip_value=0.1,
        ema_decay=0.5,
        schedule="polynomial",
        min_lr=0.001,
    ),
    # The last batch of an epoch has 40 - 38 = 2 samples for five micro-batches: three are empty.
    "short": job_of(model="linear", global_batch=19, micro_batches=5, steps=7, schedule="cosine", warmup_steps=2),
    # Stops after six epochs of two steps, and ends with the weights of the fourth.
    "stopped": job_of(
        model="linear", steps=None, epochs=12, lr=0.002, validation_split=0.25, patience=2, keep_best=True
    ),
}
