"""Check what makes training fail: the data, gradients, activations of layers, and the first steps.

Data: both sets have all classes, samples and columns have sizes that suit training, none is the target. Layers:
gradients are derivatives, units get different ones, outputs are neither dead nor saturated. First steps: where the loss
begins, and whether a few steps at the job's rates diverge or do not move. All of these steps are made on the first
batch. A healthy job fits one batch quickly, and its loss is the same but for the weights, so that a small change of it
is not noise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.checking.examined_job import ExaminedJob, Finding, Group, root_mean_square
from lockstep.common.aggregation.layout import trained_parameters
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.gradient_check import slope_along
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.folder import flag
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LossKind
from lockstep.common.job.optimizer import OwnSchedule, policy_of, schedule_of, spans_of
from lockstep.common.job.own_code import OwnCode
from lockstep.common.model.autograd import apply
from lockstep.common.model.port import LayerOutput
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.module import Module, place_of
from lockstep.common.numerics.random import Purpose, generator
from lockstep.ps.shard.shard import Shard
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError

#: Largest share of the training samples that one class may have.
MOST_OF_ONE = 0.9

#: So many test samples of a class that has none would be expected: by chance, that happens once in e^20 times.
EXPECTED_OF_A_CLASS = 20

#: Deviations and means that need no normalisation; bytes divided by 255 are well within.
LEAST_DEVIATION, MOST_DEVIATION, MOST_MEAN = 0.02, 10.0, 10.0

#: The largest size of a feature, as a multiple of the median deviation of the features.
MOST_OF_A_FEATURE = 100.0

#: Rows in which the target is looked for, and the fewest by which a feature is called the target.
MOST_ROWS, LEAST_ROWS = 5_000, 20

#: The least correlation of a feature that is the target in other units.
ON_A_LINE = 0.99999

#: Targets are classes if they are fewer than so many numbers, each of them at least so often. The values of a feature
#: that gives the class are as frequent on average.
MOST_CLASSES, LEAST_OF_A_CLASS = 20, 5


def check_data(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield mistakes in targets and samples; samples of several arrays are not looked at."""
    train, kind = subject.data.train, subject.objective.kind
    if train.images.dtype.names or train.labels.dtype.names:
        return
    if kind is LossKind.CLASSES:
        yield from _classes(subject)
    if kind is LossKind.NUMBERS:
        yield from _numbers(train.labels[:])
    if not train.is_tokens:
        yield from _samples(subject)
    if train.images.ndim == 2 and not train.is_tokens and kind in (LossKind.CLASSES, LossKind.NUMBERS):
        yield from _leak(subject)


