"""The fully connected layer, and the one that flattens its input."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.initializers import default_bias_, default_weight_
from lockstep.common.nn.layers.sizes import positive, volume
from lockstep.common.nn.module import Module, Parameter, layer
from lockstep.common.numerics.random import Purpose, default_generator


@layer(repeatable=True)
class Linear(Module):
    """y = x Wᵀ + b: (..., in_features) to (..., out_features).

    `weight` (out_features, in_features) and `bias` (out_features,) are drawn from U(-1/√in_features, 1/√in_features).
    Raises ValueError for a size below 1 and for an input of another size, TypeError for an input that is not floats.

    >>> layer = nn.Linear(3, 2)
    >>> layer.weight.shape, layer.bias.shape, layer(Tensor([[1.0, 2.0, 3.0]])).shape
    ((2, 3), (2,), (1, 2))
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, rng: np.random.Generator | None = None
    ) -> None:
        super().__init__()
        self.in_features = positive(in_features, "in_features")
        self.out_features = positive(out_features, "out_features")
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return volume(arguments["in_features"]) * volume(arguments["out_features"])

    def reset_parameters(self, rng: np.random.Generator) -> None:
        default_weight_(self.weight, rng)
        if self.bias is not None:
            default_bias_(self.bias, self.weight, rng)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype.kind != "f":
            # NumPy would turn them into float64, and tokens into magnitudes.
            raise TypeError(f"Linear got {x.dtype} of shape {x.shape}: expected floats; put an Embedding before it")
        if x.shape[-1:] != self.weight.shape[1:]:
            features = x.shape[-1] if x.shape else 0
            raise ValueError(
                f"Linear got an input of {features} features (shape {x.shape}), but its weight of shape "
                f"{self.weight.shape} expects {self.weight.shape[1]}"
            )
        return F.linear(x, self.weight, self.bias)


@layer(repeatable=True)
class Flatten(Module):
    """Join the axes from `start_dim` to `end_dim`, both included: by default (n, ...) to (n, product of the rest).

    Raises ValueError if `start_dim` lies behind `end_dim`.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)
