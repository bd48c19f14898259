"""The weights that a run begins with: drawn from the seed, set by the model's function, or those of a file.

A file may have them all, or a part: then the rest stays as it was drawn or built. Pure, but for reading the file.

A model is tried on the first samples of its job before the run begins: they are the same on all machines.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler
from lockstep.common.errors import FileFormatError, ModelError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.safetensors import MAX_FILE_BYTES, read
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import Model
from lockstep.common.nn.module import is_counter
from lockstep.common.numerics.random import Purpose, generator, normal

#: In a run's folder, the weights that it began with, if its job names a file of them: that may be gone later.
INITIAL = "initial.safetensors"

#: How a file begins that `torch.save` wrote: as a zip archive, and before PyTorch 1.6 as a pickle.
TORCH_FILE = (b"PK\x03\x04", b"\x80\x02")

#: How names begin that a checkpoint has next to the weights.
IN_CHECKPOINTS = ("optimizer/", "lockstep/")

#: Names that a line lists, at most.
MOST_NAMED = 3


def kept_next_to(model_folder: str) -> Path | None:
    """Return where a run's folder has them, given where it has the model's files; None if that is not known."""
    return Path(model_folder).parent / INITIAL if model_folder else None


def read_weights(path: Path) -> dict[str, Array]:
    """Return the arrays of a file of weights, safetensors or what `torch.save` wrote, by name.

    Nothing of a file is executed. `FileFormatError` if it cannot be read, or has more than arrays.
    """
    try:
        with open_regular(path, MAX_FILE_BYTES) as file:
            start = file.read(max(map(len, TORCH_FILE)))
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be read ({error.strerror}): expected a safetensors file, or one of torch.save"
        ) from None
    if not start.startswith(TORCH_FILE):
        return {name: array for name, array in read(path)[0].items() if not name.startswith(IN_CHECKPOINTS)}
    try:
        # Here, since PyTorch may not be installed, and takes a second to import.
        from lockstep.common.model.pytorch.state_file import read_state
    except ModuleNotFoundError:
        raise FileFormatError(
            f"{path}: was written by torch.save, which needs PyTorch to be read: expected a safetensors file, or "
            "PyTorch to be installed"
        ) from None
    return read_state(path)


class WeightsFit(msgspec.Struct, frozen=True, kw_only=True):
    """The fit of a state dict to a model, as `load_state_dict(strict=False)` reports it."""

    #: The names that both have, as in the layout.
    taken: dict[str, Array]
    #: Trained parameters, statistics and frozen parameters of the model that the file does not have.
    missing: Sequence[str]
    #: The names of the file that the model lacks.
    unexpected: Sequence[str]
    #: By name, the shape in the file and in the model.
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def problems(self) -> str:
        """Return what does not fit, on one line; empty if all does."""
        kinds = (
            ("missing", [repr(name) for name in self.missing]),
            ("unexpected", [repr(one_line(name, 80)) for name in self.unexpected]),
            ("of another shape", [f"{name!r} ({was}, not {is_})" for name, (was, is_) in self.reshaped.items()]),
        )
        return "; ".join(f"{what}: {_first_of(names)}" for what, names in kinds if names)


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def fit_of(layout: ParameterLayout, state: Mapping[str, Array]) -> WeightsFit:
    """Return how a state dict by the layout's names fits; PyTorch's `num_batches_tracked` is ignored."""
    shapes = {entry.name: entry.shape for entry in (*layout.parameters, *layout.statistics)}
    needed = [*shapes, *(each.name for each in layout.frozen if each.is_parameter)]
    shapes |= {each.name: each.array.shape for each in layout.frozen}
    reshaped = {
        name: (array.shape, shapes[name])
        for name, array in state.items()
        if name in shapes and array.shape != shapes[name]
    }
    return WeightsFit(
        taken={name: array for name, array in state.items() if name in shapes and name not in reshaped},
        missing=[name for name in needed if name not in state],
        unexpected=[name for name in state if name not in shapes and not is_counter(name, shapes)],
        reshaped=reshaped,
    )


def read_initial(job: Job, model: Model, copy: Path | None = None) -> WeightsFit | None:
    """Return what a job's file of initial weights has of a model; None if the job names none.

    If there is a `copy`, it is read instead. `ModelError` if the file does not fit, and the job does not allow that it
    has a part only.
    """
    if job.initial is None:
        return None
    is_copy = copy is not None and copy.is_file()
    path = copy if copy is not None and is_copy else Path(job.initial)
    found = fit_of(model.layout, model.own_arrays(read_weights(path)))
    problems = found.problems()
    if problems and (is_copy or not job.initial_partial):
        raise ModelError(
            f"the weights in {str(path)!r} do not fit the model: {problems}: expected all of its values and no "
            "others; to take those that fit, add --set initial_partial=true (in Python, initial_partial=True)"
        )
    if not found.taken:
        raise ModelError(
            f"the weights in {job.initial!r} have nothing that the model has: {problems}: expected its names, as "
            f"{model.layout.parameters[0].name!r}"
        )
    return found


class InitialWeights(msgspec.Struct, frozen=True):
    """The initial weights of a run."""

    vector: Vector
    #: Those in a file, by name; empty without a file.
    taken: Mapping[str, Array]
    #: Notes for the user, a line each.
    notices: Sequence[str]


def initial_weights(job: Job, model: Model, copy: Path | None = None) -> InitialWeights:
    """Return the vector that training starts from, and give the model's frozen values those that it stays with.

    The layout's digest is to be taken after this. `copy` is that of `read_initial`.
    """
    found = read_initial(job, model, copy)
    if found is not None:
        model.adopt(found.taken)
    vector = model.first_weights(job.seed)
    notices = []
    if found is not None:
        model.layout.write(vector, model.layout.read(vector) | found.taken)
        if problems := found.problems():
            notices.append(f"takes {len(found.taken)} arrays of {job.initial!r}, and leaves the rest: {problems}")
    if frozen := model.layout.frozen_size:
        trained = model.layout.parameter_count
        notices.append(f"trains {trained:,} of {trained + frozen:,} parameters: the others are frozen")
    return InitialWeights(vector, {} if found is None else found.taken, notices)


def micro_batch_to_try(job: Job, data: TrainTest, number: int = 0, *, is_here: bool) -> tuple[Array, Array]:
    """Return samples and targets of the shapes of one of the first step's micro-batches, or of its local batches.

    Without the mean and deviation of the training set, which a worker does not always have. If samples are sent to
    workers, so that none `is_here`, numbers are drawn instead; tokens and labels are 0 then, which is always one.
    """
    train = data.train
    indices = Sampler(len(train), job.global_batch, job.local_batches, job.seed).indices(0, number)
    targets = Objective(job).targets(train.labels.take(indices, axis=0))
    if is_here:
        return Preparation(mean=0.0, std=1.0).images(train.images.take(indices, axis=0)), targets
    shape = (len(indices), *train.sample_shape)
    if train.is_tokens:
        return np.zeros(shape, np.int32), np.zeros_like(targets)
    drawn = normal(generator(job.seed, Purpose.CANARY), 0.0, 1.0, shape)
    return drawn.astype(np.float32), np.zeros_like(targets)
