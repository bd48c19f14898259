"""Nonlinearities, softmax, dropout and the identity as modules; each keeps the shape of its input."""

import math
from typing import Literal

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module, Stochastic, layer


@layer(repeatable=True)
class Identity(Module):
    """Return the input as it is, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@layer(repeatable=True)
class ReLU(Module):
    """max(x, 0), element by element; the shape stays. Raises TypeError if the input does not hold numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@layer(repeatable=True)
class LeakyReLU(Module):
    """x where x > 0, otherwise `negative_slope`·x; the shape stays.

    Raises TypeError if the input does not hold numbers.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)


@layer(repeatable=True)
class GELU(Module):
    """x·Φ(x), where Φ is the normal distribution function; the shape stays.

    Hendrycks and Gimpel, "Gaussian error linear units", 2016. `approximate="tanh"` computes their faster approximation
    of Φ. Raises ValueError for another `approximate` than "none" and "tanh".
    """

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate is {approximate!r}: expected 'none' or 'tanh'")
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


@layer(repeatable=True)
class Softplus(Module):
    """log(1 + exp(`beta`·x)) / `beta`, without overflow; the shape stays.

    Raises TypeError if the input does not hold numbers.

    If `beta`·x is above `threshold`, it is x.

    Differs from PyTorch: there is no threshold by default, as nothing overflows; PyTorch's is 20.
    """

    def __init__(self, beta: float = 1.0, threshold: float | None = None) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, math.inf if self.threshold is None else self.threshold)


@layer(repeatable=True)
class Tanh(Module):
    """(eˣ - e⁻ˣ) / (eˣ + e⁻ˣ), element by element; the shape stays.

    Raises TypeError if the input does not hold numbers.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


@layer(repeatable=True)
class Sigmoid(Module):
    """1 / (1 + e⁻ˣ), element by element; the shape stays. Raises TypeError if the input does not hold numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class _AlongAxis(Module):
    """The common part of the layers: the axis."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim


@layer(repeatable=True)
class Softmax(_AlongAxis):
    """eˣ divided by its sum along the axis `dim`; the shape stays. Raises ValueError for an axis that there is not.

    For training prefer `CrossEntropyLoss`, which takes logits.

    Differs from PyTorch: `dim` has a default, the last axis.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=self.dim)


@layer(repeatable=True)
class LogSoftmax(_AlongAxis):
    """The logarithm of softmax along the axis `dim`, without overflow; the shape stays.

    Raises ValueError for an axis that there is not.

    Differs from PyTorch: `dim` has a default, the last axis.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, dim=self.dim)


@layer(repeatable=True)
class Dropout(Stochastic):
    """In training, zero each element with probability `p` and divide the others by 1 - p; the shape stays.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014. Draws from
    its own generator once reseeded by `Module.reseed`, and until then from `rng` or the default one (`nn.manual_seed`).
    Raises ValueError for a `p` outside of [0, 1].

    Differs from PyTorch: the dropped values follow from the seed, the step and the micro-batch; there is no `inplace`.
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability is {p!r}: expected a number in [0, 1]")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self._source)
