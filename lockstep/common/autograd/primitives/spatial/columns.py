"""Correlation of images with kernels by matrix products over gathered windows, on arrays with the batch innermost.

Letters in shapes: G groups, C channels and O outputs of one group, K = C·kh·kw elements of a window, oh × ow windows an
image, N images, P = windows in one block. No more than a block's columns ever exist: written and multiplied while they
are in cache. The blocks follow from shapes alone, so the bits do too.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lockstep.common.autograd.primitives.memory import empty
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.primitives.products import multiply
from lockstep.common.autograd.primitives.spatial.windows import Window

#: The columns of one block. More than the second-level cache holds: a product of fewer columns costs more than what is
#: lost there (cnn at 32 images: 12.5, 12.1, 12.0, 11.7, 11.8, 12.3 ms a step with 256 KiB, 512 KiB, ... 8 MiB).
BLOCK_BYTES = 1 << 21

#: Ranges of window rows, window columns and images.
Block = tuple[slice, slice, slice]


def windows_of(x: Array, groups: int, rows: Window, columns: Window) -> Array:
    """View the padded `x` (G·C, height, width, N) as its windows (G, C, kh, kw, oh, ow, N), without a copy."""
    channels, _, _, images = x.shape
    of_channel, of_row, of_column, of_image = x.strides
    depth = channels // groups
    return as_strided(
        x,
        (groups, depth, rows.kernel, columns.kernel, rows.count, columns.count, images),
        (
            depth * of_channel,
            of_channel,
            rows.dilation * of_row,
            columns.dilation * of_column,
            rows.stride * of_row,
            columns.stride * of_column,
            of_image,
        ),
        subok=True,
    )


def correlate(windows: Array, kernels: Array, bias: Array | None = None) -> Array:
    """Multiply `kernels` (G, O, K) with each of `windows` (G, C, kh, kw, oh, ow, N): (G·O, oh, ow, N), plus a bias."""
    groups, outputs, _ = kernels.shape
    positions = windows.shape[4:]
    result = empty((groups, outputs, *positions), kernels)
    addend = None if bias is None else bias.reshape(groups, outputs, 1)
    for block, columns in _gathered(windows):
        target = _flat(result, block)
        _multiply_groups(kernels, columns, target)
        if addend is not None:
            np.add(target, addend, out=target)
    return result.reshape(groups * outputs, *positions)


def kernel_gradient(gradient: Array, windows: Array, total: Array) -> None:
    """Fill `total` (G, O, K) with the gradient of the kernels, from that of the result (G, O, oh, ow, N)."""
    part = total
    for block, columns in _gathered(windows):
        _multiply_groups(_flat(gradient, block), columns.transpose(0, 2, 1), part)
        if part is total:
            part = np.empty_like(total)
        else:
            np.add(total, part, out=total)
    if part is total:  # no images
        np.copyto(total, 0)


def scatter(gradient: Array, kernels: Array, windows: Array) -> None:
    """Add to `windows`, a view of the input's gradient, what each window gets from `gradient` (G, O, oh, ow, N)."""
    groups, depth, height, width, *_ = windows.shape
    transposed = kernels.transpose(0, 2, 1)
    blocks = _blocks(windows.shape, windows.itemsize)
    buffer = _buffer(windows, blocks)
    for block in blocks:
        target = windows[(..., *block)]
        columns = buffer[: target.size].reshape(target.shape)
        _multiply_groups(transposed, _flat(gradient, block), columns.reshape(groups, depth * height * width, -1))
        # At one offset no two windows meet, so each of these additions writes an element once. Gathering the padded
        # gradient and correlating it with the flipped kernels took as long for 3×3 and twice as long for 5×5.
        for y in range(height):
            for x in range(width):
                target[:, :, y, x] += columns[:, :, y, x]


def _multiply_groups(left: Array, right: Array, out: Array) -> None:
    """Multiply group by group: (G, m, k) by (G, k, n) to (G, m, n)."""
    for group in range(len(left)):
        multiply(left[group], right[group], out[group])


def _gathered(windows: Array) -> Iterator[tuple[Block, Array]]:
    """Yield (block, columns (G, K, P)); the columns are overwritten by the next block's."""
    groups = windows.shape[0]
    blocks = _blocks(windows.shape, windows.itemsize)
    buffer = _buffer(windows, blocks)
    for block in blocks:
        source = windows[(..., *block)]
        columns = buffer[: source.size].reshape(source.shape)
        np.copyto(columns, source)
        yield block, columns.reshape(groups, -1, source.shape[-3] * source.shape[-2] * source.shape[-1])


def _flat(x: Array, block: Block) -> Array:
    """View the block of `x` (G, O, oh, ow, N) as (G, O, P): a block is contiguous along its last three axes."""
    part = x[(..., *block)]
    return part.reshape(*part.shape[:2], -1, copy=False)


def _buffer(windows: Array, blocks: tuple[Block, ...]) -> Array:
    """Return memory for the columns of any of `blocks`."""
    largest = max((prod(part.stop - part.start for part in block) for block in blocks), default=0)
    return empty((prod(windows.shape[:4]) * largest,), windows)


@lru_cache(maxsize=1024)
def _blocks(shape: tuple[int, ...], itemsize: int) -> tuple[Block, ...]:
    """Cut (oh, ow, N) into near-equal blocks: rows of windows, else a part of a row, else images of one window."""
    *_, rows, columns, images = shape
    limit = max(1, BLOCK_BYTES // (prod(shape[:4]) * itemsize))
    row_parts = _parts(rows, limit // max(1, columns * images))
    column_parts = _parts(columns, limit // max(1, images))
    image_parts = _parts(images, limit)
    return tuple((r, c, i) for r in row_parts for c in column_parts for i in image_parts)


def _parts(size: int, limit: int) -> list[slice]:
    """Cut [0, size) into the fewest parts of at most max(1, limit), as equal as can be."""
    parts = -(-size // max(1, limit))
    return [slice(k * size // parts, (k + 1) * size // parts) for k in range(parts)]
