"""Blocks of windows: bounded, covering, contiguous; and the same sums however they are cut."""

from math import prod

import numpy as np
import pytest

from lockstep.common.autograd.primitives.spatial import columns
from lockstep.common.autograd.primitives.spatial.windows import Window

#: (groups, channels, kh, kw, oh, ow, images): blocks of many rows, of one, of parts of one, of images of one window.
SHAPES = [(1, 2, 3, 3, 5, 6, 4), (1, 32, 3, 3, 14, 14, 16), (1, 32, 3, 3, 3, 40, 64), (1, 512, 3, 3, 2, 2, 100)]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 5, 5, 30, 30, 20), (1, 1, 1, 1, 1, 1, 1), (1, 1, 2, 2, 3, 3, 0)])
def test_blocks_cover_every_window_once_and_are_bounded(shape: tuple[int, ...]) -> None:
    counts = np.zeros(shape[4:], np.int64)
    for block in columns._blocks(shape, 4):
        counts[block] += 1
        windows = prod(part.stop - part.start for part in block)
        assert windows == 1 or windows * prod(shape[:4]) * 4 <= columns.BLOCK_BYTES
    assert (counts == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_contiguous_along_the_last_axes(shape: tuple[int, ...]) -> None:
    result = np.empty((2, 3, *shape[4:]), np.float32)
    for block in columns._blocks(shape, 4):
        assert np.shares_memory(columns._flat(result, block), result)


@pytest.mark.parametrize(("channels", "size", "images"), [(2, 40, 40), (16, 8, 200), (400, 3, 90)])
def test_many_blocks_give_the_sums_of_one_product(channels: int, size: int, images: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((channels, size, size, images))
    windows = columns.windows_of(x, 1, Window(size, 3, 1), Window(size, 3, 1))
    assert len(columns._blocks(windows.shape, 8)) > 1
    kernels = rng.standard_normal((1, 2, channels * 9))
    flat = windows.reshape(channels * 9, -1)
    result = columns.correlate(windows, kernels)
    np.testing.assert_allclose(result.reshape(2, -1), kernels[0] @ flat, rtol=1e-9, atol=1e-9)

    gradient = rng.standard_normal(result.shape)
    total = np.full(kernels.shape, np.nan)
    columns.kernel_gradient(gradient[None], windows, total)
    np.testing.assert_allclose(total[0], gradient.reshape(2, -1) @ flat.T, rtol=1e-9, atol=1e-8)

    # The scatter is the transpose of the gather: <scatter(g), x> = <g, correlate(x)>.
    spread = np.zeros_like(x)
    columns.scatter(gradient[None], kernels, columns.windows_of(spread, 1, Window(size, 3, 1), Window(size, 3, 1)))
    np.testing.assert_allclose(np.vdot(spread, x), np.vdot(gradient, result), rtol=1e-9)
