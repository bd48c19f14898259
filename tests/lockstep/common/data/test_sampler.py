"""Rule R3: the samples of a step and micro-batch follow from the seed by arithmetic, each once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.data.sampler import EVALUATION_SAMPLES, Sampler, evaluation_chunks, evaluation_rows
from lockstep.common.numerics.random import Purpose, generator

SIZES = {"size": st.integers(1, 60), "global_batch": st.integers(1, 70), "micro_batches": st.integers(1, 9)}
LAW = settings(derandomize=True, deadline=None, max_examples=100)


@given(**SIZES, epoch=st.integers(0, 3))
@LAW
def test_an_epoch_uses_each_sample_once_in_the_order_of_its_permutation(
    size: int, global_batch: int, micro_batches: int, epoch: int
) -> None:
    sampler = Sampler(size, global_batch, micro_batches, seed=7)
    first = epoch * sampler.steps_per_epoch
    steps = range(first, first + sampler.steps_per_epoch)
    used = np.concatenate([sampler.indices(step, m) for step in steps for m in range(micro_batches)])
    np.testing.assert_array_equal(used, generator(7, Purpose.SHUFFLE, at=epoch).permutation(size))
    assert {sampler.epoch_of(step) for step in steps} == {epoch}
    assert sum(sampler.batch_size(step) for step in steps) == size


@given(**SIZES, step=st.integers(0, 200))
@LAW
def test_micro_batches_follow_the_formula(size: int, global_batch: int, micro_batches: int, step: int) -> None:
    sampler = Sampler(size, global_batch, micro_batches, seed=0)
    n = sampler.batch_size(step)
    lengths = [len(sampler.indices(step, m)) for m in range(micro_batches)]
    assert lengths == [(m + 1) * n // micro_batches - m * n // micro_batches for m in range(micro_batches)]
    assert max(lengths) - min(lengths) <= 1


def test_the_last_batch_of_an_epoch_is_short() -> None:
    sampler = Sampler(size=10, global_batch=4, micro_batches=2, seed=0)
    assert sampler.steps_per_epoch == 3
    assert [sampler.batch_size(step) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [sampler.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 1]


def test_what_was_asked_before_changes_nothing() -> None:
    asked, fresh = Sampler(50, 8, 4, seed=3), Sampler(50, 8, 4, seed=3)
    for step in (20, 3, 14, 0):
        asked.indices(step, 1)
    np.testing.assert_array_equal(asked.indices(9, 2), fresh.indices(9, 2))


def test_the_order_of_an_epoch_is_drawn_once() -> None:
    sampler = Sampler(50, 10, 1, seed=0)
    assert np.shares_memory(sampler.indices(5, 0), sampler.indices(5, 0))


def test_seed_and_epoch_change_the_order() -> None:
    orders = {
        tuple(Sampler(50, 50, 1, seed).indices(step, 0).tolist()) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len(orders) == 4


def test_indices_are_int64_and_cannot_be_overwritten() -> None:
    indices = Sampler(5, 5, 1, seed=0).indices(0, 0)
    assert indices.dtype == np.int64
    assert not indices.flags.writeable


@given(**SIZES, data=st.data())
@LAW
def test_several_micro_batches_are_one_after_the_other(
    size: int, global_batch: int, micro_batches: int, data: st.DataObject
) -> None:
    sampler = Sampler(size, global_batch, micro_batches, seed=3)
    step = data.draw(st.integers(0, sampler.steps_per_epoch - 1))
    first = data.draw(st.integers(0, micro_batches - 1))
    stop = data.draw(st.integers(first + 1, micro_batches))
    parts = [sampler.indices(step, each) for each in range(first, stop)]
    assert sampler.indices(step, first, stop).tolist() == np.concatenate(parts).tolist()
    assert sampler.sizes(step, first, stop) == set(map(len, parts))


@pytest.mark.parametrize(("step", "micro_batch"), [(-1, 0), (0, -1), (0, 2)])
def test_a_place_that_is_not_there_is_refused(step: int, micro_batch: int) -> None:
    with pytest.raises(ValueError, match=rf"^step {step}, micro-batch {micro_batch}: expected a step from 0 and a "):
        Sampler(5, 5, 2, seed=0).indices(step, micro_batch)
    with pytest.raises(ValueError, match=r"and a micro-batch in \[0, 2\)$"):
        Sampler(5, 5, 2, seed=0).indices(step, micro_batch)


@pytest.mark.parametrize(("first", "stop"), [(1, 1), (1, 0), (0, 3), (-1, 1)])
def test_micro_batches_that_are_none_are_refused(first: int, stop: int) -> None:
    with pytest.raises(ValueError, match="expected a step from 0 and a"):
        Sampler(5, 5, 2, seed=0).indices(0, first, stop)


@pytest.mark.parametrize("name", ["size", "global_batch", "micro_batches"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 0: expected at least 1$"):
        Sampler(**({"size": 5, "global_batch": 5, "micro_batches": 1, "seed": 0} | {name: 0}))


@pytest.mark.parametrize(("samples", "chunks"), [(0, 1), (1, 1), (500, 1), (501, 2), (1000, 2), (1001, 3)])
def test_an_evaluation_is_cut_into_equal_chunks_of_all_samples_in_order(samples: int, chunks: int) -> None:
    assert evaluation_chunks(samples) == chunks
    parts = [np.arange(samples)[evaluation_rows(chunk, samples)] for chunk in range(chunks)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(samples))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= min(EVALUATION_SAMPLES, min(lengths) + 1)
