"""Mapped samples are read as an array is, and ahead only while they have to be waited for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.data.mapped import CALM_GATHERS, MappedSamples
from lockstep.common.data.preparation import value_blocks
from lockstep.common.data.source import load
from tests.lockstep.common.data.folders import write_folder

ARRAY = np.arange(600 * 40, dtype=np.float32).reshape(600, 5, 2, 4)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> MappedSamples:
    labels = np.zeros(600, np.int64)
    folder = tmp_path_factory.mktemp("mapped") / "folder"
    images = load(str(write_folder(folder, (ARRAY, labels), (ARRAY, labels), 1))).train.images
    assert isinstance(images, MappedSamples)
    return images


@given(st.lists(st.integers(0, 599), max_size=30))
def test_rows_are_gathered_in_the_order_given(samples: MappedSamples, places: list[int]) -> None:
    chosen = np.array(places, np.int64)
    np.testing.assert_array_equal(samples.take(chosen), ARRAY.take(chosen, axis=0))
    some = np.arange(0, 600, 7)
    subset = samples.subset(some)
    np.testing.assert_array_equal(subset.take(chosen % len(subset)), ARRAY[some[chosen % len(some)]])


KEYS: list[Any] = [
    3,
    slice(2, 9),
    slice(None, None, -50),
    [5, 1],
    np.arange(4),
    (slice(4), 0),
    (7, 1),
    (slice(3), 1, 0),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_it_is_indexed_as_an_array(samples: MappedSamples, key: Any) -> None:
    np.testing.assert_array_equal(samples[key], ARRAY[key])
    some = np.arange(1, 600, 3)
    np.testing.assert_array_equal(samples.subset(some)[key], ARRAY[some][key])
    assert (samples.shape, samples.ndim, samples.size, len(samples)) == (ARRAY.shape, 4, ARRAY.size, 600)


@pytest.mark.parametrize("count", [1, 39, 41, 1000, 10**6])
def test_all_values_come_in_blocks(samples: MappedSamples, count: int) -> None:
    some = np.arange(1, 600, 3)
    for part, expected in ((samples, ARRAY), (samples.subset(some), ARRAY[some])):
        blocks = list(value_blocks(part if count > 1 else part.subset(np.arange(3)), count))
        assert all(len(block) == count for block in blocks[:-1])
        flat = expected.reshape(-1)
        np.testing.assert_array_equal(np.concatenate(blocks), flat if count > 1 else flat[:120])


def test_what_lies_in_memory_is_not_requested_any_more(samples: MappedSamples) -> None:
    samples.take(np.arange(600))
    for _ in range(CALM_GATHERS):
        samples.take(np.arange(3))
    assert not samples.may_wait()


@given(st.lists(st.integers(0, 599), max_size=30))
def test_any_rows_may_be_requested_ahead(samples: MappedSamples, places: list[int]) -> None:
    samples.file.wary = CALM_GATHERS
    samples.request(np.array(places, np.int64))
    np.testing.assert_array_equal(samples.take(np.array(places, np.int64)), ARRAY[places])


def test_it_cannot_be_written_to(samples: MappedSamples) -> None:
    assert not samples.file.rows.flags.writeable
