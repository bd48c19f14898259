"""Samples and labels of several arrays, and weights of samples, as one array of records; and as an .npz has them."""

import re
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
    assert labels_with({"box": ROWS, "kind": np.arange(6)}, None).dtype.names == ("box", "kind")
    with pytest.raises(DataError, match=r"weights of samples of shape \(6, 1\) and dtype 'float64': expected"):
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
    assert data.name == "some"
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


def test_numbers_are_before_names_and_what_is_no_sample_is_left_alone(tmp_path: Path) -> None:
    more = {f"x_{part}.{name}": ROWS[:rows] for part, rows in (("train", 6), ("test", 2)) for name in ("10", "2")}
    np.savez(tmp_path / "some.npz", **{**arrays(), **more, "x_valid": ROWS, "other": ROWS})
    assert load(str(tmp_path / "some.npz")).train.images.dtype.names == ("picture", "row", "2", "10")


def test_the_last_class_may_be_in_the_test_set_alone_and_numbers_have_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", **{**arrays(), "y_test": np.array([7, 0])})
    data = load(str(tmp_path / "some.npz"))
    assert (data.train.classes, data.test.classes) == (8, 8)
    several = {"y_train.box": ROWS, "y_train.kind": np.arange(6), "y_test.box": ROWS[:2], "y_test.kind": np.arange(2)}
    np.savez(tmp_path / "some.npz", **{**{name: each for name, each in arrays().items() if name[0] != "y"}, **several})
    data = load(str(tmp_path / "some.npz"))
    assert data.train.labels.dtype.names == ("box", "kind", WEIGHT)
    assert (data.train.classes, data.train.targets) == (0, 1)


def test_a_test_set_may_do_without_weights(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", **{name: each for name, each in arrays().items() if name != "w_test"})
    data = load(str(tmp_path / "some.npz"))
    assert (data.train.weights is None, data.test.weights is None) == (False, True)


#: By what does not fit: what replaces the arrays, or takes them away, and the text.
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"y_test": None}, "no array 'y_test': expected it next to the others"),
    "no samples": (
        {"x_train.picture": None, "x_train.row": None},
        "no array 'x_train': expected it next to the others",
    ),
    "both": ({"x_train": ROWS}, "both 'x_train' and 'x_train.row': expected one array, or several that each have a na"),
    "both labels": ({"y_test.a": ROWS[:2]}, "both 'y_test' and 'y_test.a': expected one array, or several that each"),
    "one value": ({"x_train.row": np.array(3.0)}, "'row' is a single value: expected an array with a row for each sa"),
    "lengths": ({"w_train": np.ones(5)}, "arrays of different lengths: 'y' has 6, 'sample_weight' has 5; expected a r"),
    "weights": ({"w_train": -np.ones(6)}, "train: the weight of sample 0 is below 0"),
    "integers": ({"x_test.row": np.full((2, 2), 2**40)}, "'x_test.row' has integers of more than 32 bits"),
    "labels": ({"y_train": np.zeros(6, bool)}, "'y_train' is of dtype 'bool': expected integers"),
    "other names": ({"x_test.row": None}, r"test samples have ('picture',): expected ('picture', 'row'), as in train"),
    "other shape": (
        {"x_test.row": np.ones((2, 3))},
        "the input 'row' of test samples is of shape (3,) and dtype 'float32': expected (2,) and 'float32', as in tra",
    ),
    "other kind": (
        {"x_test.row": np.ones((2, 2), np.int32)},
        "the input 'row' of test samples is of shape (2,) and dtype 'int32': expected (2,) and 'float32', as in train",
    ),
    "other labels": (
        {"y_test": None, "y_test.a": np.ones((2, 1)), "y_test.b": np.ones((2, 1)), "y_train": np.ones(6)},
        "test labels have ('a', 'b'): expected 'one array', as in training",
    ),
}


@pytest.mark.parametrize(("change", "text"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_named_with_the_file(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = str(tmp_path / "some.npz")
    np.savez(path, **{name: array for name, array in {**arrays(), **change}.items() if array is not None})
    with pytest.raises(DataError, match=re.escape(f"{path}: {text}")):
        load(path)
