"""Samples and labels of several arrays, and weights of samples, as one array of records; and as an .npz has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import WEIGHT, as_input, as_records, fields_of, labels_with, parts_of
from lockstep.common.data.source import load, with_validation
from lockstep.common.errors import DataError

PICTURES, ROWS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2), np.arange(12, dtype=np.float64).reshape(6, 2)


def test_records_have_their_arrays_by_name() -> None:
    records = as_records({"a": PICTURES, "b": ROWS})
    assert records.shape == (6,)
    np.testing.assert_array_equal(fields_of(records.take([4, 1]))["a"], PICTURES[[4, 1]])
    with pytest.raises(DataError, match="'a' has 6, 'b' has 2; expected a row for each sample"):
        as_records({"a": PICTURES, "b": ROWS[:2]})


def test_weights_are_among_the_labels() -> None:
    labels = labels_with({"": np.arange(6)}, np.ones(6))
    values, weights = parts_of(labels)
    assert labels.dtype.names == ("y", WEIGHT)
    assert values.tolist() == list(range(6))
    assert weights is not None
    assert weights.dtype == np.float32
    assert labels_with({"": PICTURES}, None) is PICTURES
    with pytest.raises(DataError, match=r"weights of samples of shape \(6, 1\)"):
        labels_with({"": np.arange(6)}, np.ones((6, 1)))


def test_inputs_are_bytes_integers_or_floats() -> None:
    assert [as_input("x", each).dtype for each in (PICTURES, ROWS, np.arange(3), np.ones(3, bool))] == [
        np.uint8,
        np.float32,
        np.int32,
        np.uint8,
    ]
    with pytest.raises(DataError, match="x has integers of more than 32 bits"):
        as_input("x", np.array([2**40]))
    with pytest.raises(DataError, match="x is of dtype '<U1': expected an array of numbers"):
        as_input("x", np.array(["a"]))


@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_integers_of_32_bits_are_inputs_to_the_last(value: int) -> None:
    assert as_input("x", np.array([value])).tolist() == [value]
    with pytest.raises(DataError, match="more than 32 bits"):
        as_input("x", np.array([value + int(np.sign(value))]))


def test_one_array_has_no_name_and_several_labels_have_no_weights_unless_they_are_given() -> None:
    assert list(fields_of(ROWS)) == [""]
    several = as_records({"box": ROWS, "kind": np.arange(6)})
    values, weights = parts_of(several)
    assert values.dtype.names == ("box", "kind")
    assert weights is None
    assert parts_of(ROWS) == (ROWS, None)


def arrays() -> dict[str, Any]:
    found: dict[str, Any] = {
        "x_train.picture": PICTURES,
        "x_train.row": ROWS,
        "y_train": np.arange(6) % 3,
        "w_train": np.ones(6),
    }
    return {**found, **{name.replace("train", "test"): array[:2] for name, array in found.items()}}


def test_an_npz_may_have_several_inputs_and_weights(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", **arrays())
    data = load(str(tmp_path / "some.npz"))
    assert data.train.images.dtype.names == ("picture", "row")
    assert (data.train.classes, data.train.targets, len(data.test)) == (3, 1, 2)
    assert data.train.weights is not None
    split = with_validation(data, 0.5, seed=1)
    assert split.validation is not None
    assert (len(split.train), len(split.validation)) == (3, 3)
    prepared = Preparation.of(data.train).images(data.train.images[:])
    assert prepared["picture"].dtype == np.float32
    np.testing.assert_allclose([prepared["picture"].mean(), prepared["row"].std()], [0.0, 1.0], atol=1e-6)


def test_numbered_inputs_are_in_order(tmp_path: Path) -> None:
    several: dict[str, Any] = {f"x_{part}.{n}": np.full((4, 1), n) for part in ("train", "test") for n in range(11)}
    np.savez(tmp_path / "some.npz", **several, y_train=np.ones((4, 2)), y_test=np.ones((4, 2)))
    data = load(str(tmp_path / "some.npz"))
    assert data.train.images.dtype.names == tuple(map(str, range(11)))
    assert (data.train.classes, data.train.targets) == (0, 2)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    found = {name: array for name, array in arrays().items() if name != "y_test"}
    np.savez(tmp_path / "some.npz", **found)
    with pytest.raises(DataError, match="no array 'y_test': expected it next to the others"):
        load(str(tmp_path / "some.npz"))
