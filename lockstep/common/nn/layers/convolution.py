"""Convolutional layers over one or two axes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.initializers import default_bias_, default_weight_
from lockstep.common.nn.layers.sizes import per_axis, positive, volume
from lockstep.common.nn.module import Module, Parameter, layer
from lockstep.common.numerics.random import Purpose, default_generator


class _Convolution(Module):
    """The common part of the layers: all but the number of axes and the function."""

    _axes: ClassVar[int]
    _function: ClassVar[Callable[..., Tensor]]

    weight: Parameter
    bias: Parameter | None

    # More parameters than a function should have: they are PyTorch's, and that is what people type.
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = positive(in_channels, "in_channels")
        self.out_channels = positive(out_channels, "out_channels")
        self.kernel_size = per_axis(kernel_size, self._axes, "kernel_size")
        self.stride = per_axis(stride, self._axes, "stride")
        self.padding = per_axis(padding, self._axes, "padding", at_least=0)
        self.dilation = per_axis(dilation, self._axes, "dilation")
        self.groups = positive(groups, "groups")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups is {groups}: expected a divisor of in_channels {in_channels} and out_channels {out_channels}"
            )
        self.weight = Parameter(np.empty((out_channels, in_channels // groups, *self.kernel_size), np.float32))
        self.bias = Parameter(np.empty(out_channels, np.float32)) if bias else None
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @classmethod
    def count_values(cls, arguments: Mapping[str, Any]) -> int:
        channels = volume(arguments["in_channels"]) * volume(arguments["out_channels"])
        return channels * volume(arguments["kernel_size"], cls._axes)

    def reset_parameters(self, rng: np.random.Generator) -> None:
        default_weight_(self.weight, rng)
        if self.bias is not None:
            default_bias_(self.bias, self.weight, rng)

    def forward(self, x: Tensor) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return type(self)._function(x, self.weight, self.bias, *options)

    def extra_repr(self) -> str:
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        # PyTorch's rule: an argument with its neutral value is left out, but the stride never is.
        if any(self.padding):
            parts.append(f"padding={self.padding}")
        if set(self.dilation) != {1}:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


@layer(repeatable=True)
class Conv1d(_Convolution):
    """Cross-correlation along one axis: (n, in_channels, l) to (n, out_channels, l').

    `weight` (out_channels, in_channels / groups, k) and `bias` (out_channels,) are drawn from U(-1/√fan_in, 1/√fan_in);
    l' = ⌊(l + 2·padding - dilation·(k - 1) - 1) / stride⌋ + 1. Raises ValueError for a size below 1, for `groups` that
    do not divide both numbers of channels, and for an input that does not fit.

    Differs from PyTorch: `padding` is a number, and the padding is zeros (no `padding_mode`); there is no input without
    a batch axis.
    """

    _axes = 1
    _function = F.conv1d


@layer(repeatable=True)
class Conv2d(_Convolution):
    """Cross-correlation over two axes: (n, in_channels, h, w) to (n, out_channels, h', w').

    `weight` (out_channels, in_channels / groups, kh, kw) and `bias` (out_channels,) are drawn from U(-1/√fan_in,
    1/√fan_in); h' = ⌊(h + 2·padding - dilation·(kh - 1) - 1) / stride⌋ + 1, likewise w'. Raises ValueError for a size
    below 1, for `groups` that do not divide both numbers of channels, and for an input that does not fit.

    >>> images = Tensor(np.zeros((5, 1, 28, 28), np.float32))
    >>> nn.Conv2d(1, 6, 5, padding=2)(images).shape
    (5, 6, 28, 28)

    Differs from PyTorch: `padding` is a number, and the padding is zeros (no `padding_mode`); there is no input without
    a batch axis.
    """

    _axes = 2
    _function = F.conv2d
