"""A run's folder as something to use: its job, and a model with the weights that it came to."""

from dataclasses import dataclass
from pathlib import Path

from common.aggregation.layout import ParameterLayout, layout_of
from common.aggregation.tree import Vector
from common.errors import JobError
from common.job.job import Job
from common.nn.model_source import build_model
from common.nn.module import Module
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.kept_weights import Moment, kept_weights
from lockstep.runs.launch import default_launch
from lockstep.runs.run_dir import JOB
from ps.records.run_folder import WEIGHTS


@dataclass(frozen=True)
class Trained:
    """The weights of a run that was finished, or kept them when it failed."""

    folder: Path
    job: Job
    #: In evaluation mode.
    model: Module
    layout: ParameterLayout
    weights: Vector


def open_trained(folder: Path, moment: Moment = "last") -> Trained:
    """Return what a run came to, in the end or at another moment; a `UsageError` says what is missing or damaged."""
    if not (folder / JOB).is_file() or (moment == "last" and not (folder / WEIGHTS).is_file()):
        raise JobError(f"{str(folder)!r} holds no weights of a run: expected a run folder, with {JOB} and {WEIGHTS}")
    job, _ = resolve(read_values(folder / JOB), {}, default_launch())
    model = build_model(job.model)
    layout = layout_of(model)
    weights = kept_weights(folder, job, layout, moment)
    model.load_state_dict(layout.read(weights))
    return Trained(folder, job, model.eval(), layout, weights)
