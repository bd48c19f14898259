"""A run's folder as something to use: its job, its data, and a model with the weights of a moment of the run."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.aggregation.layout import ParameterLayout, weights_digest
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load, with_validation
from lockstep.common.errors import DataError, FileFormatError, JobError
from lockstep.common.files.safetensors import read
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.model.port import Model
from lockstep.common.numerics.sums import first_not_finite
from lockstep.ps.checkpoint.checkpoint import Checkpoint, CheckpointFolder
from lockstep.ps.records.run_folder import AVERAGE_WEIGHTS, CHECKPOINTS, JOB, RECEIPT, WEIGHTS, read_receipt
from lockstep.ps.run.description import DataDescription, describe
from lockstep.ps.run.plan import best_epoch
from lockstep.runs.run_dir import (
    DATA,
    DATA_FOLDER,
    check_data,
    finished,
    has_begun,
    recorded_job,
    trusted_source,
)

#: Runs that an error names, at most.
MOST_NAMED = 8

#: The number of steps after which they were kept, or a name.
Moment = Literal["last", "best", "ema"] | int


def kept_weights(folder: Path, job: Job, model: Model, moment: Moment) -> tuple[Vector, int]:
    """Return a run's weights and after how many steps they are, and give the model its frozen arrays.

    `JobError` if these were not kept, `ModelError` if they are another model's.
    """
    if moment == "last":
        return _written(folder / WEIGHTS, model)
    if moment == "ema":
        if not (folder / AVERAGE_WEIGHTS).is_file():
            raise JobError(f"{str(folder)!r} has no {AVERAGE_WEIGHTS}: expected a finished run with ema_decay")
        return _written(folder / AVERAGE_WEIGHTS, model)
    checkpoints = list(CheckpointFolder(folder / CHECKPOINTS).back_from(sys.maxsize))
    if moment == "best":
        return _best(folder, job, model, checkpoints)
    found = next((checkpoint for checkpoint in checkpoints if checkpoint.progress.steps == moment), None)
    if found is not None:
        return _own(found, model)
    raise JobError(f"{str(folder)!r} holds no whole checkpoint after {moment} steps: {_advice(folder, checkpoints)}")


def _written(path: Path, model: Model) -> tuple[Vector, int]:
    arrays, metadata = read(path)
    steps = metadata.get("steps", "0")
    return _vector(arrays, model), int(steps) if steps.isdecimal() else 0


def _vector(arrays: Mapping[str, NDArray[Any]], model: Model) -> Vector:
    """Return the weights among a state dict's arrays, and give the model its frozen arrays."""
    model.adopt(arrays)
    weights = np.zeros(model.layout.size, dtype=np.float32)
    model.layout.write(weights, arrays)
    return weights


def _weights_in(arrays: Mapping[str, NDArray[Any]], model: Model) -> Vector:
    """Return the same of arrays of which some are not weights: a checkpoint has the optimizer's slots too."""
    names = model.layout.read(np.empty(model.layout.size, np.float32))
    return _vector({name: arrays[name] for name in names if name in arrays}, model)


def _own(checkpoint: Checkpoint, model: Model) -> tuple[Vector, int]:
    return _weights_in(checkpoint.arrays, model), checkpoint.progress.steps


def _best(folder: Path, job: Job, model: Model, checkpoints: Sequence[Checkpoint]) -> tuple[Vector, int]:
    result = finished(folder)
    history = result.history if result else checkpoints[0].progress.history if checkpoints else []
    best = best_epoch(job, history)
    if best is None:
        raise JobError(f"{str(folder)!r} has no finished epoch, and so no best one: expected at least one")
    if result is not None and result.weights_sha256 == best.weights_sha256:
        return kept_weights(folder, job, model, "last")
    # By their digest: a checkpoint of the epoch's last step may have been taken before the epoch was evaluated.
    for kept in (_own(checkpoint, model) for checkpoint in checkpoints):
        if weights_digest(kept[0]) == best.weights_sha256:
            return kept
    raise JobError(
        f"{str(folder)!r} holds no checkpoint of its best epoch, which was {best.epoch}: "
        f"{_advice(folder, checkpoints)}; a run with --set keep_best=true always has it"
    )


def _advice(folder: Path, checkpoints: Sequence[Checkpoint]) -> str:
    steps = [str(checkpoint.progress.steps) for checkpoint in reversed(checkpoints)]
    has_last = (folder / WEIGHTS).exists()
    if has_last and not steps:
        return "it has only its last weights (a zip leaves checkpoints out): to use these, remove --checkpoint"
    there = [f"--checkpoint {step}" for step in steps] + ["--checkpoint last"] * has_last
    return f"expected {', '.join(there)}" if there else "it has none"


class Trained(msgspec.Struct, frozen=True, dict=True):
    """The weights of a run that was finished, or kept them when it failed."""

    folder: Path
    job: Job
    #: With these weights.
    model: Model
    weights: Vector
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE

    @cached_property
    def data(self) -> DataDescription:
        """The data of the training without its samples; raises as `description_of`.

        `DataError` also for a table with a loss of labels, which earlier versions trained: outputs of one class each
        would be taken for those of labels.
        """
        found = description_of(self.folder, self.job)
        if found.is_table and kind_of(self.job.loss) is LossKind.LABELS:
            raise DataError(
                f"the run in {str(self.folder)!r} was trained on a table with loss = {self.job.loss!r}, of which "
                "nothing can be predicted: train it again with --loss cross-entropy, for a target of two classes"
            )
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the model's `load_state_dict` takes."""
        return self.model.state_dict()

    def with_data(self, data: str | None) -> "Trained":
        """Return the same, with the run's data where it is now; raises as `job_with_data`."""
        return replace(self, job=job_with_data(self.folder, self.job, data))


