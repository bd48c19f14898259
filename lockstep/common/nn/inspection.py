"""Finds the layer where numbers go wrong; leaves the model as it is."""

import copy

import numpy as np

from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module


def first_nonfinite_layer(model: Module, x: Tensor) -> str | None:
    """Return which module's output is the first, in order of execution, to hold a NaN or an infinity.

    As `"3.1 (Linear)"`; `"the input"` if x, of the shape that the model takes, is not finite itself, the bare class if
    only the output of the whole model is not, None if all are finite. Runs forward once on a copy, in the mode that the
    model is in: running statistics and the generators of dropout stay as they are, so the call repeats just what a
    failed forward did if the model has been reseeded as then. Raises what forward raises.
    """
    if not np.isfinite(x.data).all():
        return "the input"
    found: list[str] = []

    def record(name: str, module: Module, output: object) -> None:
        if not found and not _is_finite(output):
            kind = type(module).__name__
            found.append(f"{name} ({kind})" if name else kind)

    probe = copy.deepcopy(model)
    with no_grad(), np.errstate(all="ignore"), probe.observe_outputs(record):
        probe(x)
    return found[0] if found else None


def _is_finite(output: object) -> bool:
    """Tell whether a tensor, or all tensors of a tuple or list, are finite; anything else counts as finite."""
    if isinstance(output, tuple | list):
        return all(_is_finite(item) for item in output)
    return not isinstance(output, Tensor) or bool(np.isfinite(output.data).all())
