"""Check initial values, activations and gradients, by one forward and backward pass over a batch.

The pass records each module's calls, and the sizes of activations and gradients. The checks find equal weights, dead or
saturated units, and sizes that explode or vanish from layer to layer.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from lockstep.checking.checkup.target import ExaminationTarget, Finding, found
from lockstep.common.aggregation.layout import trained_parameters
from lockstep.common.autograd.graph import Applied, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.inspection import first_nonfinite_layer
from lockstep.common.nn.module import Module, Parameter, place_of


@dataclass
class ModuleCall:
    """One call of one module's forward."""

    name: str
    module: Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Any = None
    #: Names and results of the primitives that the module applied itself, and not by a module below it.
    applied: list[tuple[str, Array]] = field(default_factory=list)

    @property
    def named(self) -> str:
        """The module as it is shown to the user: `3.1 (Linear)`."""
        return place_of(self.name, self.module)


@contextmanager
def recorded_calls(model: Module) -> Iterator[list[ModuleCall]]:
    """Give a list to which each call of a module's forward is added when it ends, inner modules before outer ones."""
    done: list[ModuleCall] = []
    active: list[ModuleCall] = []

    def recording(name: str, module: Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recorded(*arguments: Any, **options: Any) -> Tensor:
            call = ModuleCall(name, module, arguments, options)
            active.append(call)
            try:
                call.output = output = forward(*arguments, **options)
            finally:
                active.pop()
            done.append(call)
            return output

        return recorded

    def record_primitive(applied: Applied) -> None:
        if applied.direction == "forward" and active:
            active[-1].applied.append((applied.primitive.name, applied.result))

    modules = list(model.named_modules())
    # A module's observers see outputs only. An attribute of the instance takes precedence over the class's method.
    for name, module in modules:
        vars(module)["forward"] = recording(name, module, module.forward)
    try:
        with watch(record_primitive):
            yield done
    finally:
        for _, module in modules:
            del vars(module)["forward"]


#: Samples in the batch.
SAMPLES = 256


class Signals(msgspec.Struct, frozen=True):
    """One forward and backward pass in training mode."""

    #: Inner modules before outer ones.
    calls: list[ModuleCall]
    #: Mean loss over the batch, and the model's output: (targets, classes), or of a regression (n, targets).
    loss: float
    outputs: Array
    #: 0 in a regression; `guess` is then the loss of always predicting the mean of the targets.
    classes: int
    guess: float
    #: Root mean square of the prepared samples.
    input_size: float
    #: Name and root mean square of the gradient (None without one) of each weight with two or more axes, in order.
    gradients: list[tuple[str, float | None]]
    #: The first layer whose output is not finite.
    nonfinite: str | None


def signals_of(target: ExaminationTarget, *, with_backward: bool) -> Signals:
    """Return the signals of a pass over the job's first samples, forward only unless `with_backward`."""
    probe = target.probe()
    images, targets = target.batch(0, SAMPLES)
    x = Tensor(images)
    with np.errstate(all="ignore"):
        nonfinite = first_nonfinite_layer(probe, x)
        with recorded_calls(probe) as calls:
            outputs = probe(x)
            loss = target.objective.mean_loss(outputs, targets)
        if with_backward and loss.requires_grad:
            loss.backward()
    gradients = [
        (name, None if parameter.grad is None else root_mean_square(parameter.grad))
        for name, parameter in trained_parameters(probe).items()
        if parameter.ndim >= 2
    ]
    is_regression = target.objective.is_regression
    return Signals(
        calls=calls,
        loss=float(loss.data),
        outputs=target.objective.rows(outputs.data, target.data.train.targets),
        classes=0 if is_regression else target.objective.classes_of(target.data.train),
        guess=float(np.var(targets, axis=0, dtype=np.float64).mean()) if is_regression else 0.0,
        input_size=root_mean_square(images),
        gradients=gradients,
        nonfinite=nonfinite,
    )


def root_mean_square(array: Array) -> float:
    """Return the size of a typical element."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def check_initial_values(model: Module) -> list[Finding]:
    """Return a finding for each weight whose units are all equal, or that is not finite.

    A last layer of zeros is not a mistake, because its gradient differs from class to class at once.
    """
    weights = [each for each in _weights(model) if len(each[2].data) > 1]
    findings = []
    for layer, name, weight in weights:
        values, is_last = weight.data, name == weights[-1][1]
        if not np.isfinite(values).all():
            findings.append(found("weights-are-not-finite", layer=layer, name=name))
        elif (values == values.flat[0]).all():
            if not (is_last and values.flat[0] == 0):
                findings.append(_all_equal(layer, name, weight))
        elif not is_last and (values == values[:1]).all():
            findings.append(found("units-are-equal", layer=layer, name=name, units=len(values)))
    return findings


def _weights(model: Module) -> list[tuple[str, str, Parameter]]:
    """Return layer, name and value of all parameters that have units, that is, two or more axes."""
    owners = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            owner = name.rpartition(".")[0]
            found.append((place_of(owner, owners[owner]), name, parameter))
    return found


def _all_equal(layer: str, name: str, weight: Parameter) -> Finding:
    value, fan_in = float(weight.data.flat[0]), math.prod(weight.shape[1:])
    facts = {"layer": layer, "name": name, "size": weight.size, "fan_in": fan_in, "deviation": math.sqrt(2 / fan_in)}
    return found("weights-are-equal", value=value, **facts) if value else found("weights-are-zero", **facts)


#: Largest share of dead units of a layer at the start. With few samples, some always are.
MOST_DEAD = 0.5

#: Largest share of a layer's values at which the slope is at most a twentieth of the steepest.
MOST_SATURATED = 0.5

#: Distance of tanh and sigmoid from their centre at which they are that flat.
_TANH_FLAT, _SIGMOID_FLAT = 0.975, 0.4875


def check_activations(signals: Signals) -> list[Finding]:
    """Return a finding for each layer most of whose units are dead or saturated."""
    return [
        finding
        for call in signals.calls
        for primitive, result in call.applied
        if (finding := _examine(call, primitive, result, len(signals.outputs))) is not None
    ]


def _examine(call: ModuleCall, primitive: str, result: Array, samples: int) -> Finding | None:
    match primitive:
        case "relu" if result.ndim >= 2:
            return dead_units(call.named, result, samples)
        case "tanh":
            return _saturated(call, float(np.mean(np.abs(result) > _TANH_FLAT)), "-1 or 1")
        case "sigmoid":
            return _saturated(call, float(np.mean(np.abs(result - 0.5) > _SIGMOID_FLAT)), "0 or 1")
        case _:
            return None


def dead_units(layer: str, result: Array, samples: int) -> Finding | None:
    """Return a finding for a ReLU with this result, (n, units, ...), if most of its units are dead."""
    # A unit is a feature, or a whole feature map.
    others = tuple(axis for axis in range(result.ndim) if axis != 1)
    dead, units = int(np.count_nonzero(~(result > 0).any(axis=others))), result.shape[1]
    if dead <= MOST_DEAD * units:
        return None
    return found("dead-relu", dead=dead, units=units, layer=layer, samples=samples)


def _saturated(call: ModuleCall, share: float, ends: str) -> Finding | None:
    return found("saturated", share=share, layer=call.named, ends=ends) if share > MOST_SATURATED else None


#: Largest healthy ratio between the sizes of two layers' gradients, or of an activation and the input. In the shipped
#: nets both stay below 50.
LARGEST = 1e4


def check_norms(signals: Signals) -> list[Finding]:
    """Return what explodes or vanishes, or the first layer with a value that is not finite."""
    if signals.nonfinite is not None:
        return [found("outputs-are-not-finite", layer=signals.nonfinite)]
    return [*_activations(signals), *_gradients(signals)]


def _activations(signals: Signals) -> list[Finding]:
    start = signals.input_size or 1.0
    for call in signals.calls:
        size = root_mean_square(call.output.data) if isinstance(call.output, Tensor) else 0.0
        if size > LARGEST * start:
            return [found("activations-explode", layer=call.named, ratio=size / start, size=size, start=start)]
    return []


def _gradients(signals: Signals) -> list[Finding]:
    known = [(name, size) for name, size in signals.gradients if size]
    if len(known) < 2:
        return []
    (first, first_size), (last, last_size) = known[0], known[-1]
    if last_size > LARGEST * first_size:
        return [found("gradients-vanish", first=first, last=last, ratio=last_size / first_size)]
    if first_size > LARGEST * last_size:
        return [found("gradients-explode", first=first, last=last, ratio=first_size / last_size)]
    return []
