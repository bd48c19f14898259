"""Where a patient comes from: a job, or a model and data in a notebook."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.aggregation.layout import layout_of
from common.autograd.tensor import Tensor
from common.data.formats.npz import read_npz
from common.data.source import load, with_validation
from common.errors import JobError
from common.job.job import Job
from common.job.objective import Objective
from common.nn.model_source import build_model
from common.nn.module import Module
from common.runtime.clock import SystemClock
from common.runtime.environment import cores
from lockstep.api.job_inputs import DATA, Arrays, named_arrays
from lockstep.doctor.checks.labels import check_labels
from lockstep.doctor.examination import Examination, examined
from lockstep.doctor.finding import Finding
from lockstep.doctor.target import ExaminationTarget, Walk
from lockstep.runs.job_file import resolve
from lockstep.runs.launch import Launch
from ps.setup import first_weights


def doctor(
    model: Module | str, data: str | Path | Arrays = "mnist", *, walk: Walk = Tensor.backward, **values: Any
) -> Examination:
    """Look for the mistakes that make training fail; return what was found, which a notebook shows.

    `model` is examined as it is, values included, and not changed; a name is built, and drawn from the seed. `data` and
    `values` are those of `fit`. `walk(loss)`, where it is given, is a backward pass of one's own to be examined with
    the model: it has to add to the `.grad` of the leaves, and `common.autograd.graph` has the nodes.

    Raises what `fit` raises where the call cannot be carried out.
    """
    name = type(model).__name__ if isinstance(model, Module) else model
    if isinstance(model, Module):
        job, _ = resolve({"data": "mnist"}, values, Launch())
    else:
        job, _ = resolve({}, {**values, "model": model}, Launch())
        model = model_of(job)
    subject = f"{name} on {data if isinstance(data, str | Path) else 'arrays'}"
    workers = values.get("workers")
    if isinstance(data, str | Path):
        return _examine(subject, job, model, str(data), workers, walk)
    with tempfile.TemporaryDirectory(prefix="lockstep-doctor-") as folder:
        arrays = named_arrays(data)
        found = _labels_of(job, arrays)
        if found:
            return Examination(subject, found, 0.0)
        path = Path(folder) / DATA
        np.savez(path, **arrays)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
        return _examine(subject, job, model, str(path), workers, walk)


def examine_job(job: Job, workers: int | None) -> Examination:
    """Look for mistakes in a job; `workers` are those that somebody asked for."""
    return _examine(f"{job.model_name()} on {job.data}", job, model_of(job), job.data, workers, Tensor.backward)


def model_of(job: Job) -> Module:
    """Return a job's model with the values that its training starts from."""
    model = build_model(job.model).initialize(job.seed)
    layout = layout_of(model)
    model.load_state_dict(layout.read(first_weights(job, model, layout)))
    return model


def _examine(subject: str, job: Job, model: Module, data: str, workers: int | None, walk: Walk) -> Examination:
    clock = SystemClock()
    began = clock.now()
    found: Sequence[Finding] = _labels_in(job, data)
    if not found:
        loaded = with_validation(load(data), job.validation_split, job.seed)
        if job.global_batch > len(loaded.train):
            raise JobError(
                f"global_batch = {job.global_batch!r} is more than the {len(loaded.train)} training samples of "
                f"{data!r}: expected at most as many"
            )
        found = list(examined(ExaminationTarget(job, model, loaded, workers, walk), clock, cores()))
    return Examination(subject, list(found), clock.now() - began)


def _labels_of(job: Job, arrays: dict[str, NDArray[Any]]) -> list[Finding]:
    """Return what is wrong with labels that are to be classes."""
    if Objective.of(job).is_regression:
        return []
    train, test = arrays["y_train"], arrays["y_test"]
    is_sequence = train.ndim == 2 and arrays["x_train"].dtype.kind in "iu" and arrays["x_train"].shape == train.shape
    return check_labels(train, test, is_sequence=is_sequence)


def _labels_in(job: Job, data: str) -> list[Finding]:
    """Return what is wrong with the labels of an .npz: as a dataset they would be refused, one at a time."""
    path = Path(data).expanduser()
    if path.suffix != ".npz" or not path.is_file():
        return []
    return _labels_of(job, read_npz(path, ("x_train", "y_train", "y_test")))
