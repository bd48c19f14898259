"""What a run computes: every value here decides the bits of the result, and nothing else does."""

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.errors import JobError
from common.optim.rules import OptimizerName
from common.runtime.numerics import Numerics

#: Largest real number of a job: TOML knows `inf`, which is not a valid value of anything here and not a number in JSON.
MOST = 1e30

PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Meta(ge=0.0, le=MOST)]
Monitor = Literal["loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
Positive = Annotated[float, Meta(gt=0.0, le=MOST)]


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A training job: the same job gives the same bits, whoever computes it.

    Each field's description is also its help text on the command line.
    """

    model: Annotated[
        str | dict[str, Any],
        Meta(description="linear, mlp, lenet or cnn, or FILE.py:FUNCTION that returns a Module"),
    ] = "lenet"
    data: Annotated[
        str, Meta(description="mnist, a folder of IDX files, or an .npz with x_train, y_train, x_test, y_test")
    ] = "mnist"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="what all random numbers are derived from")] = 0
    epochs: Annotated[PositiveInt, Meta(description="passes over the training set")] = 3
    steps: Annotated[PositiveInt, Meta(description="stop after so many steps, instead of after the epochs")] | None = (
        None
    )
    global_batch: Annotated[PositiveInt, Meta(description="samples of one step, over all workers")] = 128
    micro_batches: Annotated[
        int,
        Meta(ge=1, le=4096, description="micro-batches per step: bounds the useful workers, decides the bits"),
    ] = 8
    initial: (
        Annotated[str, Meta(description="weights to start from (safetensors), instead of drawing them from the seed")]
        | None
    ) = None
    loss: Annotated[
        Literal["cross-entropy", "mse"],
        Meta(description="of classes, or for a regression the mean squared error"),
    ] = "cross-entropy"
    label_smoothing: Annotated[Probability, Meta(description="share of each label spread over all classes")] = 0.0
    wire: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        Meta(description="type that sums of gradients are rounded to and travel in: a part of the bits"),
    ] = "float32"
    wire_weights: Annotated[
        Literal["float32", "bfloat16"],
        Meta(description="the same of weights: workers compute with the rounded ones, servers keep float32"),
    ] = "float32"
    numerics: Annotated[
        Numerics,
        Meta(description="portable: the same bits on every x86-64 processor with AVX2; native: on those of one kind"),
    ] = "native"
    normalize: Annotated[bool, Meta(description="subtract the training set's mean, divide by its deviation")] = True
    max_shift: Annotated[int, Meta(ge=0, le=1024, description="shift each training image by up to so many pixels")] = 0
    optimizer: Annotated[OptimizerName, Meta(description="rule that turns gradients into updates")] = "sgd"
    lr: Annotated[Positive, Meta(description="learning rate; the peak, where a schedule varies it")] = 0.05
    momentum: Annotated[Probability, Meta(description="of sgd and rmsprop")] = 0.9
    nesterov: Annotated[bool, Meta(description="Nesterov's form of momentum, of sgd")] = False
    weight_decay: Annotated[NonNegative, Meta(description="L2 penalty; decoupled in adamw")] = 0.0
    beta1: Annotated[Probability, Meta(description="decay of the first moment, of adam and adamw")] = 0.9
    beta2: Annotated[Probability, Meta(description="decay of the second moment, of adam and adamw")] = 0.999
    alpha: Annotated[Probability, Meta(description="decay of the squared gradient, of rmsprop")] = 0.99
    eps: Annotated[Positive, Meta(description="added to the denominator, of adam, adamw and rmsprop")] = 1e-8
    clip_norm: Annotated[Positive, Meta(description="scale gradients down to this global norm")] | None = None
    schedule: Annotated[
        Literal["constant", "step", "cosine", "one-cycle"], Meta(description="course of the learning rate")
    ] = "constant"
    warmup_steps: Annotated[int, Meta(ge=0, description="steps over which the rate first rises linearly")] = 0
    decay_every: Annotated[PositiveInt, Meta(description="epochs between decays, of the step schedule")] = 1
    decay_factor: Annotated[Positive, Meta(description="what each decay multiplies by, of the step schedule")] = 0.1
    validation_split: Annotated[
        Probability, Meta(description="share of the training set that is kept out of it, and evaluated to choose by")
    ] = 0.0
    patience: (
        Annotated[PositiveInt, Meta(description="stop after so many epochs in a row that were no better  [never]")]
        | None
    ) = None
    monitor: (
        Annotated[Monitor, Meta(description="what makes an epoch better  [val_loss, or test_loss without a split]")]
        | None
    ) = None
    min_delta: Annotated[NonNegative, Meta(description="what a better epoch has to be better by")] = 0.0
    keep_best: Annotated[bool, Meta(description="end with the weights of the best epoch, not of the last one")] = False

    def digest(self) -> str:
        """Return the SHA-256 of all values, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def model_name(self) -> str:
        """Return the model's name, "custom" for one given as data."""
        return self.model if isinstance(self.model, str) else "custom"

    def monitored(self) -> Monitor:
        """Return the figure by which epochs are compared."""
        return self.monitor or ("val_loss" if self.validation_split else "test_loss")

    def total_steps(self, training_samples: int) -> int:
        """Return the number of steps for a training set of that size."""
        return self.steps if self.steps is not None else self.epochs * -(-training_samples // self.global_batch)


def check(job: Job) -> Job:
    """Return the job; `JobError` if two of its values contradict each other."""
    if job.nesterov and (job.optimizer != "sgd" or job.momentum == 0.0):
        raise JobError(
            f"nesterov = true with optimizer = {job.optimizer!r} and momentum = {job.momentum!r}: "
            "expected sgd with momentum above 0; set both or drop nesterov"
        )
    if job.loss == "mse" and job.label_smoothing:
        raise JobError(
            f"label_smoothing = {job.label_smoothing!r} with loss = 'mse': expected 0: a regression has no classes"
        )
    if job.micro_batches > job.global_batch:
        raise JobError(
            f"micro_batches = {job.micro_batches!r} is more than global_batch = {job.global_batch!r}: "
            "expected at least one sample per micro-batch; lower it or raise the batch"
        )
    if job.loss == "mse" and job.monitored().endswith("accuracy"):
        raise JobError(f"monitor = {job.monitor!r} with loss = 'mse', which has no accuracy: expected a loss")
    if job.monitored().startswith("val_") and not job.validation_split:
        raise JobError(
            f"monitor = {job.monitor!r} without a validation set: expected validation_split above 0, as 0.1, or "
            "another figure"
        )
    return job
