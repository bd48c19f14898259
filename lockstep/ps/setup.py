"""From a job and its data to a run that can begin: the model, its first weights, the plan, the shard."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.manifest import manifest_of
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.source import with_moments, with_validation
from lockstep.common.errors import JobError, LockstepError, ModelError, NumericsError
from lockstep.common.files.safetensors import read
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.score import Guess
from lockstep.common.model.first_batch import first_micro_batch
from lockstep.common.model.port import Model
from lockstep.common.model.source import ModelSource, read_model_source
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.runtime.numerics import NUMERICS
from lockstep.ps.run.info import AdmissionPolicy as AdmissionPolicy
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import plan_of
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard.update_policy import policy_of


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """All that a run begins with."""

    info: RunInfo
    model: Model
    data: TrainTest
    layout: ParameterLayout
    shard: Shard
    source: ModelSource


def open_run(
    run: str,
    job: Job,
    data: TrainTest,
    admission: AdmissionPolicy,
    source: ModelSource | None = None,
    model_folder: str = "",
) -> RunSetup:
    """Build what a run begins with; a `UsageError` if the job, the model or the data do not go together.

    `data` is as it was loaded: the validation set is taken from it here. `source` is what the model is built from, by
    default what the job names now. Workers that do not find it look into `model_folder`.
    """
    own = fingerprint()
    if own.mode != job.numerics and not admission.allows_mixed_numerics:
        raise NumericsError(
            f"numerics = {job.numerics!r} in a process that has {own.mode} ones: expected one that was started with "
            f"{NUMERICS}={job.numerics} in its environment, as the commands of lockstep and fit do"
        )
    dataset, data = data.digest, with_moments(with_validation(data, job.validation_split, job.seed))
    if job.global_batch > len(data.train):
        raise JobError(
            f"global_batch = {job.global_batch!r} is more than the {len(data.train)} training samples of "
            f"{job.data!r}: expected at most as many"
        )
    objective = Objective.of(job)
    objective.check_labels(data.train, data.class_names)
    source = source or read_model_source(job.model)
    model = source.build(job.seed)
    layout = model.layout
    if not layout.parameter_size:
        raise ModelError(f"model {job.model_name()!r} has no parameters: expected something to train")
    objective.check_fit(data.train, dry_run(model, two_samples(data, job.max_shift)))
    slices_for(layout.size, admission.servers)  # raises if there are too many
    source.check_repeated(model, job.seed)
    evidence = model.evidence(objective, *first_micro_batch(job, data, is_here=not admission.ships_data))
    if evidence.engine and job.numerics == "portable":
        raise NumericsError(
            f"numerics = 'portable' with a model that {evidence.engine} computes, whose kernels are chosen by the "
            "processor: expected a model of lockstep.nn, or numerics = 'native'"
        )
    plan = plan_of(job, len(data.train), len(data.test), len(data.validation or ()))
    info = RunInfo(
        **vars(admission),
        run=run,
        job=job,
        plan=plan,
        training_samples=len(data.train),
        layout=layout.digest(),
        dataset=dataset,
        source=source.digest,
        model_files=source.digests(),
        model_folder="" if source.files is None else model_folder,
        fingerprint=msgspec.structs.replace(own, engine=evidence.engine, evidence=evidence.digest),
        targets=data.train.targets,
        guess=guess_of(objective, data),
        manifest=manifest_of(data) if admission.ships_data else None,
        moments=data.train.moments,
        size=layout.size,
    )
    weights = first_weights(job, model)
    policy = policy_of(job, plan, layout.parameter_size, model.momenta())
    shard = Shard((weights, np.zeros_like(weights)), policy, job.micro_batches)
    return RunSetup(info=info, model=model, data=data, layout=layout, shard=shard, source=source)


def guess_of(objective: Objective, data: TrainTest) -> Guess | None:
    """Return what R² is measured by over both sets; None in a classification."""
    train, test = objective.guess(data.train), objective.guess(data.test)
    return None if train is None or test is None else Guess(train, test)


def first_weights(job: Job, model: Model) -> Vector:
    """Return the vector that training starts from: the seed's, or that of the file that the job names."""
    weights = model.first_weights(job.seed)
    if job.initial is not None:
        arrays, _ = read(Path(job.initial))
        model.layout.write(weights, model.own_arrays(arrays))
    return weights


def two_samples(data: TrainTest, max_shift: int) -> Vector:
    """Return two prepared samples; `DataError` if they cannot be shifted."""
    images, labels = (np.repeat(array[:1], 2, axis=0) for array in (data.train.images, data.train.labels))
    return Preparation.of(Dataset(images, labels, data.train.classes), max_shift).images(images)


def dry_run(model: Model, images: Vector) -> tuple[int, ...]:
    """Return the shape of the model's output for `images`; `ModelError` if it raises."""
    try:
        return tuple(model.outputs(images).shape)
    except LockstepError:
        raise
    except Exception as error:
        raised = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"the model cannot take samples of shape {images.shape[1:]}: it raised {raised}") from error
