"""Examine a job, or a model and data in a notebook, for mistakes that make training fail.

Causes are checked before what follows from them.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lockstep.api.exported_model import ExportedModel, Model, exported
from lockstep.api.job_inputs import Arrays, Frame, takes_data_in_one, temporary_job
from lockstep.checking.checkup.activations import check_activations, check_initial_values, check_norms, signals_of
from lockstep.checking.checkup.data import check_balance, check_classes, check_labels, check_loss, check_samples
from lockstep.checking.checkup.first_steps import check_first_loss, check_rate, check_workers, first_steps
from lockstep.checking.checkup.gradients import check_gradients, check_walk
from lockstep.checking.checkup.target import ExaminationTarget, ExaminedData, Finding, Walk, findings_lines, wrapped
from lockstep.checking.checkup.training import TrialSubject, check_training
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.array_files import open_npz, read_npz
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load, record_parts, with_moments, with_validation
from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job, check_batch
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.job.objective import Objective
from lockstep.common.job.optimizer import check_rule, replica_of
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.initial import initial_weights
from lockstep.common.model.port import Model as PortModel
from lockstep.common.model.source import open_model, read_job_source
from lockstep.common.nn.module import Module
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.environment import cores
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.ps.setup import dry_run, two_samples
from lockstep.runs.job_data import shown_data
from lockstep.runs.run_dir import DATA

#: Losses whose value shows whether anything is learned: that of guessing is known.
TRIED = ("cross-entropy", "nll", "mse")


class Examination(msgspec.Struct, frozen=True):
    """The subject of an examination, and the findings."""

    subject: str
    findings: list[Finding]
    seconds: float

    @property
    def is_healthy(self) -> bool:
        return not self.findings

    @property
    def kinds(self) -> list[str]:
        """The kinds of the findings, in order."""
        return [finding.kind for finding in self.findings]

    def lines(self) -> list[str]:
        """Return the report, one finding below the other."""
        count = "1 finding" if len(self.findings) == 1 else f"{len(self.findings) or 'no'} findings"
        lines = wrapped("", f"{self.subject}: {count} in {self.seconds:.1f} s")
        return lines + findings_lines(self.findings)

    def __repr__(self) -> str:
        return "\n".join(self.lines())


@takes_data_in_one
def doctor(
    model: Model = None, data: str | Path | Arrays | Frame = "mnist", *, walk: Walk = Tensor.backward, **values: Any
) -> Examination:
    """Look for mistakes that make training fail; return the findings, which a notebook shows.

    `model`, `data` and `values` are those of `fit`. A Module is examined as it is, values included, and not changed;
    everything else is built, and initialized from the seed. `walk(loss)` is a backward pass of your own to be examined
    with a Module: it has to add to the `.grad` of the leaves, and `lockstep.common.autograd.graph` has the nodes. Of
    a model of PyTorch, whose layers are its own, the data and a trial of some hundred steps are examined.
    The result prints its findings, and has `is_healthy`, `kinds` and `seconds`.

    Raises what `fit` raises if its arguments cannot be used.
    """
    # A Module is examined itself: the job needs no description of it.
    known = ExportedModel({}) if isinstance(model, Module) else exported(model)
    with temporary_job(known, data, values) as job:
        examined_model = AutogradModel(model) if isinstance(model, Module) else model_of(job)
        name = known.text.name if known.text is not None else job.model_name()
        name = type(model).__name__ if isinstance(model, Module) else name
        kind = "arrays" if Path(job.data).name == DATA else "a table"
        subject = f"{name} on {data if isinstance(data, str | Path) else kind}"
        return _examine(subject, job, examined_model, values.get("workers"), walk)


def examine_job(job: Job, workers: int | None) -> Examination:
    """Look for mistakes in a job that would be trained with `workers`, if their number is given."""
    return _examine(f"{job.model_name()} on {shown_data(job.data)}", job, model_of(job), workers, Tensor.backward)


def model_of(job: Job) -> PortModel:
    """Return a job's model with its initial values."""
    model = open_model(job.model, job.seed)
    model.load(initial_weights(job, model).vector)
    return model


@computing()
@kept_numerics()
def _examine(subject: str, job: Job, model: PortModel, workers: int | None, walk: Walk) -> Examination:
    clock = SystemClock()
    start = clock.now()
    take_numerics(job.numerics)
    if kind_of(job.loss) in (LossKind.OWN, LossKind.LABELS):
        raise _unknown("losses of classes and of numbers", _loss_name(job.loss))
    # They do not change the weights.
    job = msgspec.structs.replace(job, metrics=None, monitor=None, monitor_mode=None)
    own = own_functions(job)
    check_rule(job, own)
    findings = _label_findings(job, job.data)
    if not findings:
        loaded = with_validation(load(job.data), job.validation_split, job.seed)
        if loaded.train.images.dtype.names or loaded.train.labels.dtype.names:
            raise _unknown("samples and labels of one array each", "several inputs or targets, or weights of samples")
        check_batch(job, len(loaded.train))
        if isinstance(model, AutogradModel):
            module = model.module if model.module.training else copy.deepcopy(model.module).train()
            target = ExaminationTarget(job, loaded, module, workers, walk, own=own)
            if job.local_steps > 1:
                # A replica has to learn by itself; the number of workers that help depends on the link.
                target = ExaminationTarget(replica_of(job), loaded, module, None, walk, "local_lr", own)
            findings = list(examined(target, clock, cores()))
        else:
            Objective(job).check_labels(loaded.train, loaded.class_names)
            Objective(job).check_fit(loaded.train, dry_run(model, two_samples(loaded, 0)))
            findings = examined_data(ExaminedData(job, loaded))
        if not findings and is_tried(job):
            tried = replica_of(job) if job.local_steps > 1 else job
            findings = list(check_training(trial_subject(tried, model, loaded, clock, own)))
    return Examination(subject, findings, clock.now() - start)


