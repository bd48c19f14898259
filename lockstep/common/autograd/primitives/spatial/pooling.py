"""Maximum pooling over (batch, channels, height, width) or (batch, channels, length).

Any memory layout is accepted; results and gradients have the batch innermost. Padding never exists in memory: each
offset of the window is one slice of elements and one of windows.
"""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.memory import copied, empty, zeros
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.autograd.primitives.spatial.images import (
    batch_first,
    batch_innermost,
    channel_blocks,
    check_images,
)
from lockstep.common.autograd.primitives.spatial.signals import over_signals
from lockstep.common.autograd.primitives.spatial.windows import Pair, Tap, pooling_windows, taps


def _max_pool2d(x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the largest element of each window; NaN if a window holds one. The stride defaults to the kernel."""
    check_images(x, "max_pool2d")
    rows, columns = pooling_windows(x.shape[2:], kernel_size, stride, padding)
    images = batch_innermost(x)
    pooled = empty((images.shape[0], rows.count, columns.count, images.shape[3]), x)
    largest = _largest_in_padding if rows.padding or columns.padding else _largest
    for block in channel_blocks(images):
        largest(images[block], pooled[block], taps(rows, columns))
    return batch_first(pooled)


def _largest(images: Array, result: Array, offsets: tuple[Tap, ...]) -> None:
    first, second = offsets[0][0], offsets[min(1, len(offsets) - 1)][0]  # one element: the maximum with itself
    np.maximum(images[first], images[second], out=result)
    for elements, _ in offsets[2:]:
        np.maximum(result, images[elements], out=result)


def _largest_in_padding(images: Array, result: Array, offsets: tuple[Tap, ...]) -> None:
    np.copyto(result, -np.inf)
    for elements, windows in offsets:
        part = result[windows]
        np.maximum(part, images[elements], out=part)


def _max_pool2d_x(
    gradient: Array, pooled: Array, x: Array, *, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Array:
    """Give each window's gradient to the first of its largest elements in row-major order, as PyTorch does.

    Needs no indices: what an element does not take is left for those after it. Where a window holds NaN, its first
    element takes all.
    """
    rows, columns = pooling_windows(x.shape[2:], kernel_size, stride, padding)
    images, largest, upstream = batch_innermost(x), batch_innermost(pooled), batch_innermost(gradient)
    result = (empty if rows.is_partition and columns.is_partition else zeros)(images.shape, gradient)
    is_plain = rows.is_disjoint and columns.is_disjoint and not (rows.padding or columns.padding)
    distribute = _distribute_disjoint if is_plain else _distribute
    for block in channel_blocks(images):
        distribute(upstream[block], images[block], largest[block], result[block], taps(rows, columns))
    return batch_first(result)


def _distribute_disjoint(
    gradient: Array, images: Array, largest: Array, result: Array, offsets: tuple[Tap, ...]
) -> None:
    """Write each window's gradient into the element that takes it, and zeros into the window's others."""
    # As integers: a multiplication by a mask then selects bits, also those of infinities, and the exclusive or of
    # the rest before and after is what was taken. np.where selects at a quarter of the speed.
    bits = _bits(gradient)
    rest, taken = gradient.view(bits), result.view(bits)
    smaller = empty(largest.shape, largest, np.bool_)
    for elements, _ in offsets[:-1]:
        np.less(images[elements], largest, out=smaller)
        left = np.multiply(rest, smaller)
        np.bitwise_xor(rest, left, out=taken[elements])
        rest = left
    np.copyto(taken[offsets[-1][0]], rest)


def _distribute(gradient: Array, images: Array, largest: Array, result: Array, offsets: tuple[Tap, ...]) -> None:
    """The same where windows overlap or reach into the padding: add to `result`, which holds zeros."""
    rest = copied(gradient).view(_bits(gradient))
    for elements, windows in offsets:
        left = np.multiply(rest[windows], np.less(images[elements], largest[windows]))
        taken = np.bitwise_xor(rest[windows], left)
        result[elements] += taken.view(gradient.dtype)
        np.copyto(rest[windows], left)


def _bits(x: Array) -> np.dtype[Any]:
    """Return the integer type of the same size."""
    return np.dtype(f"i{x.itemsize}")


max_pool2d = Primitive("max_pool2d", _max_pool2d, (_max_pool2d_x,), reads=((0, RESULT),))


max_pool1d = over_signals("max_pool1d", max_pool2d)
