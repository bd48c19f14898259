"""A model that computes nothing: its gradient is filled with one number, so that a step is only the exchange.

All else is real. The all-reduce of the PyTorch baseline is measured with the same filling. A module of its own, because
worker processes import it as a model file does.
"""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.nn.module import Module, Parameter

#: Classes of the data.
CLASSES = 2


def _fill(gradient: Array, saved: None, *_: Any, samples: int, out: Array) -> Array:
    """Fill the gradient of the weights, with the same value as the baseline."""
    out.fill(0.5)
    return out


#: Only with a derivative that takes `out`, because gradients of parameters always lie in a flat vector.
fill = Primitive(
    "fill", lambda weights, samples: np.zeros((samples, CLASSES), weights.dtype), (_fill,), reads=((),), writes=(0,)
)


class Filler(Module):
    """A number of parameters in one vector of zeros, which do not affect the output."""

    weights: Parameter

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weights = Parameter(np.zeros(parameters, dtype=np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return apply(fill, self.weights, samples=x.shape[0])


def source_of(parameters: int) -> str:
    """Return the source of a model file whose `build` makes a filler."""
    return f"from lockstep.bench.constant_gradient import Filler\n\n\ndef build():\n    return Filler({parameters})\n"