def _classes(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that one of the sets lacks a class, or that nearly all samples are of one class."""
    job, data = subject.job, subject.data
    names = [repr(one_line(name, 40)) for name in data.class_names] or range(data.train.classes)
    train, test = (labels[labels != job.ignore_index] for labels in (data.train.labels[:], data.test.labels[:]))
    counts, tested = np.bincount(train.reshape(-1)), np.unique(test)
    expected = counts / max(1, counts.sum()) * test.size
    unknown = np.setdiff1d(tested, np.flatnonzero(counts))
    untested = np.setdiff1d(np.flatnonzero(expected >= EXPECTED_OF_A_CLASS), tested)
    for missing, has, lacks in ((unknown, "test", "training"), (untested, "training", "test")):
        if missing.size:
            what = f"class {names[missing[0]]} is in the {has} set and not in the {lacks} set"
            yield Finding(Group.DATA, what, "shuffle all samples before they are split, as `lockstep pack` does")
            return
    # Most of a picture is its background.
    may_dominate = bool(job.class_weights) or data.train.labels.ndim > 2
    if not may_dominate and len(counts) > 1 and counts.max() > MOST_OF_ONE * train.size:
        what = f"{counts.max():,} of {train.size:,} training samples are of class {names[counts.argmax()]}"
        yield Finding(
            Group.DATA, what, "give rare classes more weight (--set class_weights=1,10), or use as many samples of each"
        )


def _numbers(labels: Array) -> Iterator[Finding]:
    """Yield that the targets look like classes."""
    values, counts = np.unique(labels, return_counts=True)
    are_classes = 2 < len(values) <= MOST_CLASSES and np.array_equal(values, np.arange(len(values)))
    if are_classes and labels.size == len(labels) and counts.min() >= LEAST_OF_A_CLASS:
        what = f"the targets are whole numbers from 0 to {len(values) - 1}, as classes are, and the loss compares sizes"
        yield Finding(Group.DATA, what, f"--loss cross-entropy with {len(values)} outputs, unless they are counts")


def _samples(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that the samples, as the model is given them, are all equal, far from 0, or have very uneven features."""
    images, _ = subject.batch
    mean, deviation = float(np.mean(images, dtype=np.float64)), float(np.std(images, dtype=np.float64))
    if deviation == 0:
        yield Finding(Group.DATA, f"all values of the samples are {mean:.4g}", "check how they were read or converted")
        return
    deviations = np.atleast_1d(np.std(images, axis=0, dtype=np.float64))
    varying, sizes = np.sort(deviations[deviations > 0]), np.maximum(np.abs(np.mean(images, axis=0)), deviations)
    if images.ndim == 2 and sizes.max() > MOST_OF_A_FEATURE * varying[(len(varying) - 1) // 2]:
        scale = "pack without --no-standardize" if subject.columns else "scale each column to mean 0 and deviation 1"
        yield Finding(Group.DATA, f"{subject.named(int(sizes.argmax()))} is far larger than the others", scale)
    elif not LEAST_DEVIATION <= deviation <= MOST_DEVIATION or abs(mean) > MOST_MEAN:
        what = f"the samples are not normalised: they have mean {mean:.4g} and deviation {deviation:.4g}"
        scale = "remove samples that are far from the rest" if subject.job.normalize else "--set normalize=true"
        yield Finding(Group.DATA, what, scale)


def _leak(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield the first feature that is the target in other words."""
    train, objective = subject.data.train, subject.objective
    features, targets = train.images[:MOST_ROWS], objective.targets(train.labels[:MOST_ROWS]).reshape(-1)
    if len(features) < LEAST_ROWS or targets.size != len(features):
        return
    for feature, values in enumerate(features.T):
        if _is_target(values, targets, is_regression=objective.is_regression):
            leave_out = flag("drop", subject.columns[feature : feature + 1]) if subject.columns else "leave it out"
            what = f"{subject.named(feature)} alone gives the target of all {len(features):,} training samples"
            yield Finding(Group.DATA, what, f"{leave_out}, if it is not known when you predict")
            return


def _is_target(values: NDArray[np.float32], targets: Array, *, is_regression: bool) -> bool:
    """Return whether a feature gives the target: on a straight line, or with one class for each of a few values."""
    if is_regression:
        with np.errstate(all="ignore"):  # NaN if one of the two does not vary
            return bool(abs(np.corrcoef(values, targets, dtype=np.float64)[0, 1]) > ON_A_LINE)
    distinct, places = np.unique(values, return_inverse=True)
    if not 2 <= len(distinct) <= len(targets) // LEAST_OF_A_CLASS or len(np.unique(targets)) < 2:
        return False
    return len(np.unique(places.reshape(-1) * (int(targets.max()) + 1) + targets)) == len(distinct)


#: Samples for checking gradients: BatchNorm needs several, and more only take time.
SAMPLES = 4

#: A wrong derivative is wrong in nearly every direction; one that crosses a kink is wrong in one of them at most.
DIRECTIONS, WRONG = 3, 2

#: Relative size of the noise on an input, so that no two elements tie.
JITTER = 0.01

#: Largest healthy ratio between the sizes of two layers' gradients. In the shipped nets it stays below 50.
LARGEST = 1e4

INITIALIZE = "initialize with nn.init.kaiming_normal_"

#: Step of central differences, relative to the size of the array: a kink is hardly ever within it.
STEP = 1e-6

#: Largest error, relative to the terms of a slope, and to the terms of a value: rounding leaves nine digits.
OF_SLOPE, OF_VALUE = 1e-3, 1e-7


def check_gradients(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield wrong first values and gradients; of another library's model, only gradients that vanish or explode."""
    module, findings = subject.module, list[Finding]()
    if module is not None:
        findings = [*_equal_units(module), *_wrong_layers(module, subject.batch[0][:SAMPLES])]
    yield from findings or _sizes(subject)


def _equal_units(module: Module) -> Iterator[Finding]:
    """Yield each weight whose units are all equal, so that they get the same gradient and stay equal.

    A last layer of zeros is not a mistake, because its gradient differs from class to class at once.
    """
    weights = [each for each in module.named_parameters() if each[1].ndim >= 2 and len(each[1].data) > 1]
    for name, weight in weights:
        is_last_of_zeros = name == weights[-1][0] and not weight.data.any()
        if not is_last_of_zeros and (weight.data == weight.data[:1]).all():
            what = f"all {len(weight.data)} units of {name!r} are equal, and stay so with equal gradients"
            yield Finding(Group.GRADIENTS, what, INITIALIZE)


@dataclass
class ModuleCall:
    """A call of a module's forward."""

    name: str
    module: Module
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def output(self) -> Tensor:
        """Call it once more, with the same random numbers as each time."""
        self.module.reseed(0, 0, 0)
        output: Tensor = self.module(*self.arguments, **self.options)
        return output


def recorded_calls(model: Module, images: Array) -> list[ModuleCall]:
    """Return the calls of modules in a forward, inner modules before outer ones."""
    done, modules = list[ModuleCall](), list(model.named_modules())

    def recording(name: str, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **options: Any) -> Any:
            output = forward(*arguments, **options)
            if isinstance(output, Tensor):
                done.append(ModuleCall(name, module, arguments, options))
            return output

        return recorded

    # A module's observers see outputs only. An attribute of the instance takes precedence over the class's method.
    for name, module in modules:
        vars(module)["forward"] = recording(name, module, module.forward)
    with np.errstate(all="ignore"):
        apply(model, images)
    for _, module in modules:
        del vars(module)["forward"]
    return done


def _wrong_layers(module: Module, images: Array) -> Iterator[Finding]:
    """Yield each layer with a wrong gradient, but not those that only contain such a layer."""
    calls = recorded_calls(module, images)
    for parameter in module.parameters():
        parameter.data = parameter.data.astype(np.float64)
    faulty, seen = set[str](), set[Module]()
    for call in calls:
        contains_faulty = any(not call.name or name.startswith(f"{call.name}.") for name in faulty)
        if call.module in seen or contains_faulty or type(call.module) is Sequential:
            continue
        seen.add(call.module)
        with np.errstate(all="ignore"):
            finding = examine(call)
        if finding is not None:
            faulty.add(call.name)
            yield finding


def examine(call: ModuleCall) -> Finding | None:
    """Return that the gradient of one call, computed in float64, is wrong; None if it is right."""
    call.module.zero_grad()
    call.arguments = tuple(map(_varied, call.arguments))
    place = place_of(call.name, call.module)
    with no_grad():
        first, second = np.array(call.output().data), call.output().data
    if first.shape != second.shape or not np.array_equal(first, second, equal_nan=True):
        what = f"the forward of {place} returns something else for the same input"
        return Finding(Group.GRADIENTS, what, "draw with nn.Dropout or a transform of the job, which follow the seed")
    try:
        wrong = mismatch_of(call)
    except Exception as error:  # noqa: BLE001  # the user's derivative: whatever it raises is the finding
        wrong = f"backward raised {' '.join(f'{type(error).__name__}: {error}'.split())}"
    if wrong is None:
        return None
    fix = "compute with F and methods of Tensor only, and try derivatives of your own with check_gradients"
    return Finding(Group.GRADIENTS, f"the gradient of {place} is wrong: {wrong}", fix)


def mismatch_of(call: ModuleCall) -> str | None:
    """Return how the gradient of the first argument or parameter with a wrong one differs; None if all are right.

    Raises what the backward pass raises.
    """
    inputs = [each for each in call.arguments if isinstance(each, Tensor) and each.requires_grad]
    tensors = {f"input {place}": each for place, each in enumerate(inputs)} | trained_parameters(call.module)
    output = call.output()
    weights = generator(0, Purpose.CANARY, at=1).standard_normal(output.shape)
    if output.dtype != np.float64:
        return None  # differences of float32 say too little
    if output.requires_grad:
        (output * weights).sum().backward()
    noise = OF_VALUE * float(np.sum(np.abs(output.data * weights)))

    def value() -> float:
        with no_grad():
            return float(np.sum(call.output().data * weights))

    for number, (name, tensor) in enumerate(tensors.items()):
        gradient = np.zeros(tensor.shape) if tensor.grad is None else np.array(tensor.grad, np.float64)
        slopes = []
        for place in range(DIRECTIONS):
            rng = generator(0, Purpose.CANARY, at=2, micro_batch=number, layer=place)
            direction = rng.standard_normal(tensor.shape) * (root_mean_square(tensor.data) or 1.0)
            slope = slope_along(direction, tensor.data, gradient, value, STEP)
            if abs(slope.exact - slope.numeric) > OF_SLOPE * slope.scale + noise:
                slopes.append(slope)
        if len(slopes) >= WRONG and not any(slope.exact for slope in slopes):
            return f"none arrives at {name}, which the output depends on"
        if len(slopes) >= WRONG:
            return f"along {name} the output changes by {slopes[0].numeric:.4g}, by the gradient {slopes[0].exact:.4g}"
    return None


def _varied(argument: Any) -> Any:
    """Return a copy of a tensor of real numbers in float64, with some noise, that requires a gradient."""
    if not isinstance(argument, Tensor) or argument.dtype.kind != "f":
        return argument
    values = argument.data.astype(np.float64)
    noise = generator(0, Purpose.CANARY, at=3).standard_normal(values.shape)
    return Tensor(values + JITTER * (float(np.std(values)) or 1.0) * noise, requires_grad=True)


def _sizes(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that gradients vanish or explode on their way to the first layer."""
    gradients = subject.first_pass.gradients
    sizes = {name: root_mean_square(each) for name, each in gradients.items() if each.ndim >= 2 and each.any()}
    if len(sizes) < 2 or subject.nonfinite:
        return
    first, *_, last = sizes
    if sizes[last] > LARGEST * sizes[first]:
        what = f"the gradient of {first!r} is {sizes[last] / sizes[first]:.3g} times smaller than that of {last!r}"
        yield Finding(Group.GRADIENTS, what, "use ReLU, fewer layers, or a normalisation between them")
    if sizes[first] > LARGEST * sizes[last]:
        what = f"the gradient of {first!r} is {sizes[first] / sizes[last]:.3g} times larger than that of {last!r}"
        yield Finding(Group.GRADIENTS, what, f"{INITIALIZE}, or --set clip_norm=1")


#: Largest share of a layer's units that are dead, or of its values that are saturated, at the start. With few samples,
#: some always are.
MOST = 0.5

#: Centre of saturating functions, and the distance from it at which the slope is a twentieth of the steepest.
SATURATING = {"Tanh": (0.0, 0.975), "Sigmoid": (0.5, 0.4875)}

#: The share of outputs that may be exactly 0 if the last layer is not a ReLU.
ZEROS = 0.02


def check_activations(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that outputs of layers are not finite, dead or saturated, or that the model ends in a ReLU."""
    seen = subject.first_pass
    if subject.nonfinite:
        what = f"numbers are not finite, first in {subject.nonfinite}"
        yield Finding(Group.ACTIVATIONS, what, "check first values and samples, and keep arguments of log above 0")
        return
    for layer in seen.layers:
        yield from _of_layer(layer)
    outputs = seen.outcome.outputs
    if (outputs >= 0).all() and np.mean(outputs == 0) > ZEROS and subject.job.loss in ("cross-entropy", "nll"):
        yield Finding(Group.ACTIVATIONS, "the model ends in a ReLU", "remove the activation after the last layer")


def _of_layer(layer: LayerOutput) -> Iterator[Finding]:
    """Yield that most units of a layer are dead or saturated."""
    name, output = f"{layer.name} ({layer.kind})", layer.output
    if layer.kind == "ReLU" and output.ndim >= 2:
        # A unit is a feature, or a whole feature map.
        dead = ~(output > 0).any(axis=tuple(axis for axis in range(output.ndim) if axis != 1))
        if np.mean(dead) > MOST:
            what = f"{np.count_nonzero(dead)} of {dead.size} units of {name} are 0 for all {len(output)} samples"
            yield Finding(Group.ACTIVATIONS, what, "begin with biases of 0 and nn.init.kaiming_normal_")
    if layer.kind in SATURATING:
        centre, distance = SATURATING[layer.kind]
        share = float(np.mean(np.abs(output - centre) > distance))
        if share > MOST:
            what = f"{share:.0%} of the outputs of {name} are saturated"
            yield Finding(Group.ACTIVATIONS, what, "begin with nn.init.xavier_normal_, and normalise the data")


#: Steps to make, of which the first half has the rise of the rate to its peak.
STEPS = 24

#: How far the first loss may be above guessing, and the last ones above the first: a factor and a summand. Of a
#: regression, the first loss may be so many times that of guessing.
FACTOR, MARGIN, OF_NUMBERS = 1.5, 0.5, 3.0

#: The last losses, whose mean counts: a single one may be high with any rate that is good.
LAST = 5

#: The loss does not move if it changes by less than this share.
LEAST_CHANGE = 0.001


def check_first_steps(subject: ExaminedJob, job: Job) -> Iterator[Finding]:
    """Yield mistakes in the first steps of a job, of which the subject has the batches."""
    rates = first_rates(job, len(subject.data.train), subject.own)
    losses, largest = trial(subject, rates)
    yield from _first_loss(subject, losses[0])
    # With factors of its own, a part may be meant to stay.
    idle = [each.name for each in subject.model.layout.parameters if not each.view(largest).any()]
    if idle and len(losses) > 1 and not job.lr_factors:
        what = f"no gradient arrives at {idle[0]!r}" + (f" and {len(idle) - 1} more" if len(idle) > 1 else "")
        yield Finding(Group.FIRST_STEPS, what, "use it in forward, without .detach() or .data, or freeze it")
        return
    first, last = losses[0], float(np.mean(losses[-LAST:]))
    steps = f"in {len(losses) - 1} steps at up to {max(rates):.3g} the loss"
    if not last <= FACTOR * first + MARGIN:
        yield Finding(Group.FIRST_STEPS, f"{steps} went from {first:.3g} to {last:.3g}", "run `lockstep find-lr`")
    elif abs(last - first) < LEAST_CHANGE * first:
        yield Finding(Group.FIRST_STEPS, f"{steps} stays at {first:.3g}", "run `lockstep find-lr`")


def first_rates(job: Job, samples: int, own: OwnCode) -> list[float]:
    """Return the rates of the trial: the job's on their way to the peak, compressed, and then the peak."""
    steps = job.total_steps(samples)
    schedule = schedule_of(job, steps, -(-samples // job.global_batch), own)
    rates = [schedule.rate(step) for step in range(steps)]
    peak = int(np.argmax(rates))
    rise = min(peak, STEPS // 2)
    return [*(rates[place * peak // rise] for place in range(rise)), *[rates[peak]] * (STEPS - rise)]


def trial(subject: ExaminedJob, rates: list[float]) -> tuple[list[float], Vector]:
    """Make a step at each rate while all is finite; return the losses, and the largest gradient of each parameter.

    The last loss is that of the weights at the end, infinite if the trial broke off.
    """
    job = replace(subject.job, steps=len(rates), schedule="constant", warmup_steps=0)
    model = subject.fresh_model()
    policy = policy_of(job, len(subject.data.train), spans_of(job, model.layout), model.momenta(), subject.own)
    policy = replace(policy, schedule=OwnSchedule(1.0, len(rates), lambda step, _: rates[step], "trial"))
    shard = Shard((subject.fresh_weights(), model.layout.new_vector()), policy, job.micro_batches)
    compute = Compute(job, model, subject.data, shard.served, own=subject.own)
    losses, largest = list[float](), model.layout.new_vector()
    for step in range(len(rates) + 1):
        compute.turn(step)
        try:
            sums, tally = compute.train(0, Node(0, 1))
        except NotFiniteError:
            break
        losses.append(tally.loss)
        np.maximum(largest, np.abs(sums), out=largest)
        if step < len(rates):
            shard.update_by(sums, step, tally.divisor)
    return losses if len(losses) > len(rates) else [*losses, math.inf], largest


def _first_loss(subject: ExaminedJob, loss: float) -> Iterator[Finding]:
    """Yield that the model ends in softmax, or that its first outputs are far worse than guessing."""
    objective, job, train = subject.objective, subject.job, subject.data.train
    if objective.kind is LossKind.CLASSES:
        rows = objective.rows(subject.first_pass.outcome.outputs, train.targets)
        is_softmax = rows.shape[1] > 1 and (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-4)
        if is_softmax and job.loss == "cross-entropy":
            what = "the model ends in softmax, which the loss applies once more"
            yield Finding(Group.FIRST_STEPS, what, "remove Softmax from the end of the model")
        guess = math.log(objective.classes_of(train))
        most = FACTOR * guess + MARGIN
    elif job.loss == "mse":
        guess = float(np.var(subject.batch[1], axis=0, dtype=np.float64).mean())
        most = OF_NUMBERS * guess
    else:
        return
    if most < loss < math.inf:
        what = f"the loss begins at {loss:.3g}, and guessing costs {guess:.3g}"
        fix = "begin with smaller weights in the last layer, and scale samples and targets to deviation 1"
        yield Finding(Group.FIRST_STEPS, what, fix)
