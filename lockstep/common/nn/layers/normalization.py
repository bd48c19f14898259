"""Layers that bring activations to mean 0 and variance 1: over the batch, or within each sample."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.normalization import batch_moments, batch_norm
from lockstep.common.autograd.primitives.primitive import Array, Sink
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.nn.initializers import ones_, zeros_
from lockstep.common.nn.layers.sizes import per_axis, positive, volume
from lockstep.common.nn.module import Module, Parameter, RunningStatistic, layer


class _BatchNorm(Module):
    """The common part of the layers: all but the shapes that they accept.

    Ioffe and Szegedy, "Batch normalization", ICML 2015. In training, the statistics of a channel are those of the
    batch that forward is given, a micro-batch in a run (rule R8); its running statistics follow them, the variance with
    the divisor count - 1 as in PyTorch. In evaluation the running statistics are used.
    """

    #: By the number of axes that an input may have: those after the channels.
    _beyond_channels: ClassVar[Mapping[int, str]]

    weight: Parameter | None
    bias: Parameter | None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        if momentum is None:
            raise ValueError(
                "momentum is None, an average over all batches, which depends on their number: expected a number in "
                "[0, 1], such as 0.1"
            )
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum!r}: expected a number in [0, 1]")
        self.num_features = positive(num_features, "num_features")
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.running_mean = RunningStatistic(np.zeros(num_features, np.float32), momentum)
        self.running_var = RunningStatistic(np.ones(num_features, np.float32), momentum)
        self._sink = Sink(self._observe)

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return 4 * volume(arguments["num_features"])

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Set scale and running variance to 1, shift and running mean to 0; nothing is drawn."""
        self.running_mean.value[...] = 0.0
        self.running_var.value[...] = 1.0
        if self.weight is not None:
            ones_(self.weight)
        if self.bias is not None:
            zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self._beyond_channels or x.shape[1] != self.num_features:
            shapes = " or ".join(f"(n, {self.num_features}{axes})" for axes in self._beyond_channels.values())
            raise ValueError(f"{type(self).__name__} got shape {x.shape}: expected {shapes}")
        if not self.training:
            mean, var = self.running_mean.value, self.running_var.value
            return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        moments = apply(batch_moments, x, sink=self._sink)
        return apply(batch_norm, x, self.weight, self.bias, moments, eps=self.eps)

    def _observe(self, mean: Array, var: Array, shape: tuple[int, ...]) -> None:
        """Let the running statistics follow those of a batch, which has a result for each of its values."""
        samples, count = shape[0], math.prod(shape) // shape[1]
        for running, seen in ((self.running_mean, mean), (self.running_var, var * (count / max(1, count - 1)))):
            running.observe(np.add(seen, 0, dtype=running.value.dtype, casting="same_kind"), samples)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


@layer(repeatable=True)
class BatchNorm1d(_BatchNorm):
    """Batch normalisation of each channel: (n, c) or (n, c, l) to the same shape; `weight` and `bias` (c,).

    Ioffe and Szegedy, "Batch normalization", ICML 2015. In training by the statistics of the batch, which the running
    ones follow by `momentum`; in evaluation by `running_mean` and `running_var` (c,). In a run, the batch is a
    micro-batch. Raises ValueError for a `momentum` outside of [0, 1] and for an input of another shape.

    Differs from PyTorch: a batch of one value per channel has variance 0 and results in `bias`, where PyTorch raises,
    since the last micro-batch of an epoch may be that short; `momentum` is never None; there is no
    `track_running_stats` and no `bias` without `affine`.
    """

    _beyond_channels: ClassVar = {2: "", 3: ", l"}


@layer(repeatable=True)
class BatchNorm2d(_BatchNorm):
    """Batch normalisation of each channel: (n, c, h, w) to the same shape; `weight` and `bias` (c,).

    Ioffe and Szegedy, "Batch normalization", ICML 2015. In training by the statistics of the batch, which the running
    ones follow by `momentum`; in evaluation by `running_mean` and `running_var` (c,). In a run, the batch is a
    micro-batch. Raises ValueError for a `momentum` outside of [0, 1] and for an input of another shape.

    Differs from PyTorch: `momentum` is never None, and the state dict has no `num_batches_tracked`; there is no
    `track_running_stats` and no `bias` without `affine`.
    """

    _beyond_channels: ClassVar = {4: ", h, w"}


@layer(repeatable=True)
class LayerNorm(Module):
    """Normalisation of each sample over its last axes: (..., `normalized_shape`) to the same shape.

    Ba, Kiros and Hinton, "Layer normalization", 2016. `weight` and `bias` have the shape `normalized_shape`. Raises
    ValueError for an empty `normalized_shape`, and for an input that does not end in it.

    Differs from PyTorch: there is no `bias=False` without `elementwise_affine=False`.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        axes = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
        if not axes:
            raise ValueError("normalized_shape is empty: expected at least one axis")
        self.normalized_shape = per_axis(normalized_shape, axes, "normalized_shape")
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(np.ones(self.normalized_shape, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape, np.float32)) if elementwise_affine else None

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return 2 * volume(arguments["normalized_shape"])

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Set the scale to 1 and the shift to 0; nothing is drawn."""
        if self.weight is not None:
            ones_(self.weight)
        if self.bias is not None:
            zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
