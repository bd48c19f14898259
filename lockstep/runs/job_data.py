"""The values of a job that follow from its data: the model, its layers, the loss, and the length of training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import MANIFEST, read_manifest, table_at
from lockstep.common.data.source import load
from lockstep.common.errors import DataError, ModelError
from lockstep.common.job.job import CONV, DENSE, MOST_SCALED, SIZED, Job, check, default_micro_batches
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.nn.description import describe
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.models import conv, dense
from lockstep.common.numerics.sums import halved_sums
from lockstep.runs.job_file import SHIPPED, named, shipped_values

#: Values of a job that are valid with some others alone, by the value that follows from the data if it is not given.
LATER = {"target_scale": "loss", "metrics": "loss", "monitor": "loss", "monitor_mode": "loss", "hidden": "model"}

#: The samples, their classes, and at least so many samples to train on, for which LeNet is the model by default; `conv`
#: is for all other pictures.
LENET_SHAPE, LENET_CLASSES, LENET_SAMPLES = (1, 28, 28), 10, 1000

#: Steps that a job makes at least, if it says nothing of its length, and the most epochs for that; the fewest of
#: a model whose layers follow from the data, and of one of the user's.
STEPS, MOST_EPOCHS = 1500, 100
LEAST_EPOCHS, LEAST_OWN_EPOCHS = 10, Job().epochs
#: Steps of an epoch that the batches of such a model aim at, and the limits of these.
STEPS_PER_EPOCH, LEAST_BATCH, MOST_BATCH = 50, 32, 512

#: Numbers to predict stay as they are if all together have a mean at most so far from 0, and a deviation within these:
#: they were scaled before, or a sigmoid or a tanh at the end of a model is to reach them.
NEAR, LEAST_DEVIATION, MOST_DEVIATION = 1.0, 0.1, 2.0
#: Numbers to predict whose scale is told.
MOST_TOLD = 3


def draft_of(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values of a job that can be checked before its data is known."""
    return {name: value for name, value in values.items() if LATER.get(name, name) in given}


def shown_data(data: str) -> str:
    """Return how a person calls a job's data: a folder that was packed on the way by the name of its source.

    The paths that people write are relative, mostly; those of the cache and of a run's folder are not.
    """
    folder = Path(data)
    if folder.is_absolute() and (folder / MANIFEST).is_file():
        return str(named(read_manifest(folder).origin.source))
    return data


