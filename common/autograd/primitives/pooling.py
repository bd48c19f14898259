"""Maximum and average pooling over (batch, channels, height, width) or (batch, channels, length).

Any memory layout is accepted; results and gradients have the batch innermost. Padding never exists in memory: each
offset of the window is one slice of elements and one of windows.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from common.autograd.primitives.primitive import RESULT, Array, Primitive
from common.autograd.primitives.windows import (
    Pair,
    Window,
    batch_first,
    batch_innermost,
    channel_blocks,
    check_images,
    check_window,
    pair,
)

#: Index of one offset of all windows: into the elements, and into the windows that see one there.
Tap = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


def _max_pool2d(x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the largest element of each window; NaN where a window holds one. The stride defaults to the kernel."""
    check_images(x, "max_pool2d")
    rows, columns = _along_axes(x.shape[2:], kernel_size, stride, padding)
    images = batch_innermost(x)
    pooled = np.empty((images.shape[0], rows.count, columns.count, images.shape[3]), x.dtype)
    (_, _), *others = taps = _taps(rows, columns)
    for block in channel_blocks(images):
        part, result = images[block], pooled[block]
        if rows.padding or columns.padding:
            result.fill(-np.inf)
            for elements, windows in taps:
                np.maximum(result[windows], part[elements], out=result[windows])
        else:
            second, *rest = others or taps  # a window of one element: the maximum with itself
            np.maximum(part[taps[0][0]], part[second[0]], out=result)
            for elements, _ in rest if others else ():
                np.maximum(result, part[elements], out=result)
    return batch_first(pooled)


def _max_pool2d_x(
    gradient: Array, pooled: Array, x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Array:
    """Give each window's gradient to the first of its largest elements in row-major order, as PyTorch does.

    Needs no indices: what an element does not take is left for those after it. Where a window holds NaN, its first
    element takes all.
    """
    rows, columns = _along_axes(x.shape[2:], kernel_size, stride, padding)
    images, largest, rest = batch_innermost(x), batch_innermost(pooled), batch_innermost(gradient)
    covered = rows.is_partition and columns.is_partition
    result = (np.empty if covered else np.zeros)(images.shape, gradient.dtype)
    plain = rows.is_disjoint and columns.is_disjoint and not (rows.padding or columns.padding)
    distribute = _distribute_disjoint if plain else _distribute
    for block in channel_blocks(images):
        distribute(rest[block], images[block], largest[block], result[block], _taps(rows, columns))
    return batch_first(result)


max_pool2d = Primitive("max_pool2d", _max_pool2d, (_max_pool2d_x,), reads=(0, RESULT))


def _distribute_disjoint(gradient: Array, images: Array, largest: Array, result: Array, taps: list[Tap]) -> None:
    """Write each window's gradient into the element that takes it, and zeros into the window's others."""
    # As integers: a multiplication by a mask then selects bits, also those of infinities, and the exclusive or of
    # the rest before and after is what was taken. Three passes an offset, against four times that for np.where.
    bits = _bits(gradient.dtype)
    rest, taken = gradient.view(bits), result.view(bits)
    smaller = np.empty(largest.shape, np.bool_)
    for elements, _ in taps[:-1]:
        np.less(images[elements], largest, out=smaller)
        left = np.multiply(rest, smaller)
        np.bitwise_xor(rest, left, out=taken[elements])
        rest = left
    taken[taps[-1][0]] = rest


def _distribute(gradient: Array, images: Array, largest: Array, result: Array, taps: list[Tap]) -> None:
    """The same where windows overlap or reach into the padding: add to `result`, which holds zeros."""
    bits = _bits(gradient.dtype)
    rest = gradient.copy().view(bits)
    for elements, windows in taps:
        left = np.multiply(rest[windows], np.less(images[elements], largest[windows]))
        taken = np.bitwise_xor(rest[windows], left)
        result[elements] += taken.view(gradient.dtype)
        rest[windows] = left


def _bits(dtype: np.dtype[np.generic]) -> np.dtype[np.signedinteger]:
    return np.dtype(f"i{dtype.itemsize}")


def _avg_pool2d(
    x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> tuple[Array, tuple[Window, Window, Array]]:
    """Return the mean of each window; with `count_include_pad`, the zeros of the padding count as elements."""
    check_images(x, "avg_pool2d")
    rows, columns = _along_axes(x.shape[2:], kernel_size, stride, padding)
    divisor = _divisor(rows, columns, count_include_pad, x.dtype)
    images = batch_innermost(x)
    pooled = np.zeros((images.shape[0], rows.count, columns.count, images.shape[3]), x.dtype)
    for block in channel_blocks(images):
        part, result = images[block], pooled[block]
        for elements, windows in _taps(rows, columns):
            result[windows] += part[elements]
        result /= divisor
    return batch_first(pooled), (rows, columns, divisor)


def _avg_pool2d_x(gradient: Array, saved: tuple[Window, Window, Array], *_: None, **__: object) -> Array:
    rows, columns, divisor = saved
    share = batch_innermost(gradient) / divisor
    result = np.zeros((share.shape[0], rows.size, columns.size, share.shape[3]), gradient.dtype)
    for block in channel_blocks(result):
        part, source = result[block], share[block]
        for elements, windows in _taps(rows, columns):
            part[elements] += source[windows]
    return batch_first(result)


avg_pool2d = Primitive("avg_pool2d", _avg_pool2d, (_avg_pool2d_x,), keeps=True, reads=())


def _divisor(rows: Window, columns: Window, count_include_pad: bool, dtype: np.dtype[np.generic]) -> Array:
    """Return the number of elements of each window, as something that divides (oh, ow, batch)."""
    if count_include_pad or not (rows.padding or columns.padding):
        return np.array(rows.kernel * columns.kernel, dtype)
    return np.multiply.outer(_seen(rows), _seen(columns)).astype(dtype)[:, :, None]


def _seen(window: Window) -> Array:
    """Count the elements, without the padding, that each window along one axis sees."""
    counts = np.zeros(window.count, np.int64)
    for offset in range(window.kernel):
        counts[window.tap(offset)[1]] += 1
    return counts


@lru_cache(maxsize=1024)
def _taps(rows: Window, columns: Window) -> list[Tap]:
    """Return the offsets of a window in row-major order, as indices into (channels, height, width, batch)."""
    return list(_each_tap(rows, columns))


def _each_tap(rows: Window, columns: Window) -> Iterator[Tap]:
    everything = slice(None)
    for row in range(rows.kernel):
        elements_y, windows_y = rows.tap(row)
        for column in range(columns.kernel):
            elements_x, windows_x = columns.tap(column)
            yield (everything, elements_y, elements_x), (everything, windows_y, windows_x)


def _along_axes(image: tuple[int, ...], kernel_size: Pair, stride: Pair | None, padding: Pair) -> tuple[Window, Window]:
    kernel = pair(kernel_size, "kernel_size")
    return _checked(image, kernel, kernel if stride is None else pair(stride, "stride"), pair(padding, "padding"))


@lru_cache(maxsize=1024)
def _checked(
    image: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Window, Window]:
    for size, border in zip(kernel, padding, strict=True):
        if border > size // 2:
            raise ValueError(
                f"pooling has padding {border} for a kernel of {size}, expected at most {size // 2}: "
                "a window must not lie in the padding alone"
            )
    rows, columns = (Window(image[k], kernel[k], stride[k], padding[k]) for k in range(2))
    return check_window(rows, "pooling"), check_window(columns, "pooling")
