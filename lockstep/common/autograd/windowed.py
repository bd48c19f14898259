"""Convolutions and pools of tensors, with PyTorch's names and arguments: a part of `functional`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lockstep.common.autograd.primitives import convolution, pooling, shape
from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.primitives.windows import Pair, of_one_row
from lockstep.common.autograd.tensor import Tensor, apply


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate signals (n, in, l) with `weight` (out, in/groups, k), plus `bias` (out,): the result is (n, out, l').

    `stride`, `padding` and `dilation` are in elements, and l' = ⌊(l + 2·padding - dilation·(k - 1) - 1) / stride⌋ + 1.
    Raises ValueError if the channels do not fit, if the window is longer than the padded signal, and for a stride below
    1.

    `padding` may be "valid", which is 0, or "same", with which l' = l for a stride of 1. The batch axis may be missing.
    """
    return _convolved(convolution.conv1d, 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate images (n, in, h, w) with `weight` (out, in/groups, kh, kw), plus `bias` (out,): the result is (n, out,
    h', w').

    `stride`, `padding` and `dilation` are one number for both axes or one for each, in pixels. h' is ⌊(h + 2·padding -
    dilation·(kh - 1) - 1) / stride⌋ + 1, and w' likewise. Raises ValueError if the channels do not fit, if the window
    is larger than the padded image, and for a stride below 1.

    >>> F.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))).tolist()
    [[[[4.0, 4.0], [4.0, 4.0]]]]

    `padding` may be "valid", which is 0, or "same", with which the size stays for a stride of 1. An image may lack the
    batch axis.
    """
    return _convolved(convolution.conv2d, 2, x, weight, bias, stride, padding, dilation, groups)


def _convolved(
    primitive: Primitive,
    axes: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Tensor:
    if isinstance(padding, str):
        x, padding = _named_padding(axes, x, weight, stride, padding, dilation)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _batched(axes, x, lambda x: apply(primitive, x, weight, bias, **options))


def _named_padding(axes: int, x: Any, weight: Any, stride: Pair, padding: str, dilation: Pair) -> tuple[Any, Pair]:
    """Return a padded input, and the padding that is left to do."""
    if padding == "valid":
        return x, 0
    steps, reaches = (each if isinstance(each, Sequence) else (each,) * axes for each in (stride, dilation))
    if padding != "same" or set(steps) != {1}:
        raise ValueError(f"padding is {padding!r} with stride {stride!r}: expected a number, 'valid', or 'same' with 1")
    kernel = weight.shape[-axes:]
    wanted = [reach * (size - 1) for reach, size in zip(reaches, kernel, strict=False)]
    if all(each % 2 == 0 for each in wanted):
        return x, [each // 2 for each in wanted]
    x = x if isinstance(x, Tensor) else Tensor(x)
    widths = ((0, 0),) * (x.ndim - axes) + tuple((each // 2, each - each // 2) for each in wanted)
    return apply(shape.pad, x, widths=widths, value=0.0), 0


def _batched(axes: int, x: Any, function: Callable[[Any], Tensor]) -> Tensor:
    """Return the function of a batch; of one sample (channels, ...) without the batch axis."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    return function(x) if x.ndim != axes + 1 else function(x.unsqueeze(0)).squeeze(0)


def max_pool1d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the largest element of each window of signals: (n, c, l) to (n, c, l'). The stride defaults to the kernel.

    Sizes are in elements, and l' = ⌊(l + 2·padding - dilation·(kernel_size - 1) - 1) / stride⌋ + 1, rounded up with
    `ceil_mode` if the last window begins within the signal or the padding before it. Padding is never the largest. With
    `return_indices`, the places of the largest elements come second. Raises ValueError if a window does not fit, or if
    more than half of the kernel is padding.
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(1, pooling.max_pool1d, x, *options)


def max_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the largest element of each window of images: (n, c, h, w) to (n, c, h', w').

    The stride defaults to the kernel. Sizes are one number for both axes or one for each, in pixels, and h' and w' are
    as in `max_pool1d`, with the same options. Padding is never the largest. Raises ValueError if a window does not fit,
    or if more than half of the kernel is padding.
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(2, pooling.max_pool2d, x, *options)


def _max_pool(
    axes: int,
    primitive: Primitive,
    x: Any,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    options = {"kernel_size": kernel_size, "stride": stride or None, "padding": padding}
    options |= {"dilation": dilation, "ceil_mode": ceil_mode}
    x = x if isinstance(x, Tensor) else Tensor(x)
    pooled = _batched(axes, x, lambda x: apply(primitive, x, **options))
    if not return_indices:
        return pooled
    images = [
        each.data.reshape(math.prod(each.shape[:-axes]), *[1] * (3 - axes), *each.shape[-axes:]) for each in (x, pooled)
    ]
    places = pooling.largest_places(*images, **(options if axes == 2 else of_one_row(options)))
    return pooled, Tensor(places.reshape(pooled.shape))


def avg_pool1d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of signals: (n, c, l) to (n, c, l'), with l' as in `max_pool1d`.

    Padding counts as zeros, or not at all with `count_include_pad=False`. Raises ValueError if a window does not fit.
    """
    options = {"kernel_size": kernel_size, "stride": stride or None, "padding": padding}
    options |= {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _batched(1, x, lambda x: apply(pooling.avg_pool1d, x, **options))


def avg_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the mean of each window of images: (n, c, h, w) to (n, c, h', w'), with sizes as in `max_pool2d`.

    Padding counts as zeros, or not at all with `count_include_pad=False`; `divisor_override` is in place of the count.
    Raises ValueError if a window does not fit, and for a divisor of 0.
    """
    if divisor_override == 0:
        raise ValueError("divisor_override is 0: expected another number")
    options = {"kernel_size": kernel_size, "stride": stride or None, "padding": padding}
    options |= {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _batched(2, x, lambda x: apply(pooling.avg_pool2d, x, **options))


def adaptive_avg_pool1d(x: Any, output_size: Pair) -> Tensor:
    """Return the means over `output_size` windows that cover each signal: (n, c, l) to (n, c, output_size).

    Raises ValueError if `output_size` is below 1.
    """
    return _batched(1, x, lambda x: apply(pooling.adaptive_avg_pool1d, x, output_size=output_size))


def adaptive_avg_pool2d(x: Any, output_size: Pair | tuple[int | None, int | None]) -> Tensor:
    """Return the means over `output_size` windows (rows, columns) that cover each image: (n, c, h, w) to (n, c, rows,
    columns).

    One number is taken for both, and None is the size of the image. Raises ValueError if one is below 1.
    """
    return _batched(2, x, lambda x: apply(pooling.adaptive_avg_pool2d, x, output_size=output_size))
