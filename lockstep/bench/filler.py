"""A model that computes nothing: its gradient is filled with one number. What is left of a step is the exchange.

All of it but this is the real thing: the peer's all-reduce is measured with the same filling.
"""

from typing import Any

import numpy as np

from common.autograd.primitives.primitive import Array, Primitive
from common.autograd.tensor import Tensor, apply
from common.nn.module import Module, Parameter

#: Classes of the data that it pretends to tell apart.
CLASSES = 2


def _nothing(weights: Array, *, samples: int) -> Array:
    """Return logits of zeros (samples, CLASSES)."""
    return np.zeros((samples, CLASSES), dtype=weights.dtype)


def _fill(gradient: Array, saved: None, *_: Any, samples: int, out: Array) -> Array:
    """Fill the weights' gradient; 0.5 has no other meaning than with the peer."""
    out.fill(0.5)
    return out


#: Without a derivative that takes no `out`: the parameters' gradients always have their place in a flat vector.
fill = Primitive("fill", _nothing, (_fill,), reads=((),), writes=(0,))


class Filler(Module):
    """So many parameters, in one vector of zeros, that make no difference to the output."""

    weights: Parameter

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weights = Parameter(np.zeros(parameters, dtype=np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return apply(fill, self.weights, samples=x.shape[0])


def source_of(parameters: int) -> str:
    """Return the source of a model file whose `build` makes a filler."""
    return f"from lockstep.bench.filler import Filler\n\n\ndef build():\n    return Filler({parameters})\n"
