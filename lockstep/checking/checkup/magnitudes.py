"""One forward and backward pass over a batch: each module's calls, and the sizes of activations and gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common.aggregation.layout import trained_parameters
from lockstep.common.autograd.graph import Applied, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.inspection import first_nonfinite_layer
from lockstep.common.nn.module import Module, place_of


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
        outputs=target.objective.rows(outputs.data),
        classes=0 if is_regression else target.data.train.classes,
        guess=float(np.var(targets, axis=0, dtype=np.float64).mean()) if is_regression else 0.0,
        input_size=root_mean_square(images),
        gradients=gradients,
        nonfinite=nonfinite,
    )


def root_mean_square(array: Array) -> float:
    """Return the size of a typical element."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
