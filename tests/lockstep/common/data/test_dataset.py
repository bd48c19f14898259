"""A dataset that exists fits together, and its digest tells two of them apart."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.errors import DataError


def images(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.ones(shape, dtype)


def labels(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def pair(name: str = "some", value: int = 1, classes: int = 2) -> TrainTest:
    train = Dataset(images(2, 1, 3, 3) * np.uint8(value), labels(0, 1), classes)
    return TrainTest(name, train, Dataset(images(1, 1, 3, 3), labels(0), classes))


def test_its_length_and_sample_shape() -> None:
    dataset = Dataset(images(2, 3, 4, 5), labels(1, 0), 2)
    assert len(dataset) == 2
    assert dataset.sample_shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ((images(2, 4), labels(0, 1, 1)), "2 images and 3 labels"),
        ((images(2, 4), labels(0, 2)), r"label 2 at index 1: expected an integer in \[0, 2\)"),
        ((images(2, 4), np.zeros(2, np.int32)), "dtype 'int32'"),
        ((images(2, 4, dtype=np.float64), labels(0, 1)), "images of dtype 'float64'"),
        ((images(2, 4, 4), labels(0, 1)), r"images of shape \(2, 4, 4\)"),
        ((images(0, 4), labels()), r"images of shape \(0, 4\)"),
        ((np.array([[1, 2], [3, np.nan]], np.float32), labels(0, 1)), "sample 1 holds an infinity or NaN"),
    ],
)
def test_what_does_not_fit_is_named(arrays: tuple[NDArray[Any], NDArray[Any]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        Dataset(*arrays, classes=2)


def test_training_and_test_set_must_be_of_one_kind() -> None:
    one = Dataset(images(2, 4), labels(0, 1), 2)
    with pytest.raises(DataError, match=r"test images of shape \(5,\): expected \(4,\)"):
        TrainTest("some", one, Dataset(images(2, 5), labels(0, 1), 2))
    with pytest.raises(DataError, match="3 classes in the test set: expected 2"):
        TrainTest("some", one, Dataset(images(2, 4), labels(0, 1), 3))


def test_the_digest_is_of_the_contents_alone() -> None:
    assert pair().digest == pair(name="another").digest
    assert len({pair().digest, pair(value=2).digest, pair(classes=3).digest}) == 3


def test_another_test_set_makes_another_digest() -> None:
    train = pair().train
    tests = [
        Dataset(images(1, 1, 3, 3), labels(0), 2),
        Dataset(images(1, 1, 3, 3) * np.uint8(2), labels(0), 2),
        Dataset(images(1, 1, 3, 3), labels(1), 2),
    ]
    assert len({TrainTest("some", train, test).digest for test in tests}) == 3
