"""The global norm has the same bits however the gradient is cut, and the factor is PyTorch's."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.optim.clipping import BLOCK, add_blocks, block_squares, scale_for


@given(size=st.integers(0, 5 * BLOCK + 9), cuts=st.lists(st.integers(0, 5), max_size=4), seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_shards_cut_at_blocks_give_the_norm_of_the_whole(size: int, cuts: list[int], seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    bounds = sorted({0, *(min(cut * BLOCK, size) for cut in cuts), size})
    shards = [block_squares(vector[low:high]) for low, high in itertools.pairwise(bounds)]
    whole = add_blocks(block_squares(vector))
    assert add_blocks(np.concatenate([np.empty(0), *shards])) == whole
    assert whole == pytest.approx(math.fsum(float(value) ** 2 for value in vector), rel=1e-13)


@pytest.mark.parametrize("offset", [1, 3, 5])
def test_alignment_does_not_change_the_bits(offset: int) -> None:
    vector = np.random.default_rng(0).normal(size=3 * BLOCK).astype(np.float32)
    moved = np.empty(vector.size + offset, np.float32)[offset:]
    moved[:] = vector
    assert add_blocks(block_squares(moved)) == add_blocks(block_squares(vector))


def test_big_gradients_do_not_overflow() -> None:
    assert add_blocks(block_squares(np.full(2, 3e38, np.float32))) == pytest.approx(1.8e77, rel=1e-6)


def test_the_factor_is_that_of_pytorch() -> None:
    # torch.nn.utils.clip_grad_norm_ of (3, 4, 12) to 2.0, torch 2.13.0+cpu: norm 13, gradient
    # [0.4615384340286255, 0.615384578704834, 1.846153736114502]
    gradient = np.array([3.0, 4.0, 12.0], np.float32)
    scaled = gradient * np.float32(scale_for(add_blocks(block_squares(gradient)), 2.0))
    np.testing.assert_allclose(scaled, [0.4615384340286255, 0.615384578704834, 1.846153736114502], rtol=1e-7)


def test_a_small_gradient_is_left_alone_and_one_that_is_no_number_stays_one() -> None:
    assert scale_for(3.9, 2.0) == 1.0
    assert scale_for(0.0, 2.0) == 1.0
    assert scale_for(math.inf, 2.0) == 0.0
    assert math.isnan(scale_for(math.nan, 2.0))
    assert math.isnan(add_blocks(block_squares(np.array([1.0, np.nan], np.float32))))
