"""A dataset that exists fits together, and its digest tells two of them apart."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.records import labels_with
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


def test_the_digest_stays_that_of_runs_that_were_recorded() -> None:
    assert pair().digest == "560ac313535a20480cede3fc0e9b169c911079997da913a88e2c9072dfa40bf5"
    records = np.zeros(2, [("a", np.float32, (2,)), ("b", np.int32)])
    part = Dataset(records, labels(0, 1), 2)
    assert TrainTest("some", part, part).digest == "1d7bfdb38e68c2e0bcc3ac8e536880be3367a2592cdf81e280ee262b1f75b1f2"


@pytest.mark.parametrize(
    ("samples", "values", "text"),
    [
        (
            images(2, 4),
            np.zeros(2, np.float32),
            r"labels of dtype 'float32' and shape \(2,\): expected float32 and \(n, t",
        ),
        (images(2, 4), np.zeros((2, 0), np.float32), r"labels of dtype 'float32' and shape \(2, 0\): expected float32"),
        (images(2, 4), np.zeros((2, 1), np.int64), r"labels of dtype 'int64' and shape \(2, 1\): expected float32 and"),
        (images(2, 4), np.array([[0.0], [np.inf]], np.float32), "label 1 holds an infinity or NaN"),
    ],
)
def test_numbers_that_do_not_fit_are_named(samples: NDArray[Any], values: NDArray[Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        Dataset(samples, values, 0)


def test_the_first_weight_below_0_is_named_and_0_is_none() -> None:
    def weighted(*weights: float) -> Dataset:
        return Dataset(images(3, 4), labels_with({"": labels(0, 1, 1)}, np.array(weights)), 2)

    assert weighted(0.0, 1.0, 2.0).weights is not None
    with pytest.raises(DataError, match="the weight of sample 2 is below 0"):
        weighted(0.0, 1.0, -1.0)


def test_tokens_are_in_both_sets() -> None:
    tokens, floats = (Dataset(images(2, 4, dtype=dtype), labels(0, 1), 2) for dtype in (np.int32, np.float32))
    for train, test, dtype in ((tokens, floats, "float32"), (floats, tokens, "int32")):
        with pytest.raises(DataError, match=f"test samples of dtype '{dtype}': expected tokens in both sets"):
            TrainTest("some", train, test)