def values_of_data(data: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that follow if a job's data is a packed table, vectors, or pictures that LeNet does not take.

    Values that are given are left out, and the others of vectors and pictures follow only if no model is given.
    """
    table = table_at(data)
    if table is not None:
        values = {"model": DENSE, "loss": "cross-entropy" if table.classes else "mse"}
    elif "model" not in given and (train := _arrays_at(data)) is not None:
        model = CONV if train.images.ndim == 4 else DENSE
        values = {"model": model, "loss": "cross-entropy" if train.classes else "mse"}
    else:
        return {}
    return {name: value for name, value in values.items() if name not in given}


def _arrays_at(data: str) -> Dataset | None:
    """Return a job's training set if it has vectors or pictures, but not LeNet's."""
    if data == Job().data:
        return None
    try:
        train = load(data).train
    except DataError:  # it is raised again where the samples are needed
        return None
    if train.images.dtype.names or train.images.ndim not in (2, 4):
        return None
    is_of_lenet = train.sample_shape == LENET_SHAPE and train.classes == LENET_CLASSES
    is_one_each = train.targets == 1
    return None if is_of_lenet and is_one_each and len(train) >= LENET_SAMPLES else train


def with_data_values(job: Job, given: Mapping[str, Any]) -> Job:
    """Return a job with the values that follow from its data: the layers of `dense` and `conv`, a length, and the scale
    of numbers to predict.

    The batch has at most as many samples as there are, and the other shipped jobs keep their length. Raises DataError
    as `load`, and for a table with a loss of labels; ModelError for samples or labels that are not arrays of numbers.
    """
    if kind_of(job.loss) is LossKind.LABELS and table_at(job.data) is not None:
        raise DataError(
            f"loss = {job.loss!r} with the table {shown_data(job.data)!r}: expected loss = 'cross-entropy', for one "
            "target of two classes, or arrays with several labels, which are 0 or 1, (n, labels), as in an .npz"
        )
    has_all = has_length(given) or job.model in SHIPPED
    may_scale = kind_of(job.loss) is LossKind.NUMBERS and job.target_scale is None
    if job.model not in SIZED and not may_scale and has_all and ("global_batch" in given or job.data == Job().data):
        return job
    try:
        data = load(job.data)
    except DataError:
        if job.model in SIZED:
            raise
        return job  # it is raised again where the samples are needed
    if may_scale and table_at(job.data) is None:  # a table has scaled columns already, or none by an option
        job = replace(job, target_scale=_scale_of(data.train.values))
    if job.model in SIZED:
        has_all, job = has_length(given), _with_layers(job, data)
    samples = len(data.train) - int(job.validation_split * len(data.train))
    if "global_batch" not in given and job.local_steps == 1:
        job = _with_batch(job, given, samples)
    if not has_all:
        epochs = -(-STEPS // -(-samples // job.global_batch))
        job = replace(job, epochs=min(max(epochs, _least_epochs(job)), MOST_EPOCHS))
    return check(job)


def _scale_of(values: NDArray[Any]) -> tuple[float, ...] | None:
    """Return mean and deviation of numbers to predict, (n, ...), for each of a few; None if they stay as they are."""
    if values.dtype.names:
        return None
    rows = values.reshape(len(values), -1)
    means, deviations = _moments(rows.reshape(-1, 1))
    if abs(means[0]) <= NEAR and LEAST_DEVIATION <= deviations[0] <= MOST_DEVIATION:
        return None
    if values.ndim <= 2 and rows.shape[1] <= MOST_SCALED:
        means, deviations = _moments(rows)
    return tuple(np.stack([means, deviations], axis=1).reshape(-1).tolist())


def _moments(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of each column, 1 if that is 0: by sums that have the same bits everywhere."""
    columns = rows.T.astype(np.float64)
    low, high = columns.min(axis=1), columns.max(axis=1)
    # The mean of equal values may be rounded, and their deviation is then not 0.
    means = np.where(low == high, low, halved_sums(columns) / len(rows))
    deviations = np.sqrt(halved_sums(np.square(columns - means[:, np.newaxis])) / len(rows))
    return means, np.where(deviations > 0.0, deviations, 1.0)


def scale_note(job: Job, given: Mapping[str, Any]) -> str:
    """Return by what the numbers to predict are scaled, if `with_data_values` chose that; else an empty string."""
    scale = job.target_scale
    if scale is None or "target_scale" in given:
        return ""
    facts = [
        f"mean {mean:.4g}, deviation {deviation:.4g}"
        for mean, deviation in zip(scale[::2][:MOST_TOLD], scale[1::2], strict=False)
    ]
    more = f"; {len(scale) // 2 - MOST_TOLD} more" if len(scale) > 2 * MOST_TOLD else ""
    return f"targets: {'; '.join(facts)}{more}: scaled (target_scale = 0,1 leaves them as they are)"


def has_length(given: Mapping[str, Any]) -> bool:
    """Tell whether some values of a job say how long it is."""
    return not {"epochs", "steps"}.isdisjoint(given)


def length_reason(job: Job, given: Mapping[str, Any]) -> str:
    """Return why a job is as long as it is, if `with_data_values` chose that; else an empty string."""
    if job.model in SHIPPED or has_length(given):
        return ""
    most = {MOST_EPOCHS: "the most that are chosen", _least_epochs(job): "the fewest that are chosen"}
    why = most.get(job.epochs, f"as many as make {STEPS:,} steps")
    return f"epochs = {job.epochs} for this data, with global_batch = {job.global_batch}: {why}"


def _least_epochs(job: Job) -> int:
    return LEAST_OWN_EPOCHS if job.hidden is None else LEAST_EPOCHS


def suited_batch(samples: int) -> int:
    """Return the batch with which small networks learn from so many samples."""
    wanted: int = 2 ** round(math.log2(max(1, samples / STEPS_PER_EPOCH)))
    return min(max(wanted, LEAST_BATCH), MOST_BATCH)


def _with_batch(job: Job, given: Mapping[str, Any], samples: int) -> Job:
    """Return a job with a batch that suits so many samples; that of a model of the user's is only limited by them."""
    batch = min(job.global_batch, samples)
    if job.hidden is not None:
        batch = min(suited_batch(samples), samples)
    if batch == job.global_batch:
        return job
    job = replace(job, global_batch=batch)
    return job if "micro_batches" in given else replace(job, micro_batches=default_micro_batches(batch))


def _with_layers(job: Job, data: TrainTest) -> Job:
    """Return a job of `dense` or `conv` with the layers that the data asks for."""
    name, images = job.model_name(), data.train.images
    if images.dtype.names or images.dtype == np.int32:
        raise ModelError(
            f"model = {name!r} with samples of several arrays, or of tokens: expected one array of numbers for each "
            "sample; give a model of your own"
        )
    hidden = hidden_of(name) if job.hidden is None else job.hidden
    model = sized(name, data.train.sample_shape, hidden, _outputs_of(job, data))
    return replace(job, model=dict(describe(model)), hidden=hidden)


def hidden_of(model: str) -> tuple[int, ...]:
    """Return the sizes that the hidden layers of `dense`, or the maps of those of `conv`, have by default."""
    return tuple(shipped_values(model)["hidden"])


def sized(model: str, sample_shape: tuple[int, ...], hidden: tuple[int, ...], outputs: int) -> Sequential:
    """Return `dense` or `conv` for samples of a shape; ModelError if they are not pictures, which `conv` takes."""
    if model == DENSE:
        return dense(sample_shape, hidden, outputs)
    if len(sample_shape) != 3:
        raise ModelError(
            f"model = {model!r} with samples of shape {sample_shape}: expected pictures, of channels, height and "
            f"width; model = {DENSE!r} takes any numbers"
        )
    return conv(sample_shape, hidden, outputs)


def _outputs_of(job: Job, data: TrainTest) -> int:
    values = data.train.values
    if values.ndim > 2 and kind_of(job.loss) is not LossKind.OWN:
        raise ModelError(
            f"model = {job.model_name()!r} with labels of shape {values.shape[1:]}: expected a class, or some numbers, "
            "for each sample; give a model of your own"
        )
    # Whole numbers may be numbers to predict, or labels that hold or do not.
    are_classes = values.dtype == np.int64 and kind_of(job.loss) not in (LossKind.NUMBERS, LossKind.LABELS)
    return data.train.classes if are_classes and data.train.classes else math.prod(values.shape[1:])
