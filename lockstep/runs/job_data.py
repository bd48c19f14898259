"""The values of a job that follow from its data: the loss, the layers of `dense`, and the length of its training."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.folder import table_at
from lockstep.common.data.source import load
from lockstep.common.errors import ModelError
from lockstep.common.job.job import DENSE, Job, check, default_micro_batches
from lockstep.common.nn.description import describe
from lockstep.common.nn.models import dense

#: Values of a job that are valid with some others alone, by the value that follows from the data if it is not given.
LATER = {"metrics": "loss", "monitor": "loss", "monitor_mode": "loss", "hidden": "model"}

#: The hidden layers of `dense` if a job file names it and not these: those of the shipped job.
HIDDEN = (128, 64)

#: Steps that `dense` makes at least, if its job says nothing of its length, and the limits of its epochs.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 1500, 10, 100
#: Steps of an epoch that its batches aim at, and the limits of these.
STEPS_PER_EPOCH, LEAST_BATCH, MOST_BATCH = 50, 32, 512


def draft_of(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values of a job that can be checked before its data is known."""
    return {name: value for name, value in values.items() if LATER.get(name, name) in given}


def values_of_table(data: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that follow if a job's data is a packed table, and that are not given; else none."""
    table = table_at(data)
    if table is None:
        return {}
    values = {"model": DENSE, "loss": "cross-entropy" if table.classes else "mse"}
    return {name: value for name, value in values.items() if name not in given}


def with_layers(job: Job, given: Mapping[str, Any]) -> Job:
    """Return a job whose model is `dense` with layers that fit its data, and a length that suits it if none is given.

    Raises DataError as `load`, and ModelError for samples that are not arrays of numbers.
    """
    if job.model != DENSE:
        return job
    data = load(job.data)
    hidden = HIDDEN if job.hidden is None else job.hidden
    job = replace(job, model=dict(describe(dense(_shape_of(data), hidden, _outputs_of(data)))), hidden=hidden)
    samples = len(data.train) - int(job.validation_split * len(data.train))
    if "global_batch" not in given and job.local_steps == 1:
        wanted = 2 ** round(math.log2(max(1, samples / STEPS_PER_EPOCH)))
        batch = min(max(wanted, LEAST_BATCH), MOST_BATCH, samples)
        job = replace(job, global_batch=batch)
        if "micro_batches" not in given:
            job = replace(job, micro_batches=default_micro_batches(batch))
    if not {"epochs", "steps"} & set(given):
        epochs = -(-STEPS // -(-samples // job.global_batch))
        job = replace(job, epochs=min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS))
    return check(job)


def _shape_of(data: TrainTest) -> tuple[int, ...]:
    if data.train.images.dtype.names or data.train.images.dtype == np.int32:
        raise ModelError(
            f"model = {DENSE!r} with samples of several arrays, or of tokens: expected one array of numbers for each "
            "sample; give a model of your own"
        )
    return data.train.sample_shape


def _outputs_of(data: TrainTest) -> int:
    values = data.train.values
    return data.train.classes if values.dtype == np.int64 and data.train.classes else math.prod(values.shape[1:])
