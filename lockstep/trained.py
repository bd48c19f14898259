"""A run's folder as something to use: its job, and a model with the weights that it came to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import JobError
from common.job import Job
from common.layout import ParameterLayout, layout_of
from common.model import build_model
from common.nn.module import Module
from common.reduction import Vector
from common.safetensors import read
from lockstep.job_file import read_values, resolve
from lockstep.launch import default_launch
from lockstep.run_dir import JOB
from ps.run_folder import WEIGHTS


@dataclass(frozen=True)
class Trained:
    """The weights of a run that was finished, or kept them when it failed."""

    folder: Path
    job: Job
    #: In evaluation mode.
    model: Module
    layout: ParameterLayout
    weights: Vector


def open_trained(folder: Path) -> Trained:
    """Return what a run came to; a `UsageError` says what is missing or damaged."""
    if not (folder / JOB).is_file() or not (folder / WEIGHTS).is_file():
        raise JobError(f"{str(folder)!r} holds no weights of a run: expected a run folder, with {JOB} and {WEIGHTS}")
    job, _ = resolve(read_values(folder / JOB), {}, default_launch())
    arrays, _ = read(folder / WEIGHTS)
    model = build_model(job.model)
    layout = layout_of(model)
    weights = np.zeros(layout.size, dtype=np.float32)
    layout.write(weights, arrays)
    model.load_state_dict(layout.read(weights))
    return Trained(folder, job, model.eval(), layout, weights)
