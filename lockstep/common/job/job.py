"""The job of a run: every value here decides the bits of the result, and nothing else does."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from lockstep.common.data.columns import Real
from lockstep.common.errors import JobError, nearest
from lockstep.common.files.sanitize import cut
from lockstep.common.job.losses import LOSSES, LossKind, has_accuracy, kind_of
from lockstep.common.job.metrics import KNOWN, METRICS, MOST_METRICS, Metrics, is_named, metric_name, metric_of
from lockstep.common.optim.rules import RULES, RuleName, rules_with
from lockstep.common.runtime.numerics import Numerics

#: Largest real number of a job: TOML knows `inf`, which is not a valid value of anything here and not a number in JSON.
MOST = 1e30

PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Meta(ge=0.0, le=MOST)]
Positive = Annotated[float, Meta(gt=0.0, le=MOST)]

#: The mark of a share of something, which may be given in per cent on the command line.
SHARE = Meta(extra={"is_share": True})


#: Characters of a value in an error.
MOST_TOLD = 200

#: The default number of micro-batches of a step, and the samples that each has at least. Smaller ones make products
#: too narrow: a step of mlp with 64 images takes 1.2 times as long in four micro-batches as in one, and 1.4 in eight;
#: one with 32 images 1.0 times in two, and 2.2 in eight.
MICRO_BATCHES, LEAST_SAMPLES = 8, 16

#: The most numbers of a sample that have each a mean and a deviation of their own.
MOST_SCALED = 256

#: The names of the models whose sizes follow from the data: for tables, and for pictures.
SIZED = DENSE, CONV = "dense", "conv"

#: The schedules that have a name.
ScheduleName = Literal["constant", "step", "exponential", "polynomial", "cosine", "one-cycle"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


#: The values that may name a file, besides those in `metrics`.
IN_FILES = ("model", "data", "initial", "loss", "optimizer", "schedule", "transform")


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A training job: the same job gives the same bits on any processes.

    Each field's description is also its help text on the command line.
    """

    model: Annotated[
        str | dict[str, Any],
        Meta(
            description="linear, mlp, lenet, cnn, dense, conv, or FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that "
            "returns a Module  [lenet; dense for tables and vectors; conv for other pictures]"
        ),
    ] = "lenet"
    hidden: (
        Annotated[
            tuple[PositiveInt, ...],
            Meta(
                max_length=64,
                description="sizes of the hidden layers of dense, or maps of those of conv  [128,64; conv 16,32,64]",
            ),
        ]
        | None
    ) = None
    data: Annotated[
        str,
        Meta(
            description="mnist, a folder from `lockstep pack`, an .npz, or a folder of IDX files; where the data is "
            "packed as well, a .csv, a .parquet or a folder of pictures"
        ),
    ] = "mnist"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="seed of all random numbers")] = 0
    epochs: Annotated[
        PositiveInt,
        Meta(
            description="passes over the training set  [lenet 4; a table or a model of your own: as many as make 1,500 "
            "steps, at most 100]"
        ),
    ] = 3
    steps: Annotated[PositiveInt, Meta(description="number of steps, instead of epochs")] | None = None
    global_batch: Annotated[
        PositiveInt, Meta(description="samples per step, over all workers  [128; a table: 32 to 512, by its rows]")
    ] = 128
    micro_batches: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="micro-batches per step; at most as many workers are useful; part of the bits  [8, or fewer so "
            "that each has 16 samples]",
        ),
    ] = MICRO_BATCHES
    initial: (
        Annotated[str, Meta(description="weights to start from (safetensors, torch.save)  [drawn from the seed]")]
        | None
    ) = None
    initial_partial: Annotated[
        bool, Meta(description="take the weights of that file that fit the model, and leave the rest as it is")
    ] = False
    loss: Annotated[
        str,
        Meta(
            description="cross-entropy, nll, bce (several labels), mse, l1, smooth-l1, or FILE.py:FUNCTION of outputs "
            "and targets that returns the sum of the losses and what it is divided by"
        ),
    ] = "cross-entropy"
    target_scale: (
        Annotated[
            tuple[Real, ...],
            Meta(
                min_length=2,
                max_length=2 * MOST_SCALED,
                description="mean and deviation by which the numbers to predict are scaled, or both for each of them, "
                "as 512,80; 0,1 leaves them as they are  [those of the training set]",
            ),
        ]
        | None
    ) = None
    class_weights: (
        Annotated[
            tuple[NonNegative, ...],
            Meta(
                max_length=4096,
                description="weight of each class in the loss, as 1,1,2.5; texts in alphabetical order  [each 1]",
            ),
        ]
        | None
    ) = None
    ignore_index: (
        Annotated[
            int, Meta(ge=-(2**31), le=2**31 - 1, description="label of targets that are left out of the loss  [none]")
        ]
        | None
    ) = None
    label_smoothing: Annotated[
        Probability, SHARE, Meta(description="share of each label to spread over all classes")
    ] = 0.0
    metrics: (
        Annotated[
            tuple[str, ...],
            Meta(
                max_length=MOST_METRICS,
                description="further figures, as f1,top5: accuracy, topK, f1, iou, perplexity, mae, rmse, r2, or "
                "FILE.py:FUNCTION of outputs and targets that returns a sum and a count  [accuracy or r2]",
            ),
        ]
        | None
    ) = None
    wire: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        Meta(description="type in which sums of gradients travel; part of the bits"),
    ] = "float32"
    wire_weights: Annotated[
        Literal["float32", "bfloat16"],
        Meta(description="type in which weights travel; workers compute with the rounded weights"),
    ] = "float32"
    numerics: Annotated[
        Numerics,
        Meta(
            description="portable: by our own kernels, the same bits on every processor; native: by NumPy or PyTorch, "
            "the same bits on machines of one kind  [portable, or native if PyTorch computes the model]"
        ),
    ] = "portable"
    normalize: Annotated[bool, Meta(description="scale samples to mean 0 and deviation 1")] = True
    max_shift: Annotated[
        int, Meta(ge=0, le=1024, description="most pixels by which a training image is shifted at random")
    ] = 0
    transform: (
        Annotated[
            str,
            Meta(description="FILE.py:FUNCTION of a training sample and a generator that returns it changed  [none]"),
        ]
        | None
    ) = None
    optimizer: Annotated[
        str,
        Meta(description=f"{', '.join(RULES)}, or FILE.py:CLASS of an update rule with hyperparameters of its own"),
    ] = "sgd"
    lr: Annotated[Positive, Meta(description="learning rate; with a schedule, its peak")] = 0.05
    momentum: Annotated[Probability, Meta(description=f"momentum of {rules_with('momentum')}")] = 0.9
    nesterov: Annotated[bool, Meta(description="use Nesterov's momentum, with sgd")] = False
    weight_decay: Annotated[NonNegative, Meta(description="L2 penalty; with adamw, decoupled weight decay")] = 0.0
    no_decay: (
        Annotated[
            tuple[str, ...],
            Meta(
                max_length=256,
                description="without weight decay: names, patterns with * in them, or vectors (biases, norms)  [none]",
            ),
        ]
        | None
    ) = None
    lr_factors: (
        Annotated[
            tuple[str, ...],
            Meta(max_length=256, description="learning rates of some parameters, as head.*=10,stem.*=0.1  [each 1]"),
        ]
        | None
    ) = None
    beta1: Annotated[Probability, Meta(description=f"decay of the first moment in {rules_with('beta1')}")] = 0.9
    beta2: Annotated[Probability, Meta(description=f"decay of the second moment in {rules_with('beta2')}")] = 0.999
    alpha: Annotated[Probability, Meta(description=f"decay of the squared gradient in {rules_with('alpha')}")] = 0.99
    eps: Annotated[Positive, Meta(description=f"term added to the denominator in {rules_with('eps')}")] = 1e-8
    clip_norm: (
        Annotated[Positive, Meta(description="scale gradients down to at most this global norm  [never]")] | None
    ) = None
    clip_value: (
        Annotated[Positive, Meta(description="limit each element of the gradient to at most this size  [never]")] | None
    ) = None
    ema_decay: (
        Annotated[Probability, Meta(description="keep a moving average of the weights with this decay  [none]")] | None
    ) = None
    schedule: Annotated[
        str,
        Meta(
            description=f"{', '.join(SCHEDULES)}, or FILE.py:FUNCTION of the step and of the number of steps that "
            "returns a factor"
        ),
    ] = "constant"
    warmup_steps: Annotated[int, Meta(ge=0, description="steps in which the learning rate first rises linearly")] = 0
    decay_every: Annotated[
        PositiveInt, Meta(description="epochs between decays in the step and exponential schedules")
    ] = 1
    decay_factor: Annotated[
        Positive, Meta(description="factor of each decay in the step and exponential schedules")
    ] = 0.1
    decay_power: Annotated[Positive, Meta(description="power of the polynomial schedule; 1 is a line")] = 1.0
    min_lr: Annotated[
        NonNegative, Meta(description="learning rate at the end of the cosine and polynomial schedules")
    ] = 0.0
    local_steps: Annotated[
        int,
        Meta(
            ge=1,
            le=2**20,
            description="optimizer steps that each micro-batch takes by itself before its weights are sent",
        ),
    ] = 1
    local_optimizer: Annotated[RuleName, Meta(description="optimizer of the local steps")] = "sgd"
    local_lr: Annotated[
        Positive,
        Meta(description="learning rate of the local steps; with a schedule, its peak; at most the lr of shipped jobs"),
    ] = 0.05
    local_momentum: Annotated[
        Probability, Meta(description=f"momentum of {rules_with('momentum')} in the local steps")
    ] = 0.9
    local_nesterov: Annotated[bool, Meta(description="use Nesterov's momentum in the local steps, with sgd")] = False
    local_weight_decay: Annotated[NonNegative, Meta(description="weight decay in the local steps")] = 0.0
    local_beta1: Annotated[Probability, Meta(description="decay of the first moment in the local steps")] = 0.9
    local_beta2: Annotated[Probability, Meta(description="decay of the second moment in the local steps")] = 0.999
    local_alpha: Annotated[Probability, Meta(description="decay of the squared gradient in the local steps")] = 0.99
    local_eps: Annotated[Positive, Meta(description="term added to the denominator in the local steps")] = 1e-8
    local_clip_norm: (
        Annotated[Positive, Meta(description="scale the gradient of each local step down to this global norm  [never]")]
        | None
    ) = None
    local_clip_value: (
        Annotated[
            Positive, Meta(description="limit each element of the gradient of a local step to this size  [never]")
        ]
        | None
    ) = None
    local_schedule: Annotated[ScheduleName, Meta(description="how local_lr changes over the run")] = "constant"
    local_warmup_steps: Annotated[int, Meta(ge=0, description="steps in which local_lr first rises linearly")] = 0
    local_min_lr: Annotated[
        NonNegative, Meta(description="local_lr at the end of the cosine and polynomial schedules")
    ] = 0.0
    validation_split: Annotated[
        Probability, SHARE, Meta(description="share of the training set to hold out for validation, as 10% or 0.1")
    ] = 0.0
    patience: (
        Annotated[PositiveInt, Meta(description="stop after this many epochs in a row without improvement  [never]")]
        | None
    ) = None
    monitor: (
        Annotated[
            str,
            Meta(
                description="figure that decides which epoch is best: loss or a metric, as loss, val_accuracy or "
                "test_top5  [val_loss, or test_loss without a split]"
            ),
        ]
        | None
    ) = None
    monitor_mode: (
        Annotated[
            Literal["min", "max"],
            Meta(description="whether the smallest or the largest figure of your own metrics is the best  [none]"),
        ]
        | None
    ) = None
    min_delta: Annotated[NonNegative, Meta(description="smallest change that counts as an improvement")] = 0.0
    keep_best: Annotated[bool, Meta(description="end with the weights of the best epoch instead of the last")] = False

    def digest(self) -> str:
        """Return the SHA-256 of all values, in hex; of files that they name, only the names count."""
        values = msgspec.structs.asdict(self.without_folders())
        # So that jobs of older versions, which had no such value, keep their digest.
        if self.target_scale is None:
            del values["target_scale"]
        return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()

    def without_folders(self) -> "Job":
        """Return the job with the names of files in place of their paths: the same files may lie anywhere.

        The data, the model's source and the initial weights have digests of their own.
        """
        values = {name: _without_folder(value) for name in IN_FILES if isinstance(value := getattr(self, name), str)}
        metrics = None if self.metrics is None else tuple(map(_without_folder, self.metrics))
        return msgspec.structs.replace(self, **values, metrics=metrics)

    def model_name(self) -> str:
        """Return the model's name, "custom" for one given as data."""
        return self.model if isinstance(self.model, str) else _name_of(self.model, self.hidden)

    def monitored(self) -> str:
        """Return the figure by which epochs are compared."""
        return self.monitor or ("val_loss" if self.validation_split else "test_loss")

    def total_steps(self, training_samples: int) -> int:
        """Return the number of steps for a training set of that size."""
        return self.steps if self.steps is not None else self.epochs * -(-training_samples // self.global_batch)

    @property
    def local_batches(self) -> int:
        """Into how many batches the samples of a step are cut: one for each local step of each micro-batch."""
        return self.micro_batches * self.local_steps

    def changed_in(self, here: "Job") -> str:
        """Return the values of a run's job that differ in the job here."""
        values = ((name, getattr(self, name), getattr(here, name)) for name in self.__struct_fields__)
        return "; ".join(f"{name} = {was!r} in the run, {is_!r} here" for name, was, is_ in values if was != is_)


def _name_of(model: Mapping[str, Any], hidden: tuple[int, ...] | None) -> str:
    """Return the name of a model that is given as data: one with `hidden` was made of the data's sizes."""
    if hidden is None:
        return "custom"
    layers = model.get("args", ())
    return CONV if any(layer.get("class") == "Conv2d" for layer in layers if isinstance(layer, dict)) else DENSE


def default_micro_batches(global_batch: int, samples: int = LEAST_SAMPLES) -> int:
    """Return the default number of micro-batches of a batch: a power of two, which most workers divide, so
    that each has some samples at least.
    """
    return 1 << max(1, min(MICRO_BATCHES, global_batch // samples)).bit_length() - 1


def names_code(value: object) -> bool:
    """Tell whether a value of a job names a function of the user: of the library's, none does so."""
    return isinstance(value, str) and (":" in value or value.endswith(".py"))


def _told(value: str) -> str:
    """Return a text as an error has it: a long one loses its middle."""
    return cut(repr(value), MOST_TOLD)


def _check_loss(job: Job) -> None:
    if job.loss not in LOSSES and not names_code(job.loss):
        raise JobError(
            f"loss = {_told(job.loss)}{nearest(job.loss, LOSSES)}: expected one of {', '.join(LOSSES)}, or "
            "FILE.py:FUNCTION"
        )
    if job.loss != "cross-entropy" and job.label_smoothing:
        raise JobError(
            f"label_smoothing = {job.label_smoothing!r} with loss = {_told(job.loss)}: expected 0, or cross-entropy"
        )
    if job.class_weights is not None and not has_accuracy(job.loss):
        raise JobError(f"class_weights with loss = {_told(job.loss)}: expected a loss of classes or labels")
    if job.class_weights is not None and not any(job.class_weights):
        raise JobError("class_weights are all 0: expected at least one above 0")
    if job.ignore_index is not None and job.loss not in ("cross-entropy", "nll"):
        raise JobError(
            f"ignore_index = {job.ignore_index!r} with loss = {_told(job.loss)}: expected cross-entropy or nll"
        )


def _check_scale(job: Job) -> None:
    scale = job.target_scale
    if scale is not None and kind_of(job.loss) is not LossKind.NUMBERS:
        numbers = ", ".join(name for name, kind in LOSSES.items() if kind is LossKind.NUMBERS)
        raise JobError(f"target_scale with loss = {_told(job.loss)}: expected one of {numbers}")
    if scale is not None and (len(scale) % 2 or min(scale[1::2]) <= 0.0):
        raise JobError(
            f"target_scale = {cut(str(list(scale)), MOST_TOLD)}: expected a mean and a deviation above 0, or both for "
            "each number to predict"
        )


def _check_updates(job: Job) -> None:
    for name, known, own in (("optimizer", tuple(RULES), "CLASS"), ("schedule", SCHEDULES, "FUNCTION")):
        value = getattr(job, name)
        if value not in known and not names_code(value):
            raise JobError(
                f"{name} = {_told(value)}{nearest(value, known)}: expected one of {', '.join(known)}, or FILE.py:{own}"
            )
    if job.transform is not None and not names_code(job.transform):
        raise JobError(f"transform = {_told(job.transform)}: expected FILE.py:FUNCTION")
    if names_code(job.optimizer) and job.weight_decay:
        raise JobError(
            f"weight_decay = {job.weight_decay!r} with optimizer = {_told(job.optimizer)}: expected 0, since a rule of "
            "your own has its hyperparameters in its code"
        )


def _check_steps(job: Job, local: str = "") -> None:
    """Raise `JobError` if the values of the steps of a job contradict each other, or with a prefix, its local steps."""
    nesterov, optimizer, momentum, min_lr, lr = (
        getattr(job, f"{local}{name}") for name in ("nesterov", "optimizer", "momentum", "min_lr", "lr")
    )
    if nesterov and (optimizer != "sgd" or momentum == 0.0):
        raise JobError(
            f"{local}nesterov = true with {local}optimizer = {optimizer!r} and {local}momentum = {momentum!r}: "
            f"expected sgd with momentum above 0; set both or remove {local}nesterov"
        )
    if min_lr > lr:
        raise JobError(f"{local}min_lr = {min_lr!r} is above {local}lr = {lr!r}: expected at most as much")


def check(job: Job) -> Job:
    """Return the job; `JobError` if two of its values contradict each other."""
    _check_steps(job)
    if job.initial_partial and job.initial is None:
        raise JobError("initial_partial = true without initial: expected initial = 'FILE', the weights to start from")
    if job.hidden is not None and isinstance(job.model, str) and job.model not in SIZED:
        raise JobError(f"hidden = {list(job.hidden)} with model = {_told(job.model)}: expected {' or '.join(SIZED)}")
    _check_loss(job)
    _check_scale(job)
    _check_updates(job)
    if job.micro_batches > job.global_batch:
        raise JobError(
            f"micro_batches = {job.micro_batches!r} is more than global_batch = {job.global_batch!r}: "
            "expected at least one sample per micro-batch; lower it or raise the batch"
        )
    if job.local_steps > 1:
        _check_local_steps(job)
    _check_metrics(job)
    check_monitor(job, job.monitored())
    if job.monitor_mode is not None and all(map(is_named, job.metrics or ())):
        raise JobError(
            f"monitor_mode = {job.monitor_mode!r} without a metric of your own: remove it, since it is known whether "
            "more or less of the others is better"
        )
    return job


def _check_metrics(job: Job) -> None:
    kind, values = kind_of(job.loss), job.metrics or ()
    names = [metric_name(value) for value in values]
    for value, name in zip(values, names, strict=True):
        if not is_named(value) and not (names_code(value) and ":" in value):
            raise JobError(
                f"metrics has {_told(value)}{nearest(value, METRICS)}: expected {KNOWN}, or FILE.py:FUNCTION"
            )
        metric = metric_of(value, job.loss)
        if not metric.goes_with(kind):
            fitting = [known for known, each in METRICS.items() if kind in each.kinds]
            raise JobError(
                f"metrics has {value!r} with loss = {_told(job.loss)}: expected {', '.join(fitting) or 'another one'}, "
                "or FILE.py:FUNCTION"
            )
        if names.count(name) > 1:
            raise JobError(f"metrics has {name!r} twice: expected a name for each; rename a function")
        if not is_named(value) and (is_named(name) or name == "loss" or name != figure_name(name)):
            raise JobError(
                f"metrics has a function {name!r}, which is the name of another figure: expected a name of its own; "
                "rename the function"
            )


def check_monitor(job: Job, monitor: str) -> None:
    """Raise `JobError` if the epochs of a job do not have that figure, or its better direction is unknown."""
    known = Metrics.of(job.loss, job.metrics or ()).by_name
    name = figure_name(monitor)
    if name != "loss" and name not in known:
        figures = [f"{part}{figure}" for figure in ("loss", *known) for part in ("", "val_", "test_")]
        is_addable = is_named(name) and metric_of(name, job.loss).goes_with(kind_of(job.loss))
        hint = f"; add metrics = [{name!r}]" if is_addable else ""
        raise JobError(
            f"monitor = {_told(monitor)}{nearest(monitor, figures)} with loss = {_told(job.loss)}: expected one of "
            f"{', '.join(figures)}{hint}"
        )
    if monitor.startswith("val_") and not job.validation_split:
        raise JobError(
            f"monitor = {monitor!r} without a validation set: expected validation_split above 0, such as 0.1, or "
            "another figure"
        )
    if name != "loss" and known[name].is_higher_better is None and job.monitor_mode is None:
        raise JobError(
            f"monitor = {monitor!r} is a metric of your own: expected monitor_mode = 'max' if more of it is better, or "
            "'min'"
        )


def figure_name(monitor: str) -> str:
    """Return the figure of an epoch without the set that it is of."""
    return monitor.removeprefix("val_").removeprefix("test_")


def is_higher_better(job: Job, monitor: str) -> bool:
    """Tell whether more of a figure is better; it is one that `check_monitor` accepts."""
    name = figure_name(monitor)
    if name == "loss":
        return False
    known = Metrics.of(job.loss, job.metrics or ()).by_name[name].is_higher_better
    return job.monitor_mode == "max" if known is None else known


def check_batch(job: Job, samples: int) -> None:
    """Raise `JobError` if a step takes more samples than the training set has."""
    if job.global_batch > samples:
        fewer = f"; lower global_batch or local_steps = {job.local_steps!r}" if job.local_steps > 1 else ""
        raise JobError(
            f"global_batch = {job.global_batch!r} is more than the {samples} training samples of {job.data!r}: "
            f"expected at most as many{fewer}"
        )


def _check_local_steps(job: Job) -> None:
    """Raise `JobError` if values contradict each other in a job whose micro-batches take several steps."""
    steps = f"local_steps = {job.local_steps!r}"
    if job.local_batches > job.global_batch:
        raise JobError(
            f"{steps} is more than the samples of a micro-batch (global_batch = {job.global_batch!r}, micro_batches = "
            f"{job.micro_batches!r}): expected at most {job.global_batch // job.micro_batches}; raise global_batch, as "
            f"to {32 * job.local_batches} for 32 samples in each local step"
        )
    for name in ("clip_norm", "clip_value", "weight_decay"):
        value = getattr(job, name)
        if value:
            raise JobError(
                f"{name} = {value!r} with {steps}: it sends differences of weights, and not gradients; "
                f"set local_{name} instead"
            )
    _check_steps(job, "local_")


def _without_folder(value: str) -> str:
    """Return the last part of a path, which `:FUNCTION` may follow; any other text is one part."""
    return value.rstrip("/").rpartition("/")[2] or value
