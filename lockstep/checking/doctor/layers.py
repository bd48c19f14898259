"""Check layers: gradients are derivatives, units get different ones, outputs are neither dead nor saturated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.checking.doctor.examined_job import ExaminedJob, Finding, Group, root_mean_square
from lockstep.common.aggregation.layout import trained_parameters
from lockstep.common.autograd.gradient_check import slope_along
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.model.autograd import apply
from lockstep.common.model.port import LayerOutput
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.module import Module, place_of
from lockstep.common.numerics.random import Purpose, generator

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
