"""Observe our autograd at work on one micro-batch: each operation, and the output of each layer."""

from typing import Any

import numpy as np

from lockstep.common.autograd.graph import observe
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import Inspection, LayerOutput, Outcome
from lockstep.common.nn.module import Module


class Observer:
    """Observes each operation and the output of each layer."""

    def __init__(self) -> None:
        self.outputs: list[LayerOutput] = []
        #: The first operation with a result that is not finite, with its direction, and the first such layer.
        self.operation = ""
        self.layer = ""

    def on_operation(self, primitive: Primitive, direction: str, function: Any, *arguments: Any, **options: Any) -> Any:
        """Compute one operation, and check its result."""
        result = function(*arguments, **options)
        # A derivative may write into an array that it receives.
        arrays = result if isinstance(result, tuple) else (result, options.get("out"))
        if not self.operation and not all(is_finite(array) for array in arrays):
            self.operation = f"{primitive.name}, {direction}"
        return result

    def on_layer(self, name: str, module: Module, output: Any) -> None:
        """Record the output of a layer."""
        if isinstance(output, Tensor):
            kind = type(module).__name__
            self.outputs.append(LayerOutput(name, kind, output.data.copy()))
            if not self.layer and not is_finite(output.data):
                self.layer = f"layer {name} ({kind})" if name else f"the model ({kind})"

    def first_nonfinite(self, gradients: dict[str, Array]) -> str | None:
        """Return where the first number that is not finite arose."""
        if self.layer:
            return f"{self.layer}, in operation {self.operation or 'unknown'}"
        if self.operation.endswith("forward"):
            return f"the loss, in operation {self.operation}"
        odd = [name for name, gradient in gradients.items() if not is_finite(gradient)]
        if odd:
            # Backward starts at the end, so that the last parameter is the first to get its gradient.
            return f"the gradient of {odd[-1]}, in operation {self.operation or 'unknown'}"
        return f"operation {self.operation}" if self.operation else None


def inspected(module: Module, objective: Objective, images: Array, targets: Array) -> Inspection:
    """Compute a micro-batch in the mode and with the generators that the module has, and return what is seen."""
    observer = Observer()
    with observe(observer.on_operation), module.observe_outputs(observer.on_layer):
        outputs = module(Tensor(images))
        loss = objective.training_loss(outputs, targets)
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    outcome = Outcome(float(loss.data), outputs.data)
    return Inspection(outcome, observer.outputs, gradients, observer.first_nonfinite(gradients))


def is_finite(value: Any) -> bool:
    """Return whether an array holds finite numbers only; anything else counts as finite."""
    return not isinstance(value, np.ndarray | np.generic) or value.dtype.kind != "f" or bool(np.isfinite(value).all())
