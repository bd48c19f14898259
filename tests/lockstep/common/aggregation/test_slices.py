"""Slices tile the vector, at the blocks of clipping, and frames tile a slice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.slices import FRAME, Slice, frames_of, slices_for
from lockstep.common.errors import JobError
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.optim.rules import CHUNK


def test_what_travels_and_what_is_updated_is_cut_at_the_blocks_of_clipping() -> None:
    assert FRAME % CHUNK == CHUNK % BLOCK == 0


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 40 * BLOCK), st.integers(1, 12))
def test_servers_own_equal_shares_that_tile_the_vector(size: int, servers: int) -> None:
    servers = min(servers, -(-size // BLOCK))
    slices = slices_for(size, servers)
    assert len(slices) == servers
    assert [one.start for one in slices[1:]] == [one.stop for one in slices[:-1]]
    assert (slices[0].start, slices[-1].stop) == (0, size)
    assert all(one.start % BLOCK == 0 for one in slices)
    sizes = [len(one) for one in slices]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) < 2 * BLOCK


@pytest.mark.parametrize("servers", [0, 3])
def test_a_server_that_would_own_nothing_is_refused(servers: int) -> None:
    with pytest.raises(JobError, match=rf"servers = {servers} for a model of 7,850 values: expected 1 to 2"):
        slices_for(7850, servers)


def test_frames_begin_with_the_slice() -> None:
    assert Slice(4096, 4096 + FRAME + 1).frames() == [Slice(4096, 4096 + FRAME), Slice(4096 + FRAME, 4097 + FRAME)]
    assert Slice(0, 7850).frames() == [Slice(0, 7850)]
    # The whole of `mlp`, so that the weights of a host leave in one message.
    assert frames_of(535_818, 1) == [Slice(0, 535_818)]


def test_a_slice_of_a_vector_is_a_view() -> None:
    vector = np.arange(10, dtype=np.float32)
    part = Slice(3, 5).of(vector)
    part[:] = 0.0
    assert vector.tolist() == [0, 1, 2, 0, 0, 5, 6, 7, 8, 9]


def test_a_slice_of_whole_frames_has_no_empty_one() -> None:
    assert list(Slice(3, 11).cut(4)) == [Slice(3, 7), Slice(7, 11)]


def test_a_vector_of_whole_blocks_has_no_more_than_those() -> None:
    assert slices_for(3 * BLOCK, 3) == [Slice(place * BLOCK, (place + 1) * BLOCK) for place in range(3)]
    with pytest.raises(JobError, match="expected 1 to 3"):
        slices_for(3 * BLOCK, 4)


def test_the_frames_of_a_server_begin_where_its_slice_does() -> None:
    # A slice of one and a half frames each.
    assert [frame.start for frame in frames_of(3 * FRAME, 2)] == [0, FRAME, 3 * FRAME // 2, 5 * FRAME // 2]
