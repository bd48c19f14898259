"""Finds where numbers go wrong: in the output of which layer, in which operation, or in which gradient."""

import copy
from collections.abc import Mapping

import numpy as np

from lockstep.common.autograd.graph import Applied, no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module, place_of


def first_nonfinite_layer(model: Module, *inputs: Tensor, **named: Tensor) -> str | None:
    """Return which module's output is the first, in order of execution, to hold a NaN or an infinity.

    As `"3.1 (Linear)"`; `"the input"` if one of the tensors that the model takes, of any shape, is not finite itself,
    the bare class if only the output of the whole model is not, None if all are finite. Runs forward once on a copy, in
    the mode that the model is in: running statistics and the generators of dropout stay as they are, so the call
    repeats just what a failed forward did if the model has been reseeded as then. Raises what forward raises.
    """
    if not _is_finite([*inputs, *named.values()]):
        return "the input"
    found: list[str] = []

    def record(name: str, module: Module, output: object) -> None:
        if not found and not _is_finite(output):
            found.append(place_of(name, module) if name else type(module).__name__)

    probe = copy.deepcopy(model)
    with no_grad(), np.errstate(all="ignore"), probe.observe_outputs(record):
        probe(*inputs, **named)
    return found[0] if found else None


class Inspector:
    """Looks at each operation and at the output of each layer."""

    def __init__(self) -> None:
        #: Names and classes of layers, and copies of their outputs.
        self.outputs: list[tuple[str, str, Array]] = []
        #: The first operation with a result that is not finite, with its direction, and the first such layer.
        self.operation = ""
        self.layer = ""

    def on_operation(self, applied: Applied) -> None:
        """Check the result of one operation."""
        # A derivative may write into an array that it receives.
        results = (
            applied.outcome if isinstance(applied.outcome, tuple) else (applied.outcome, applied.options.get("out"))
        )
        if not self.operation and not all(isinstance(each, tuple) or _is_finite(each) for each in results):
            self.operation = f"{applied.primitive.name}, {applied.direction}"

    def on_layer(self, name: str, module: Module, output: object) -> None:
        """Record the output of a layer."""
        if isinstance(output, Tensor):
            self.outputs.append((name, type(module).__name__, output.data.copy()))
            if not self.layer and not _is_finite(output):
                self.layer = f"layer {place_of(name, module)}" if name else place_of(name, module)

    def first_nonfinite(self, gradients: Mapping[str, Array]) -> str | None:
        """Return where the first number that is not finite arose."""
        if self.layer:
            return f"{self.layer}, in operation {self.operation or 'unknown'}"
        if self.operation.endswith("forward"):
            return f"the loss, in operation {self.operation}"
        odd = [name for name, gradient in gradients.items() if not _is_finite(gradient)]
        if odd:
            # Backward starts at the end, so that the last parameter is the first to get its gradient.
            return f"the gradient of {odd[-1]}, in operation {self.operation or 'unknown'}"
        return f"operation {self.operation}" if self.operation else None


def _is_finite(value: object) -> bool:
    """Tell whether an array, a tensor, or all in a tuple or list, are finite; anything else counts as finite."""
    if isinstance(value, tuple | list):
        return all(map(_is_finite, value))
    array = value.data if isinstance(value, Tensor) else value
    return not isinstance(array, np.ndarray | np.generic) or array.dtype.kind != "f" or bool(np.isfinite(array).all())