def open_trained(folder: Path, moment: Moment = "last") -> Trained:
    """Return a run's weights, the last ones or others; a `UsageError` names the missing or damaged file.

    The model is built from what the run was trained with; `ModelError` as of `trusted_source`.
    """
    if not (folder / JOB).is_file() or (moment == "last" and not (folder / WEIGHTS).is_file()):
        # By name, so that the newest of `runs` is the last.
        found = sorted(one_line(str(weights.parent), 200) for weights in folder.glob(f"*/{WEIGHTS}"))
        more = f", and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
        there = f"; the runs in it: {', '.join(found[-MOST_NAMED:])}{more}" if found else ""
        if not folder.exists():
            raise JobError(f"there is no folder {str(folder)!r}: expected that of a run, with {JOB} and {WEIGHTS}")
        if has_begun(folder) and finished(folder) is None:
            again = f"lockstep train --resume {shlex.quote(str(folder))}"
            kept = list(CheckpointFolder(folder / CHECKPOINTS).back_from(sys.maxsize))
            earlier = f"; or use a checkpoint: {_advice(folder, kept)}" if kept else ""
            raise JobError(f"the run in {str(folder)!r} is not finished: resume it with `{again}`{earlier}")
        raise JobError(
            f"{str(folder)!r} holds no weights of a run: expected a run folder, with {JOB} and {WEIGHTS}{there}"
        )
    job = recorded_job(folder)
    source = trusted_source(folder, job)
    model = source.build(job.seed)
    weights, steps = kept_weights(folder, job, model, moment)
    _check_finite(folder, weights, model.layout, moment)
    model.load(weights, steps)
    return Trained(folder, job, model, weights, source.own_code())


def _check_finite(folder: Path, weights: Vector, layout: ParameterLayout, moment: Moment) -> None:
    """Raise FileFormatError for weights with which nothing can be computed: a run diverged, or the file was changed."""
    position = first_not_finite(weights)
    if position is not None:
        where = str(folder / WEIGHTS) if moment == "last" else f"{str(folder)!r}: checkpoint {moment}"
        raise FileFormatError(
            f"{one_line(where)}: {layout.name_at(position)!r} has the value {weights[position]}: expected finite "
            "numbers; take other weights with --checkpoint, or train again with a lower lr"
        )


def model_with(folder: Path, job: Job, arrays: Mapping[str, NDArray[Any]], steps: int) -> Any:
    """Return a run's model, of PyTorch or of `lockstep.nn`, with the weights after so many steps, in evaluation mode.

    `arrays` may have more than the weights. `ModelError` as of `trusted_source`.
    """
    model = trusted_source(folder, job).build(job.seed)
    model.load(_weights_in(arrays, model), steps)
    return model.module


def job_with_data(folder: Path, job: Job, data: str | None) -> Job:
    """Return the job of the run in a folder with its data where that is now; None if it is where it was.

    `DataError` if it is other data: another mean, deviation or code of a text would give other predictions.
    """
    if data is None:
        return job
    check_data(folder, data, load(data).digest)
    return msgspec.structs.replace(job, data=data)


def has_data(job: Job) -> bool:
    """Tell whether a job's data is where the job names it."""
    return job.data == "mnist" or Path(job.data).expanduser().exists()


def demand_data(folder: Path, job: Job, flag: str = "--training-data") -> None:
    """Raise `DataError` if the data of a run is not where its job names it; `flag` is that for another place."""
    if not has_data(job):
        advice = data_advice(folder, job, flag)
        raise DataError(f"the run in {str(folder)!r} needs its training data, which is not here: {advice}")


def data_advice(folder: Path, job: Job, flag: str = "--training-data") -> str:
    """Return what to do if the data of the run in a folder is not where its job names it."""
    kept = read_receipt(folder).data if (folder / RECEIPT).is_file() else None
    if kept is not None and kept.origin.version and kept.origin.source:
        source = kept.origin.source
        packed = f"{Path(source).stem}.data"
        command = kept.origin.pack_command(packed)
        return (
            f"make it again with `{command}`, and add `{flag} {shlex.quote(packed)}`; or add the source itself, "
            f"`{flag} {shlex.quote(source)}`"
        )
    if job.data in (DATA, DATA_FOLDER):
        place = "in the run's folder, where `fit` keeps it and a zip leaves it out, or where it was trained"
    elif Path(job.data).expanduser().is_absolute():
        place = "where it was trained"
    else:
        place = "relative to the folder in which the command is run, as it was when it was trained"
    return f"expected {job.data!r} {place}; name another place by adding `{flag} DATA`"


def dataset_of(folder: Path, job: Job) -> TrainTest:
    """Return the data of the run in a folder, with its validation set taken from the training set; as `demand_data`."""
    demand_data(folder, job)
    data = load(job.data)
    if job.data != "mnist" and (folder / RECEIPT).is_file():
        check_data(folder, job.data, data.digest)
    return with_validation(data, job.validation_split, job.seed)


def description_of(folder: Path, job: Job) -> DataDescription:
    """Return the description of a run's data that its folder has; without one it is made of the data.

    `DataError` if the data is not here either.
    """
    kept = read_receipt(folder).data if (folder / RECEIPT).is_file() else None
    return kept or describe(dataset_of(folder, job), job)
