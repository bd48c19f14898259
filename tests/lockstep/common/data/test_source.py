"""A dataset is found by its name, whatever its form, and what is wrong with one is said exactly."""

import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.source import MOST_KEPT, keep_loaded, load, with_validation
from lockstep.common.errors import DataError
from tests.lockstep.common.data.test_array_files import idx_bytes

FILES = {
    "train-images-idx3-ubyte": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
    "train-labels-idx1-ubyte": np.array([0, 1, 2, 3, 9, 5], dtype=np.uint8),
    "t10k-images-idx3-ubyte": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
    "t10k-labels-idx1-ubyte": np.array([4, 5], dtype=np.uint8),
}
ARRAYS: dict[str, NDArray[Any]] = {
    "x_train": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
    "y_train": np.array([0, 1, 2, 3, 0, 1]),
    "x_test": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
    "y_test": np.array([4, 0]),
}


def write_folder(folder: Path, **changed: NDArray[np.uint8]) -> None:
    for name, array in FILES.items():
        (folder / name).write_bytes(idx_bytes(changed.get(name.split("-ubyte")[0].replace("-", "_"), array)))


def save_npz(path: Path, **changed: NDArray[Any]) -> str:
    np.savez(path, allow_pickle=False, **(ARRAYS | changed))
    return str(path)


def test_mnist_comes_with_the_package() -> None:
    mnist = load("mnist")
    assert mnist.name == "mnist"
    assert mnist.train.images.shape == (60_000, 1, 28, 28)
    assert mnist.test.images.shape == (10_000, 1, 28, 28)
    assert mnist.train.classes == 10
    assert mnist.train.images.dtype == np.uint8
    # The md5 sum that was published covers the file: put the header back in front.
    file = idx_bytes(mnist.test.images[:, 0])
    assert hashlib.md5(file).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_a_folder_of_idx_files_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path)
    plain = load(str(tmp_path))
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    assert load(str(tmp_path)).digest == plain.digest
    assert plain.name == tmp_path.name
    assert plain.train.images.shape == (6, 1, 2, 2)
    assert plain.train.labels.tolist() == [0, 1, 2, 3, 9, 5]


def test_an_npz_of_bytes_becomes_images(tmp_path: Path) -> None:
    dataset = load(save_npz(tmp_path / "some.npz"))
    assert dataset.name == "some"
    assert dataset.train.images.shape == (6, 1, 2, 2)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.test.classes == dataset.train.classes == 5


def test_labels_that_are_all_0_are_one_class(tmp_path: Path) -> None:
    zeros = {"y_train": np.zeros(6, np.int64), "y_test": np.zeros(2, np.int64)}
    path = save_npz(tmp_path / "some.npz", **zeros)
    assert load(path).train.classes == 1


def test_arrays_of_other_names_do_not_stand_for_labels_that_are_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", x_train=ARRAYS["x_train"], x=ARRAYS["x_train"], y=ARRAYS["y_train"])
    with pytest.raises(DataError, match="no array 'y_train': expected it next to the others"):
        load(str(tmp_path / "some.npz"))


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_an_npz_of_floats_stays_features_as_float32(dtype: str, tmp_path: Path) -> None:
    features = np.linspace(0, 1, 12).reshape(6, 2).astype(dtype)
    dataset = load(save_npz(tmp_path / "some.npz", x_train=features, x_test=features[:2]))
    assert dataset.train.images.dtype == np.float32
    np.testing.assert_array_equal(dataset.train.images, features.astype(np.float32))


