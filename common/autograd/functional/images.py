"""Convolutions and pooling of images and signals as functions, with PyTorch's arguments."""

from typing import Any

from common.autograd.primitives.spatial import average_pooling, convolution, pooling
from common.autograd.primitives.spatial.windows import Pair
from common.autograd.tensor import Tensor, apply


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate signals (batch, in, length) with `weight` (out, in/groups, kernel), plus `bias` (out,)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply(convolution.conv1d, x, weight, bias, **options)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate images (batch, in, height, width) with `weight` (out, in/groups, kh, kw), plus `bias` (out,)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply(convolution.conv2d, x, weight, bias, **options)


def max_pool1d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Return the largest element of each window of signals; the stride defaults to the kernel."""
    return apply(pooling.max_pool1d, x, kernel_size=kernel_size, stride=stride, padding=padding)


def max_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Return the largest element of each window of images; the stride defaults to the kernel."""
    return apply(pooling.max_pool2d, x, kernel_size=kernel_size, stride=stride, padding=padding)


def avg_pool1d(
    x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> Tensor:
    """Return the mean of each window of signals; the stride defaults to the kernel."""
    options = {"stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return apply(average_pooling.avg_pool1d, x, kernel_size=kernel_size, **options)


def avg_pool2d(
    x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> Tensor:
    """Return the mean of each window of images; the stride defaults to the kernel."""
    options = {"stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return apply(average_pooling.avg_pool2d, x, kernel_size=kernel_size, **options)


def adaptive_avg_pool1d(x: Any, output_size: Pair) -> Tensor:
    """Return the means over `output_size` windows that cover each signal."""
    return apply(average_pooling.adaptive_avg_pool1d, x, output_size=output_size)


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Tensor:
    """Return the means over `output_size` windows (rows, columns) that cover each image."""
    return apply(average_pooling.adaptive_avg_pool2d, x, output_size=output_size)
