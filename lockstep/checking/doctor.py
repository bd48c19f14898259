"""Examine a job, or a model and data in a notebook, for mistakes that make training fail."""

import copy
from pathlib import Path
from typing import Any

import msgspec

from lockstep.api.exported_model import ExportedModel, Model, exported
from lockstep.api.job_inputs import Arrays, Frame, takes_data_in_one, temporary_job
from lockstep.checking.doctor_checks import check_activations, check_data, check_first_steps, check_gradients
from lockstep.checking.examined_job import SAMPLES, ExaminedJob, Finding, Group
from lockstep.common.aggregation.layout import gather
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.source import load, with_moments
from lockstep.common.job.job import Job, check_batch
from lockstep.common.job.objective import Objective
from lockstep.common.job.optimizer import check_rule, replica_of
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.initial import initial_weights
from lockstep.common.model.port import Model as PortModel
from lockstep.common.model.source import open_model, read_job_source
from lockstep.common.nn.module import Module
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.ps.setup import dry_run, two_samples
from lockstep.runs.job_data import shown_data
from lockstep.runs.run_dir import DATA


class Examination(msgspec.Struct, frozen=True):
    """The findings of an examination."""

    subject: str
    findings: list[Finding]

    @property
    def is_healthy(self) -> bool:
        return not self.findings

    def lines(self) -> list[str]:
        """Return one line for each finding, or that no mistake was found."""
        return [str(finding) for finding in self.findings] or [f"{self.subject}: no findings"]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


@takes_data_in_one
def doctor(model: Model = None, data: str | Path | Arrays | Frame = "mnist", **values: Any) -> Examination:
    """Look for mistakes that make training fail, in the data, gradients, activations and first steps.

    `model`, `data` and `values` are those of `fit`. A Module is examined as it is, values included, and not changed;
    everything else is built, and initialized from the seed. The result prints its findings, each with what to do, and
    has `findings` and `is_healthy`.

    Raises what `fit` raises if its arguments cannot be used.
    """
    # A Module is examined itself: the job needs no description of it.
    known = ExportedModel({}) if isinstance(model, Module) else exported(model)
    with temporary_job(known, data, values) as job:
        kind = "arrays" if Path(job.data).name == DATA else "a table"
        name = known.text.name if known.text is not None else job.model_name()
        shown = f" on {data if isinstance(data, str | Path) else kind}"
        if not isinstance(model, Module):
            return examine_job(job, name + shown)
        own = AutogradModel(copy.deepcopy(model))
        return _examine(type(model).__name__ + shown, job, own, gather(own.module, own.layout))


def examine_job(job: Job, subject: str = "") -> Examination:
    """Look for mistakes in a job."""
    model = open_model(job.model, job.seed)
    weights = initial_weights(job, model).vector
    model.load(weights)
    return _examine(subject or f"{job.model_name()} on {shown_data(job.data)}", job, model, weights)


@computing()
@kept_numerics()
def _examine(name: str, job: Job, model: PortModel, weights: Vector) -> Examination:
    take_numerics(job.numerics)
    # Metrics do not change the weights, and local steps are made as a worker makes them.
    job = msgspec.structs.replace(job, metrics=None, monitor=None, monitor_mode=None)
    own = read_job_source(msgspec.structs.replace(job, model="mlp")).own_code()
    check_rule(job, own)
    data = with_moments(load(job.data))
    check_batch(job, len(data.train))
    objective = Objective(job, own)
    objective.check_labels(data.train, data.class_names)
    objective.check_fit(data.train, dry_run(model, two_samples(data, job.max_shift)))
    job = replica_of(job) if job.local_steps > 1 else job
    batch = min(job.global_batch, SAMPLES)
    short = msgspec.structs.replace(job, global_batch=batch, micro_batches=1, wire="float32", wire_weights="float32")
    subject = ExaminedJob(short, data, model, weights, own)
    findings = [*check_data(subject), *check_gradients(subject)]
    # Wrong gradients make all that follows wrong.
    for check in (check_activations, lambda subject: check_first_steps(subject, job)):
        if not any(finding.group is not Group.DATA for finding in findings):
            findings += check(subject)
    return Examination(name, findings)
