"""From a job and its data to a run that can begin: the model, its first weights, the plan, the shard."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import LINE, Vector
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.manifest import manifest_of
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import fields_of
from lockstep.common.data.source import with_moments, with_validation
from lockstep.common.errors import JobError, LockstepError, ModelError, NumericsError
from lockstep.common.job.job import CONV, DENSE, Job, check_batch
from lockstep.common.job.losses import LossKind
from lockstep.common.job.metrics import Guess
from lockstep.common.job.objective import Objective
from lockstep.common.job.optimizer import check_rule, policy_of, spans_of
from lockstep.common.job.own_code import NO_CODE, OwnCode, transform_of
from lockstep.common.job.tally import Tally
from lockstep.common.model.initial import InitialWeights, initial_weights, kept_next_to, micro_batch_to_try
from lockstep.common.model.port import DrawKey, Evidence, Model
from lockstep.common.model.source import ModelSource, read_job_source
from lockstep.common.numerics.choice import kernels_here
from lockstep.common.optim.rules import Rule, SlotSets
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint_of
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.numerics import Numerics, own_numerics
from lockstep.ps.run.description import describe
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import plan_of
from lockstep.ps.shard.shard import Shard


class RunSetup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run begins with."""

    info: RunInfo
    model: Model
    data: TrainTest
    layout: ParameterLayout
    shard: Shard
    source: ModelSource
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE
    #: Notices to the user about the initial weights and the run's numerics, one per line.
    notices: Sequence[str] = ()


def open_run(
    run: str, job: Job, data: TrainTest, options: RunOptions, source: ModelSource | None = None, model_folder: str = ""
) -> RunSetup:
    """Build what a run begins with; a `UsageError` if the job, the model or the data do not go together.

    `data` is as it was loaded: the validation set is taken from it here. `source` is what the model is built from, by
    default what the job names now. Workers that do not find it look into `model_folder`, next to which a run that began
    before has its initial weights.
    """
    own = _own_fingerprint(job, options)
    dataset, data = data.digest, with_validation(data, job.validation_split, job.seed)
    data = with_moments(data) if job.normalize else data
    check_batch(job, len(data.train))
    source = source or read_job_source(job)
    check_rule(job, code := source.own_code())
    objective = Objective(job, code)
    model = _built(data, options, source, objective)
    initial = _initial(job, model, model_folder)
    evidence, metric_sums = _tried(data, options, source, model, objective, initial)
    plan = plan_of(job, len(data.train), len(data.test), len(data.validation or ()))
    info = RunInfo(
        run=run,
        job=job,
        options=options,
        plan=plan,
        training_samples=len(data.train),
        layout=model.layout.digest(),
        dataset=dataset,
        data=describe(data, job),
        source=source.digest,
        model_files=source.digests(),
        model_folder=model_folder if source.files else "",
        fingerprint=msgspec.structs.replace(own, engine=evidence.engine, evidence=evidence.digest),
        targets=data.train.targets,
        guess=guess_of(objective, data),
        manifest=manifest_of(data) if options.ship_data else None,
        moments=data.train.moments,
        size=model.layout.size,
        metric_sums=metric_sums,
    )
    native = native_notices(job.numerics, evidence.engine, kernels_here().obstacle)
    return RunSetup(
        info=info, model=model, data=data, layout=model.layout, source=source, own=code,
        shard=_shard_of(job, len(data.train), model, initial.vector, code),
        notices=[*initial.notices, *native, *evidence.notices()],
    )  # fmt: skip


def _own_fingerprint(job: Job, options: RunOptions) -> Fingerprint:
    """Return the fingerprint of the numerics of this process; `NumericsError` if they have to be others."""
    if own_numerics() != job.numerics and not options.allow_mixed_numerics:
        raise NumericsError(
            f"numerics = {job.numerics!r} in a process that computes with {own_numerics()} ones: expected "
            "`take_numerics(job.numerics)` before, as the commands of lockstep and fit do it"
        )
    return fingerprint_of(own_numerics())


def _built(data: TrainTest, options: RunOptions, source: ModelSource, objective: Objective) -> Model:
    """Return the model, which takes the samples of the data, and has enough values for all servers."""
    job = objective.job
    objective.check_labels(data.train, data.class_names)
    model = source.build(job.seed)
    if not model.layout.parameter_size:
        raise ModelError(f"model {job.model_name()!r} has no parameters: expected something to train")
    if (transform := transform_of(job, objective.own)) is not None and not options.ship_data:
        one = np.zeros(1, np.int64)
        transform.check(data.train.images.take(one, axis=0), data.train.labels.take(one, axis=0))
    objective.check_fit(data.train, dry_run(model, two_samples(data, job.max_shift)))
    slices_for(model.layout.size, options.servers)  # raises if there are too many
    return model


def _initial(job: Job, model: Model, model_folder: str) -> InitialWeights:
    """Return the initial weights; `ModelError` names the first that is not finite."""
    initial = initial_weights(job, model, kept_next_to(model_folder))
    if not np.isfinite(initial.vector).all():
        name = model.layout.name_at(int(np.flatnonzero(~np.isfinite(initial.vector))[0]))
        raise ModelError(
            f"the initial weights of {name!r} are not finite: expected numbers; check how they are initialized, or the "
            "file that they are read from"
        )
    return initial


