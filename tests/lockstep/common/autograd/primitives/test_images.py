"""The layout of images: batch innermost, by a view where it can be."""

import numpy as np
import pytest

from lockstep.common.autograd.primitives.windows import batch_first, batch_innermost, channel_blocks


def test_batch_innermost_is_a_view_where_memory_is_so() -> None:
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    innermost = batch_innermost(x)
    assert innermost.shape == (3, 4, 5, 2)
    assert innermost.flags.c_contiguous
    np.testing.assert_array_equal(batch_first(innermost), x)
    assert np.shares_memory(batch_innermost(batch_first(innermost)), innermost)


@pytest.mark.parametrize("shape", [(5, 300, 300, 4), (1, 2, 2, 2), (0, 2, 2, 2), (3, 4, 4, 0)])
def test_channel_blocks_cover_every_channel_once(shape: tuple[int, ...]) -> None:
    x = np.empty(shape, np.float32)
    assert [c for block in channel_blocks(x) for c in range(shape[0])[block]] == list(range(shape[0]))