def _unknown(known: str, given: str) -> ModelError:
    return ModelError(
        f"the doctor knows {known}, and not {given}: train one step, with --steps 1 or fit(..., steps=1), which checks "
        "that the model, the loss and the data go together"
    )


def _loss_name(loss: str) -> str:
    return "a loss of your own" if kind_of(loss) is LossKind.OWN else f"loss = {loss!r}"


def is_tried(job: Job) -> bool:
    """Return whether it is known what guessing costs."""
    return job.loss in TRIED and job.ignore_index is None and not job.class_weights


def own_functions(job: Job) -> OwnCode:
    """Return the functions of the user's own that a job names, besides its model; `ModelError` if one is not there."""
    return read_job_source(msgspec.structs.replace(job, model="mlp")).own_code()


def trial_subject(job: Job, model: PortModel, loaded: TrainTest, clock: Clock, own: OwnCode = NO_CODE) -> TrialSubject:
    """Return the models to try: copies of a Module with its values, or a model of PyTorch with those it begins with."""
    if not isinstance(model, AutogradModel):
        weights = initial_weights(job, model).vector
        return TrialSubject(job, with_moments(loaded), lambda: model, weights, clock, own)
    module, weights = model.module, np.zeros(model.layout.size, np.float32)
    model.layout.write(weights, module.state_dict())
    return TrialSubject(job, with_moments(loaded), lambda: AutogradModel(copy.deepcopy(module)), weights, clock, own)


def _label_findings(job: Job, data: str) -> list[Finding]:
    """Return the faults of the classes in an .npz file, which a dataset would refuse one at a time."""
    path = Path(data).expanduser()
    if Objective(job).is_regression or path.suffix != ".npz" or not path.is_file() or record_parts(str(path)):
        return []
    looked_at = ("x_train", "y_train", "y_test")
    with open_npz(path) as archive:
        if not set(looked_at) <= set(archive.names()):
            return []  # loading it reports what it lacks
    samples, train, test = read_npz(path, looked_at).values()
    is_sequence = train.ndim == 2 and samples.dtype.kind in "iu" and samples.shape == train.shape
    if job.ignore_index is not None:
        train, test = (np.where(labels == job.ignore_index, 0, labels) for labels in (train, test))
    return check_labels(train, test, is_sequence=is_sequence)


def examined_data(examined: ExaminedData) -> list[Finding]:
    """Return the faults of the data, whatever computes."""
    objective, data, findings = examined.objective, examined.data, list[Finding]()
    if not objective.is_regression:
        # Most of a picture is its background.
        may_dominate = bool(objective.job.class_weights) or data.train.labels.ndim > 2
        findings += check_balance(*examined.counted_classes, data.class_names, may_dominate=may_dominate)
    return [*findings, *check_loss(examined), *check_samples(examined)]


def outputs_of(target: ExaminationTarget) -> int:
    """Return the number of outputs per sample or token. Raises ModelError if the outputs have another shape.

    For classes, the number is checked later; for a regression, it has to equal the number of targets.
    """
    train, objective = target.data.train, target.objective
    shape = dry_run(AutogradModel(target.probe()), two_samples(target.data, 0))
    if objective.is_regression or shape[:-1] != (2, *train.labels.shape[1:]):
        objective.check_fit(train, shape)
    return int(objective.rows(np.empty(shape), train.targets).shape[-1])


def examined(target: ExaminationTarget, clock: Clock, cores: int) -> Iterator[Finding]:
    """Yield the findings; checks that make no sense after earlier findings are skipped."""
    target.objective.check_labels(target.data.train, target.data.class_names)
    outputs = outputs_of(target)
    unfit: list[Finding] = []
    if not target.objective.is_regression:
        # The model may have an output for the ignored label, if that is the last.
        is_last = target.job.ignore_index == outputs - 1
        unfit = check_classes(*target.counted_classes, outputs - is_last)
        yield from unfit
    in_data = examined_data(target)
    yield from in_data
    yield from check_initial_values(target.model)
    wrong = check_walk(target.walk) or check_gradients(target)
    yield from wrong
    if unfit:
        return
    signals = signals_of(target, with_backward=not wrong)
    if not any(finding.kind == "scale" for finding in in_data):
        # Units that such columns drown are dead.
        yield from check_activations(signals)
    yield from check_norms(signals)
    yield from check_first_loss(signals)
    if wrong or signals.nonfinite:
        return
    subject = trial_subject(target.job, AutogradModel(target.model), target.data, clock, target.own)
    steps = first_steps(subject)
    yield from check_rate(subject, steps, target.rate_name)
    yield from check_workers(target, steps.step_s, cores)