def _tried(
    data: TrainTest,
    options: RunOptions,
    source: ModelSource,
    model: Model,
    objective: Objective,
    initial: InitialWeights,
) -> tuple[Evidence, int]:
    """Compute the first micro-batch; return the evidence of its bits, and how many sums of metrics there are.

    If a parameter gets no gradient from it, the other micro-batches of the first step are computed as well.
    """
    job = objective.job
    batch = micro_batch_to_try(job, data, is_here=not options.ship_data)
    evidence = source.check_repeated(model, objective, *batch, initial.taken)
    metric_sums = objective.metrics.size(0)
    if job.metrics or (objective.kind is LossKind.OWN and not evidence.engine):
        metric_sums = len(try_objective(model, objective, *batch).metrics)
    if evidence.engine and job.numerics == "portable":
        raise NumericsError(
            f"numerics = 'portable' with a model that is computed by {evidence.engine}, whose kernels depend on the "
            "processor: expected a model of lockstep.nn; or add --set numerics=native, and give up equal bits on other "
            "kinds of machines"
        )
    if evidence.unused:
        evidence = evidence._replace(unused=_unused_in_step(data, model, objective, initial.vector))
    return evidence, metric_sums


def _unused_in_step(data: TrainTest, model: Model, objective: Objective, weights: Vector) -> tuple[str, ...]:
    """Return the names of the parameters that no micro-batch of the first step has a gradient of."""
    job, engine = objective.job, model.engine(objective)
    engine.bind([weights], [model.layout.new_vector()])
    unused = dict.fromkeys(each.name for each in model.layout.parameters)
    for number in range(job.local_batches):
        if not unused:
            break
        images, targets = micro_batch_to_try(job, data, number, is_here=True)
        try:
            found = engine.inspect(images, targets, DrawKey(job.seed, 0, number)).gradients if len(images) else {}
        except Exception:  # noqa: BLE001  # the run raises it again, and says where
            break
        for name in found:
            unused.pop(name, None)
    return tuple(unused)


def _shard_of(job: Job, samples: int, model: Model, weights: Vector, code: OwnCode) -> Shard:
    policy = policy_of(job, samples, spans_of(job, model.layout), model.momenta(), code)
    if model.layout.alignment > 1:
        for _, rule in policy.rules:
            check_gaps(rule, job)
    return Shard((weights, model.layout.new_vector()), policy, job.micro_batches)


def native_notices(numerics: Numerics, engine: str, obstacle: str) -> list[str]:
    """Return the line about why a run has native numerics, if it could not have portable ones.

    Either an engine other than our autograd computes the model, or an obstacle prevents that kernels are loaded here.
    """
    why = f"{engine} computes the model" if engine else obstacle
    if numerics == "portable" or not why:
        return []
    return [f"numerics = 'native', the same bits only on machines of one kind: {why}"]


def try_objective(model: Model, objective: Objective, images: Vector, targets: NDArray[Any]) -> Tally:
    """Compute a loss and metrics once; `ModelError` if a function of the user's own does not return two numbers."""
    engine, weights = model.engine(objective), model.first_weights(0)
    sums = model.layout.new_vector()
    engine.bind([weights], [sums])
    loss, outputs, weight = engine.evaluate(images, targets)
    return objective.tally(loss, outputs, targets, weight)


def check_gaps(rule: Rule, job: Job) -> None:
    """Raise `JobError` if a rule moves zeros without a gradient, which are between the arrays of a vector."""
    old, new = np.zeros(LINE, np.float32), np.zeros(LINE, np.float32)
    slots = SlotSets(rule.init(LINE))
    for step in range(2):
        with np.errstate(all="ignore"):
            rule.update(old, np.zeros(LINE, np.float32), slots, step, job.lr, new)
        if new.any():
            raise JobError(
                f"optimizer = {job.optimizer!r} makes {float(new[0])!r} of a weight of 0 whose gradient is 0: expected "
                "0, since there are such values between the parameters of a model of PyTorch"
            )
        old, new = new, old


def guess_of(objective: Objective, data: TrainTest) -> Guess | None:
    """Return what R² is measured by over each set; None in a classification."""
    train, test = objective.guess(data.train), objective.guess(data.test)
    validation = None if data.validation is None else objective.guess(data.validation)
    return None if train is None or test is None else Guess(train, test, validation)


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
        if "__array_ufunc__" in raised:
            raised += ": NumPy's functions take no tensors; use those of lockstep.F, or methods as x.tanh()"
        advice = _without_channel(model, images) or _of_other_inputs(images)
        raise ModelError(f"the model cannot take samples {_described(images)}: it raised {raised}{advice}") from error


def _without_channel(model: Model, images: Vector) -> str:
    """Return what to do if the model takes samples without their axis of one channel, as it would a time series."""
    if images.dtype.names is not None or images.ndim != 4 or images.shape[1] != 1:
        return ""
    try:
        model.outputs(images[:, 0])
    except Exception:  # noqa: BLE001  # as above: it is the user's code
        return ""
    return (
        f"; it takes samples of shape {images.shape[2:]}, and arrays (n, height, width) become images of one channel: "
        "begin its forward with x = x.squeeze(1), or pass a dictionary, as {'x': array}, whose keys are the arguments "
        "of forward"
    )


def _of_other_inputs(images: Vector) -> str:
    """Return the number of inputs that samples of plain numbers have, and the shipped model that takes any number."""
    if images.dtype != np.float32 or images.ndim not in (2, 4):
        return ""
    if images.ndim == 4:
        return f": expected a model for this shape, or model = {CONV!r}, which takes pictures of any size"
    return f": expected a model with {images.shape[1]} inputs, or model = {DENSE!r}, which takes any number"


def _described(samples: NDArray[Any]) -> str:
    """Return the shape of a sample; of several arrays, the name, the dtype and the shape of each."""
    if samples.dtype.names is None:
        return f"of shape {samples.shape[1:]}"
    return "of " + ", ".join(
        f"{name!r}, {array.dtype} of shape {array.shape[1:]}" for name, array in fields_of(samples).items()
    )
