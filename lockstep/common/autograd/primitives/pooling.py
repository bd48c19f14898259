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
    Window,
    batch_first,
    batch_innermost,
    channel_blocks,
    check_images,
    check_window,
    over_signals,
    pair,
    pooling_windows,
    taps,
)
from lockstep.common.numerics import leaves
from lockstep.common.numerics.operands import PoolWindows

#: The windows along the height and the width, and what divides their sums (oh, ow, batch).
_Divided = tuple[Window, Window, Array]
#: (first, last + 1) of each window along one axis.
_Spans = list[tuple[int, int]]
Shape = tuple[int, ...]


def _max_pool2d(x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the largest element of each window; NaN if a window holds one. The stride defaults to the kernel."""
    check_images(x, "max_pool2d")
    rows, columns = pooling_windows(x.shape[2:], kernel_size, stride, padding)
    images = batch_innermost(x)
    pooled = empty((images.shape[0], rows.count, columns.count, images.shape[3]), x)
    return batch_first(leaves.max_pool(images, _windows(rows, columns), pooled))


def _windows(rows: Window, columns: Window) -> PoolWindows:
    along = rows, columns
    kernel, stride, padding = zip(*((each.kernel, each.stride, each.padding) for each in along), strict=True)
    return PoolWindows(kernel, stride, padding)


def _max_pool2d_x(
    gradient: Array, pooled: Array, x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Array:
    """Give each window's gradient to the first of its largest elements in row-major order, as PyTorch does.

    If a window holds NaN, its first element takes all.
    """
    rows, columns = pooling_windows(x.shape[2:], kernel_size, stride, padding)
    images, largest, upstream = batch_innermost(x), batch_innermost(pooled), batch_innermost(gradient)
    result = empty(images.shape, gradient)
    return batch_first(leaves.max_pool_gradient(upstream, images, largest, _windows(rows, columns), result))


max_pool2d = Primitive("max_pool2d", _max_pool2d, (_max_pool2d_x,), reads=((0, RESULT),))
max_pool1d = over_signals("max_pool1d", max_pool2d)


def _avg_pool2d(
    x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> tuple[Array, _Divided]:
    """Return the mean of each window; with `count_include_pad`, the zeros of the padding count as elements."""
    check_images(x, "avg_pool2d")
    rows, columns = pooling_windows(x.shape[2:], kernel_size, stride, padding)
    divisor = _divisor(rows, columns, count_include_pad, x.dtype)
    images = batch_innermost(x)
    pooled = zeros((images.shape[0], rows.count, columns.count, images.shape[3]), x)
    for block in channel_blocks(images):
        part, result = images[block], pooled[block]
        for elements, windows in taps(rows, columns):
            result[windows] += part[elements]
        result /= divisor
    return batch_first(pooled), (rows, columns, divisor)


def _avg_pool2d_x(gradient: Array, saved: _Divided, *_: None, **__: object) -> Array:
    rows, columns, divisor = saved
    share = batch_innermost(gradient) / divisor
    result = zeros((share.shape[0], rows.size, columns.size, share.shape[3]), gradient)
    for block in channel_blocks(result):
        part, source = result[block], share[block]
        for elements, windows in taps(rows, columns):
            part[elements] += source[windows]
    return batch_first(result)


@lru_cache(maxsize=64)
def _divisor(rows: Window, columns: Window, count_include_pad: bool, dtype: np.dtype[Any]) -> Array:
    """Return the number of elements of each window, as something that divides (oh, ow, batch); to be read only."""
    if count_include_pad or not (rows.padding or columns.padding):
        counts = np.array(rows.kernel * columns.kernel, dtype)
    else:
        counts = np.multiply.outer(_seen(rows), _seen(columns)).astype(dtype)[:, :, None]
    counts.flags.writeable = False
    return counts


def _seen(window: Window) -> Array:
    """Count the elements, without the padding, that each window along one axis sees."""
    counts = np.zeros(window.count, np.int64)
    for offset in range(window.kernel):
        counts[window.tap(offset)[1]] += 1
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


# With gaps between the elements of a window, or with windows that are cut off at the end: every window is a copy


def _places(
    image: Shape, kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Array, Array, list[Array]]:
    """Return places in the flattened image (oh, kh, ow, kw), which of them are in it, and per axis the window's sizes.

    A size counts the padding at both sides, and nothing beyond it.
    """
    kernel, reach, border = pair(kernel_size, "kernel_size"), pair(dilation, "dilation"), pair(padding, "padding")
    steps = kernel if stride is None else pair(stride, "stride")
    found, sizes = [], []
    for axis in range(2):
        size, step = image[axis], steps[axis]
        window = check_window(Window(size, kernel[axis], step, border[axis], reach[axis]), "pooling")
        count = window.count
        if ceil_mode and (size + 2 * border[axis] - window.reach) % step and count * step < size + border[axis]:
            count += 1  # begins within the image or the padding before it
        starts = np.arange(count) * step - border[axis]
        found.append(starts[:, np.newaxis] + reach[axis] * np.arange(kernel[axis]))
        sizes.append(np.minimum(starts + kernel[axis], size + border[axis]) - starts)
    rows, columns = found[0][:, :, np.newaxis, np.newaxis], found[1]
    is_inside = (rows >= 0) & (rows < image[0]) & (columns >= 0) & (columns < image[1])
    return np.where(is_inside, rows * image[1] + columns, 0), is_inside, sizes


def largest_places(x: Array, **options: Any) -> Array:
    """Return the places of the largest elements in each flattened image, (n, c, oh, ow)."""
    check_images(x, "max_pool2d")
    places, is_inside, _ = _places(x.shape[2:], **options)
    seen = np.where(is_inside, x.reshape(*x.shape[:2], -1)[:, :, places], -np.inf)
    windows = seen.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], *places.shape[::2], -1)
    flat = np.broadcast_to(places.transpose(0, 2, 1, 3).reshape(*places.shape[::2], -1), windows.shape)
    return np.take_along_axis(flat, windows.argmax(-1)[..., np.newaxis], -1)[..., 0]


def _max_pool_any(x: Array, **options: Any) -> tuple[Array, tuple[Array, Shape]]:
    """Return the largest element of each window."""
    chosen = largest_places(x, **options)
    flat = x.reshape(*x.shape[:2], -1)
    pooled = np.take_along_axis(flat, chosen.reshape(*x.shape[:2], -1), -1).reshape(chosen.shape)
    return pooled, (chosen, x.shape)


def _max_pool_any_x(gradient: Array, saved: tuple[Array, Shape], *_: None, **__: object) -> Array:
    chosen, shape = saved
    return _scattered(gradient.reshape(*shape[:2], -1), chosen.reshape(*shape[:2], -1), shape)


def _scattered(gradient: Array, places: Array, shape: Shape) -> Array:
    """Add (n, c, ...) to its places in flattened images, in order."""
    result = np.zeros((shape[0] * shape[1], shape[2] * shape[3]), gradient.dtype)
    image = np.arange(len(result)).reshape(*shape[:2], *[1] * (gradient.ndim - 2))
    np.add.at(result, (np.broadcast_to(image, gradient.shape), np.broadcast_to(places, gradient.shape)), gradient)
    return result.reshape(shape)


def average_divisors(
    image: Shape, *, count_include_pad: bool = True, divisor_override: int | None = None, **options: Any
) -> Array:
    """Return the number by which the sum of each window is divided, (oh, ow), or (1, 1) if that is given."""
    if divisor_override is not None:
        return np.full((1, 1), divisor_override)
    _, is_inside, sizes = _places(image, dilation=1, **options)
    return np.multiply.outer(*sizes) if count_include_pad else np.count_nonzero(is_inside, axis=(1, 3))


def _avg_pool_any(
    x: Array, *, count_include_pad: bool = True, divisor_override: int | None = None, **options: Any
) -> tuple[Array, tuple[Array, Array, Array, Shape]]:
    """Return the sum of each window, divided by its size, or by the number given."""
    check_images(x, "avg_pool2d")
    places, is_inside, _ = _places(x.shape[2:], dilation=1, **options)
    seen = np.where(is_inside, x.reshape(*x.shape[:2], -1)[:, :, places], x.dtype.type(0))
    counts = average_divisors(
        x.shape[2:], count_include_pad=count_include_pad, divisor_override=divisor_override, **options
    )
    divisor = counts.astype(x.dtype)
    return leaves.total(seen, axis=(3, 5)) / divisor, (places, is_inside, divisor, x.shape)


def _avg_pool_any_x(gradient: Array, saved: tuple[Array, Array, Array, Shape], *_: None, **__: object) -> Array:
    places, is_inside, divisor, shape = saved
    share = (gradient / divisor)[:, :, :, np.newaxis, :, np.newaxis]
    return _scattered(np.where(is_inside, share, gradient.dtype.type(0)), places, shape)


max_pool_any = Primitive("max_pool_any", _max_pool_any, (_max_pool_any_x,), keeps=True, reads=((),), is_opaque=True)
avg_pool_any = Primitive("avg_pool_any", _avg_pool_any, (_avg_pool_any_x,), keeps=True, reads=((),), is_opaque=True)