@pytest.mark.parametrize("spec", ["mnits", "data.csv", "", "~nobody/data", "a\0b"])
def test_an_unknown_name_is_told_what_there_is(spec: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"no dataset {spec!r}: expected")):
        load(spec)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte: missing: expected this IDX file, or the same with \.gz"
    ):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("train_labels_idx1", np.zeros(5, np.uint8), "train-labels-idx1-ubyte: 5 labels for 6 samples"),
        ("train_labels_idx1", np.array([0, 0, 10, 0, 0, 0], np.uint8), r"label 10 at index 2: expected .*\[0, 10\)"),
        ("train_images_idx3", np.zeros(6, np.uint8), "starts with '00000801': expected '00000803'"),
        ("t10k_images_idx3", np.zeros((2, 3, 2), np.uint8), r"test images of shape \(1, 3, 2\): expected \(1, 2, 2\)"),
    ],
)
def test_idx_files_that_do_not_fit_together_are_named(
    name: str, array: NDArray[np.uint8], text: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, **{name: array})
    with pytest.raises(DataError, match=text) as caught:
        load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"y_train": np.zeros(6)}, "'y_train' has real numbers, and the test set integers: expected one kind in both"),
        ({"y_train": np.array([0.0, 1, 2, 3, np.nan, 0]), "y_test": np.zeros(2)}, "train: label 4 holds an infinity"),
        ({"y_train": np.zeros((6, 2, 2)), "y_test": np.zeros(2)}, "1 targets in the test set: expected 4"),
        ({"y_train": np.zeros((6, 2)), "y_test": np.zeros(2)}, "1 targets in the test set: expected 2"),
        ({"y_train": np.eye(6, dtype=np.int64)}, "1 targets in the test set: expected 6"),
        ({"x_train": np.full((6, 2), -1)}, "'x_train' has tokens from -1 to -1: expected integers from 0"),
        ({"x_train": np.zeros((6, 4), int)}, r"test images of shape \(1, 2, 2\): expected \(4,\)"),
        ({"y_train": np.zeros(6, bool)}, "'y_train' is of dtype 'bool': expected integers"),
        ({"y_train": np.full(6, "cat")}, "'y_train' has .*: expected plain numbers; number classes from 0, as numpy"),
        ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "'y_test' has the label 18446744073709551615"),
        ({"y_train": np.zeros(5, np.int64)}, "'y_train': 5 labels for 6 samples"),
        ({"x_train": np.zeros((6, 2, 2), np.int32)}, "'x_train' is of dtype 'int32': expected uint8 or floats"),
        ({"x_train": np.full((6, 2), 1e300)}, "train: sample 0 holds an infinity"),
        ({"x_test": np.zeros((0, 2, 2), np.uint8), "y_test": np.zeros(0, np.int64)}, r"images of shape \(0, 1, 2, 2\)"),
        ({"x_test": np.zeros((2, 3, 3), np.uint8)}, r"test images of shape \(1, 3, 3\): expected \(1, 2, 2\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed: dict[str, NDArray[Any]], text: str, tmp_path: Path) -> None:
    spec = save_npz(tmp_path / "some.npz", **changed)
    with pytest.raises(DataError, match=text) as caught:
        load(spec)
    assert spec in str(caught.value)


def test_a_table_has_to_be_packed_first(tmp_path: Path) -> None:
    (tmp_path / "homes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DataError, match=r"is not a packed dataset: pack it first, with `lockstep pack .*homes\.csv homes\."
    ):
        load(str(tmp_path / "homes.csv"))
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"with `lockstep pack \S*x\.npy x\.data --labels LABELS\.npy`, where LABELS"):
        load(str(tmp_path / "x.npy"))


def numbered(size: int) -> TrainTest:
    """Return a dataset in which each sample is its own number."""
    images = np.arange(size, dtype=np.float32)[:, np.newaxis]
    return TrainTest("numbered", Dataset(images, np.arange(size) % 3, 3), Dataset(images[:1], np.zeros(1, np.int64), 3))


def numbers(data: Dataset | None) -> list[int]:
    assert data is not None
    return [int(value) for value in data.images[:, 0]]


@given(st.integers(4, 200), st.floats(0.3, 0.7), st.integers(0, 2**63 - 1))
def test_each_sample_is_in_one_of_both_with_its_label(size: int, share: float, seed: int) -> None:
    split = with_validation(numbered(size), share, seed)
    train, validation = numbers(split.train), numbers(split.validation)
    assert sorted(train + validation) == list(range(size))
    assert train == sorted(train)
    assert len(validation) == int(share * size)
    for part in (split.train, split.validation):
        assert part is not None
        np.testing.assert_array_equal(part.labels, part.images[:, 0].astype(np.int64) % 3)


def test_the_seed_draws_it() -> None:
    drawn = [numbers(with_validation(numbered(100), 0.2, seed).validation) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    # Another version that draws others would give a resumed run other samples.
    assert drawn[0] == [8, 9, 11, 14, 16, 17, 20, 24, 30, 33, 37, 42, 47, 52, 54, 62, 67, 75, 76, 87]


def test_the_test_set_stays_and_with_a_share_of_nothing_all() -> None:
    data = numbered(10)
    assert with_validation(data, 0.0, 0) is data
    split = with_validation(data, 0.5, 0)
    assert split.test is data.test
    assert with_validation(split, 0.5, 0) is split


@pytest.mark.parametrize(("share", "count"), [(0.01, 0), (0.09, 0)])
def test_one_that_would_be_empty_is_refused(share: float, count: int) -> None:
    with pytest.raises(DataError, match=f"validation_split = {share} of 10 training samples is {count}: expected"):
        with_validation(numbered(10), share, 0)


def test_sequences_and_numbers_keep_their_rows_of_labels() -> None:
    tokens = np.arange(40, dtype=np.int32).reshape(10, 4)
    places = Dataset(tokens, tokens.astype(np.int64) + 1, 41)
    table = Dataset(tokens.astype(np.float32), np.stack([tokens[:, 0], -tokens[:, 1]], axis=1).astype(np.float32), 0)
    for data in (TrainTest("places", places, places), TrainTest("table", table, table)):
        split = with_validation(data, 0.3, 1)
        for part in (split.train, split.validation):
            assert part is not None
            rows = [int(row[0]) // 4 for row in part.images[:]]
            np.testing.assert_array_equal(part.labels, data.train.labels[rows])


def test_what_is_kept_is_not_read_again_from_whatever_folder_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, added in ((here, 0), (there, 1)):
        folder.mkdir()
        save_npz(folder / "kept.npz", x_train=ARRAYS["x_train"] + added)
    monkeypatch.chdir(here)
    keep_loaded("kept.npz")
    kept = load("kept.npz")
    (here / "kept.npz").unlink()
    assert load("kept.npz") is load(str(here / "kept.npz")) is kept
    monkeypatch.chdir(there)
    assert load("kept.npz").train.images[0, 0, 0, 0] == 1


def test_a_large_array_is_not_kept(tmp_path: Path) -> None:
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
    large = np.lib.format.open_memmap(tmp_path / "x_train.npy", "w+", np.uint8, (6, 1, MOST_KEPT // 6 + 1))
    del large  # a hole: it takes no room
    keep_loaded(str(tmp_path))
    np.save(tmp_path / "x_train.npy", ARRAYS["x_train"])
    assert load(str(tmp_path)) is not load(str(tmp_path))
    keep_loaded(str(tmp_path))
    assert load(str(tmp_path)) is load(str(tmp_path))


@pytest.mark.parametrize("spec", ["", "no.npz", "damaged.npz", "no-such-dataset"])
def test_what_cannot_be_kept_is_left_to_the_process_that_needs_it(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.npz").write_bytes(b"PK damaged")
    keep_loaded(spec)
    with pytest.raises(DataError):
        load(spec)
