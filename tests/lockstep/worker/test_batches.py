"""Samples that nobody keeps are prepared in the same memory each time, where PyTorch takes them as they are."""

import numpy as np
import pytest

from lockstep.common.numerics.kernels.calls import LINE_BYTES
from lockstep.worker.batches import MOST_SHAPES, Batches
from tests.simulation.small import digits, job_of


@pytest.mark.parametrize("max_shift", [0, 2])
def test_samples_that_are_not_kept_are_the_same_samples(max_shift: int) -> None:
    batches = Batches(job_of(global_batch=10, micro_batches=4, max_shift=max_shift), digits())
    for step in range(5):
        for micro_batch in range(4):
            indices = batches.sampler.indices(step, micro_batch)
            kept = batches.training(indices, step, micro_batch)
            lent = batches.training(indices, step, micro_batch, is_kept=False)
            for one, other in zip(kept, lent, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            assert lent[0].ctypes.data % LINE_BYTES == 0


def test_only_those_that_are_not_kept_share_memory() -> None:
    batches = Batches(job_of(global_batch=10, micro_batches=2), digits())
    first, second = (batches.sampler.indices(0, each) for each in range(2))
    kept, _ = batches.training(first, 0, 0)
    lent, _ = batches.training(first, 0, 0, is_kept=False)
    other, _ = batches.training(second, 0, 1)
    assert not np.shares_memory(kept, other)
    assert not np.shares_memory(lent, other)
    assert np.shares_memory(lent, batches.training(second, 0, 1, is_kept=False)[0])


def test_memory_is_bounded_whatever_sizes_there_are() -> None:
    batches = Batches(job_of(), digits())
    for count in range(1, 3 * MOST_SHAPES):
        batches.training(np.arange(count), 0, 0, is_kept=False)
        assert len(batches._memory) <= MOST_SHAPES
