"""Pooling over (batch, channels, height, width) or (batch, channels, length): maxima, means, and adaptive means.

Any memory layout is accepted; results and gradients have the batch innermost. Padding never exists in memory: each
offset of the window is one slice of elements and one of windows.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive, empty, zeros
from lockstep.common.autograd.primitives.windows import (
    Pair,
    batch_first,
    batch_innermost,
    channel_blocks,
    check_images,
    over_signals,
    pair,
    pooling_windows,
)
from lockstep.common.numerics import leaves
from lockstep.common.numerics.operands import Windows, taps

#: The windows along the height and the width, and what divides their sums (oh, ow, batch).
_Divided = tuple[Windows, Array]
#: (first, last + 1) of each window along one axis.
_Spans = list[tuple[int, int]]


def _max_pool2d(x: Array, **options: Any) -> Array:
    """Return the largest element of each window; NaN if a window holds one. Options are those of `pooling_windows`."""
    check_images(x, "max_pool2d")
    windows, images = pooling_windows(x.shape[2:], **options), batch_innermost(x)
    pooled = empty((images.shape[0], *(each.count for each in windows), images.shape[3]), x)
    return batch_first(leaves.max_pool(images, out=pooled, options=(windows,)))


def _max_pool2d_x(gradient: Array, pooled: Array, x: Array, **options: Any) -> Array:
    """Give each window's gradient to the first of its largest elements in row-major order, as PyTorch does.

    If a window holds NaN, its first element takes all.
    """
    images, largest, upstream = batch_innermost(x), batch_innermost(pooled), batch_innermost(gradient)
    windows, result = pooling_windows(x.shape[2:], **options), empty(images.shape, gradient)
    return batch_first(leaves.max_pool_gradient(upstream, images, largest, out=result, options=(windows,)))


max_pool2d = Primitive("max_pool2d", _max_pool2d, (_max_pool2d_x,), reads=((0, RESULT),))
max_pool1d = over_signals("max_pool1d", max_pool2d)


def largest_places(x: Array, pooled: Array, **options: Any) -> Array:
    """Return where in each flattened image the first of the largest elements of each window is, (n, c, oh, ow)."""
    images, largest = batch_innermost(x), batch_innermost(pooled)
    every = np.arange(x.shape[2] * x.shape[3]).reshape(*x.shape[2:], 1)
    places, is_found = np.zeros(largest.shape, np.int64), np.zeros(largest.shape, np.bool_)
    for elements, windows in taps(*pooling_windows(x.shape[2:], **options)):
        seen = images[elements]
        is_first = ~is_found[windows] & ((seen == largest[windows]) | np.isnan(seen))
        np.copyto(places[windows], every[elements[1:]], where=is_first)
        is_found[windows] |= is_first
    return batch_first(places)


def _avg_pool2d(
    x: Array, *, count_include_pad: bool = True, divisor_override: int | None = None, **options: Any
) -> tuple[Array, _Divided]:
    """Return the mean of each window; with `count_include_pad`, the zeros of the padding count as elements.

    The sum is divided by `divisor_override` if that is given. Other options are those of `pooling_windows`.
    """
    check_images(x, "avg_pool2d")
    windows, images = pooling_windows(x.shape[2:], **options), batch_innermost(x)
    divisor = _divisor(windows, count_include_pad, divisor_override, x.dtype)
    pooled = zeros((images.shape[0], *(each.count for each in windows), images.shape[3]), x)
    for block in channel_blocks(images):
        part, result = images[block], pooled[block]
        for elements, places in taps(*windows):
            result[places] += part[elements]
        result /= divisor
    return batch_first(pooled), (windows, divisor)


def _avg_pool2d_x(gradient: Array, saved: _Divided, *_: None, **__: object) -> Array:
    windows, divisor = saved
    share = batch_innermost(gradient) / divisor
    result = zeros((share.shape[0], *(each.size for each in windows), share.shape[3]), gradient)
    for block in channel_blocks(result):
        part, source = result[block], share[block]
        for elements, places in taps(*windows):
            part[elements] += source[places]
    return batch_first(result)


@lru_cache(maxsize=64)
def _divisor(windows: Windows, count_include_pad: bool, override: int | None, dtype: np.dtype[Any]) -> Array:
    """Return what the sum of each window is divided by, as an array that divides (oh, ow, batch); to be read only."""
    if override is not None:
        counts = np.array(override, dtype)
    else:
        along = (each.lengths(with_padding=count_include_pad) for each in windows)
        counts = np.multiply.outer(*along).astype(dtype)[:, :, None]
        if (counts == counts[0, 0]).all():
            counts = np.array(counts[0, 0, 0])
    counts.flags.writeable = False
    return counts


avg_pool2d = Primitive("avg_pool2d", _avg_pool2d, (_avg_pool2d_x,), keeps=True, reads=((),))
avg_pool1d = over_signals("avg_pool1d", avg_pool2d)


def _adaptive_avg_pool2d(x: Array, *, output_size: Pair) -> tuple[Array, tuple[int, ...]]:
    """Return means over oh × ow windows that cover the image, of near-equal size, overlapping if it does not divide.

    Window k along an axis of n elements is [floor(k n / o), ceil((k + 1) n / o)), as in PyTorch.
    """
    check_images(x, "adaptive_avg_pool2d")
    rows, columns = _adaptive_spans(x.shape[2:], output_size)
    images = batch_innermost(x)
    pooled = empty((images.shape[0], len(rows), len(columns), images.shape[3]), x)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            leaves.total(images[:, top:bottom, left:right], axis=(1, 2), out=pooled[:, i, j])
            pooled[:, i, j] /= (bottom - top) * (right - left)
    return batch_first(pooled), x.shape[2:]


def _adaptive_avg_pool2d_x(gradient: Array, image: tuple[int, ...], _: None, *, output_size: Pair) -> Array:
    rows, columns = _adaptive_spans(image, output_size)
    upstream = batch_innermost(gradient)
    result = zeros((upstream.shape[0], *image, upstream.shape[3]), gradient)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            share = upstream[:, i, j] / ((bottom - top) * (right - left))
            result[:, top:bottom, left:right] += share[:, None, None]
    return batch_first(result)


def _adaptive_spans(image: tuple[int, ...], output_size: Pair) -> tuple[_Spans, _Spans]:
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size,) * 2
    outputs = pair(
        [size if wanted is None else wanted for wanted, size in zip(sizes, image, strict=True)], "output_size"
    )
    if min(outputs) < 1 or min(image) < 1:
        raise ValueError(
            f"adaptive pooling has output_size {output_size!r} for images of {image!r}, expected each to be at least 1"
        )
    rows, columns = (
        [(k * size // parts, -(-(k + 1) * size // parts)) for k in range(parts)]
        for size, parts in zip(image, outputs, strict=True)
    )
    return rows, columns


adaptive_avg_pool2d = Primitive(
    "adaptive_avg_pool2d", _adaptive_avg_pool2d, (_adaptive_avg_pool2d_x,), keeps=True, reads=((),)
)
adaptive_avg_pool1d = over_signals("adaptive_avg_pool1d", adaptive_avg_pool2d)
