"""Pooling layers over one or two axes: the largest or the average of each window."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.sizes import one_or_each
from lockstep.common.nn.module import Module, layer

_Size = int | Sequence[int]


class _Pooling(Module):
    """The common part of the layers: the window, its step (by default the window) and the padding around the input."""

    _axes: ClassVar[int]
    _function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size = one_or_each(kernel_size, self._axes, "kernel_size")
        self.stride = one_or_each(kernel_size if stride is None else stride, self._axes, "stride")
        self.padding = one_or_each(padding, self._axes, "padding", at_least=0)
        self.ceil_mode = ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return type(self)._function(x, self.kernel_size, self.stride, self.padding, ceil_mode=self.ceil_mode)


class _AdaptivePooling(Module):
    """The common part of the layers: the number of windows."""

    _axes: ClassVar[int]
    _function: ClassVar[Callable[..., Tensor]]

    def __init__(self, output_size: _Size) -> None:
        super().__init__()
        self.output_size = one_or_each(output_size, self._axes, "output_size")

    def forward(self, x: Tensor) -> Tensor:
        return type(self)._function(x, self.output_size)


@layer(repeatable=True)
class MaxPool1d(_Pooling):
    """The largest element of each window, padding never among them: (n, c, l) to (n, c, l').

    l' = ⌊(l + 2·padding - kernel_size) / stride⌋ + 1; `stride` is by default `kernel_size`. Raises ValueError for a
    size below 1, and if a window does not fit.

    Differs from PyTorch: there is no `dilation` and no `return_indices`, which `F.max_pool2d` and `F.max_pool1d` have.
    """

    _axes = 1
    _function = F.max_pool1d


@layer(repeatable=True)
class MaxPool2d(_Pooling):
    """The largest element of each window, padding never among them: (n, c, h, w) to (n, c, h', w').

    h' = ⌊(h + 2·padding - kernel_size) / stride⌋ + 1, likewise w'; `stride` is by default `kernel_size`. Raises
    ValueError for a size below 1, and if a window does not fit.

    Differs from PyTorch: there is no `dilation` and no `return_indices`, which `F.max_pool2d` and `F.max_pool1d` have.
    """

    _axes = 2
    _function = F.max_pool2d


@layer(repeatable=True)
class AvgPool1d(_Pooling):
    """The average of each window, padding counted as zeros: (n, c, l) to (n, c, l'), with l' as in `MaxPool1d`.

    Raises ValueError for a size below 1, and if a window does not fit.

    Differs from PyTorch: there is no `count_include_pad`: padding always counts.
    """

    _axes = 1
    _function = F.avg_pool1d


@layer(repeatable=True)
class AvgPool2d(_Pooling):
    """The average of each window, padding counted as zeros: (n, c, h, w) to (n, c, h', w'), with h' and w' as in
    `MaxPool2d`.

    Raises ValueError for a size below 1, and if a window does not fit.

    Differs from PyTorch: there is no `divisor_override` and no `count_include_pad`: padding always counts.
    """

    _axes = 2
    _function = F.avg_pool2d


@layer(repeatable=True)
class AdaptiveAvgPool1d(_AdaptivePooling):
    """Averages over windows that cover the input, whatever its size: (n, c, l) to (n, c, output_size).

    Raises ValueError if `output_size` is below 1.
    """

    _axes = 1
    _function = F.adaptive_avg_pool1d


@layer(repeatable=True)
class AdaptiveAvgPool2d(_AdaptivePooling):
    """Averages over windows that cover the input, whatever its size: (n, c, h, w) to (n, c, rows, columns).

    `output_size` is (rows, columns), or one number for both. Raises ValueError if one is below 1.

    Differs from PyTorch: a size is never None.
    """

    _axes = 2
    _function = F.adaptive_avg_pool2d
