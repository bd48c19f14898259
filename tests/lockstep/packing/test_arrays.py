"""Arrays become the dataset that they would be in memory; what is wrong with them is one line, and leaves nothing."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.array_source import IDX_TEST, IDX_TRAIN
from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.common.data.test_source import ARRAYS, write_folder

PLAIN = PackOptions()


def sizes(packed: Packed) -> tuple[int, int]:
    return packed.manifest.train.info.samples, packed.manifest.test.info.samples


def both(tmp_path: Path, **changed: Any) -> str:
    path = tmp_path / "some.npz"
    np.savez(path, allow_pickle=False, **(ARRAYS | changed))
    return str(path)


KINDS: dict[str, dict[str, Any]] = {
    "images": {},
    "colour": {"x_train": np.zeros((6, 3, 2, 2), np.uint8), "x_test": np.ones((2, 3, 2, 2), np.uint8)},
    "doubles": {"x_train": np.linspace(0, 1, 12).reshape(6, 2), "x_test": np.ones((2, 2))},
    "big endian": {"x_train": np.arange(12, dtype=">f4").reshape(6, 2), "x_test": np.ones((2, 2), ">f4")},
    "booleans": {"x_train": np.eye(6, 3, dtype=np.bool_), "x_test": np.ones((2, 3), np.bool_)},
    "tokens": {"x_train": np.arange(18).reshape(6, 3), "x_test": np.arange(6).reshape(2, 3)},
    "regression": {"y_train": np.linspace(0, 1, 6), "y_test": np.linspace(1, 2, 2)},
    "two numbers": {"y_train": np.zeros((6, 2)), "y_test": np.ones((2, 2))},
    "bytes as labels": {"y_train": np.arange(6, dtype=np.uint8), "y_test": np.arange(2, dtype=np.uint8)},
}


@pytest.mark.parametrize("changed", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_npz_becomes_what_it_is_in_memory(tmp_path: Path, changed: dict[str, Any], is_compressed: bool) -> None:
    source = both(tmp_path, **changed)
    if is_compressed:
        np.savez_compressed(source, **(ARRAYS | changed))
    pack(source, tmp_path / "new", PLAIN)
    packed, expected = load(str(tmp_path / "new")), load(source)
    for part, other in ((packed.train, expected.train), (packed.test, expected.test)):
        assert (part.classes, part.images.dtype, part.labels.dtype) == (
            other.classes,
            other.images.dtype,
            other.labels.dtype,
        )
        np.testing.assert_array_equal(part.images[:], other.images[:])
        np.testing.assert_array_equal(part.labels, other.labels)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_folder_of_idx_files_becomes_what_it_is_in_memory(tmp_path: Path, is_packed: bool) -> None:
    source = tmp_path / "idx"
    source.mkdir()
    write_folder(source)
    for path in list(source.iterdir()) if is_packed else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    pack(str(source), tmp_path / "new", PLAIN)
    packed, expected = load(str(tmp_path / "new")), load(str(source))
    assert packed.train.classes == 10
    np.testing.assert_array_equal(packed.train.images[:], expected.train.images[:])
    np.testing.assert_array_equal(packed.test.labels, expected.test.labels)


def test_npy_files_of_a_folder_are_the_arrays_by_name(tmp_path: Path) -> None:
    source = tmp_path / "arrays"
    source.mkdir()
    for name, array in ARRAYS.items():
        np.save(source / f"{name}.npy", array)
    packed = pack(str(source), tmp_path / "new", PLAIN)
    assert (sizes(packed), packed.manifest.classes, packed.notes) == ((6, 2), 5, ())


def test_without_a_test_set_a_share_becomes_it(tmp_path: Path) -> None:
    samples, labels = np.arange(5000, dtype=np.float32).reshape(2500, 2), np.arange(2500) % 7
    np.save(tmp_path / "x.npy", samples)
    np.save(tmp_path / "y.npy", labels)
    options = PackOptions(labels=tmp_path / "y.npy", test_split=0.3, seed=4)
    packed = pack(str(tmp_path / "x.npy"), tmp_path / "new", options)
    assert sizes(packed) == (1750, 750)
    assert list(packed.lines())[-1] == "the test set is 30% of it, drawn by seed 4 (--test-split, --seed)"
    data = load(str(tmp_path / "new"))
    rows = [part.images[:, 0].astype(int) // 2 for part in (data.train, data.test)]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(2500))
    assert all((np.diff(part) > 0).all() for part in rows)
    np.testing.assert_array_equal(data.test.labels, labels[rows[1]])
    np.savez(tmp_path / "xy.npz", x=samples, y=labels)
    again = pack(str(tmp_path / "xy.npz"), tmp_path / "again", PackOptions(test_split=0.3, seed=4))
    assert load(str(again.folder)).digest == data.digest


def test_bytes_as_floats_are_from_0_to_1(tmp_path: Path) -> None:
    pack(both(tmp_path), tmp_path / "new", PackOptions(dtype="float32"))
    images = load(str(tmp_path / "new")).train.images[:]
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, ARRAYS["x_train"][:, np.newaxis] / np.float32(255))


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"x_train": np.array([[0.0, 1], [2, np.nan]] * 3)}, "'x_train': row 1, at (1,) is not a finite number"),
    "NaN label": ({"y_train": np.array([0.0, 1, 2, 3, np.nan, 5]), "y_test": np.ones(2)}, "'y_train': row 4, at (0,)"),
    "below 0": ({"y_train": np.array([0, 1, 2, -3, 0, 1])}, "'y_train': label -3 in row 3: expected classes from 0"),
    "fewer labels": ({"y_train": np.arange(5)}, "'y_train': 5 labels for 6 samples"),
    "more labels": ({"y_train": np.arange(7)}, "'y_train': 7 labels for 6 samples"),
    "objects": ({"x_train": np.array(["a"] * 6)}, "of type '<U1'"),
    "shapes": ({"x_test": np.zeros((2, 3, 3), np.uint8)}, "samples to test with are uint8 of shape (1, 3, 3)"),
    "one class": ({"y_train": np.zeros(6, int), "y_test": np.zeros(2, int)}, "the labels have one class only, 0"),
    "kinds": ({"y_test": np.ones(2)}, "the test set real numbers: expected one kind in both"),
    "Fortran": ({"x_train": np.asfortranarray(np.zeros((6, 2, 2)))}, "is in Fortran order"),
    "no samples": ({"x_test": np.zeros((0, 2, 2), np.uint8), "y_test": np.zeros(0, int)}, "the test set is empty"),
}


@pytest.mark.parametrize(("changed", "text"), ODD.values(), ids=ODD)
def test_what_is_wrong_is_named_and_leaves_nothing(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    source = both(tmp_path, **changed)
    with pytest.raises(DataError, match=re.escape(text)):
        pack(source, tmp_path / "new", PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


@pytest.mark.parametrize("name", [*IDX_TRAIN, *IDX_TEST])
def test_a_packed_idx_file_in_which_something_follows_is_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "idx"
    source.mkdir()
    write_folder(source)
    path = source / name
    # How long the unpacked bytes are shows at their end only.
    path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes() + b"\1"))
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}\.gz: longer than its header says: more than \d+ bytes of data"):
        pack(str(source), tmp_path / "new", PLAIN)
    with pytest.raises(DataError, match=rf"{name}\.gz: longer than its header says: more than \d+ bytes of data"):
        load(str(source))
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]


def test_an_npy_that_is_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(20))
    np.save(tmp_path / "x.npy", np.zeros((20, 3)))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"x\.npy: shorter than its header says: 479 bytes of data, expected 480"):
        pack(str(tmp_path / r"x.npy"), tmp_path / "new", PackOptions(labels=tmp_path / "y.npy"))


@pytest.mark.parametrize("keep", [5, 11, 200])
def test_a_gzip_that_breaks_off_is_refused(tmp_path: Path, keep: int) -> None:
    write_folder(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    noise = np.random.default_rng(0).integers(0, 256, (6, 20, 20), np.uint8)
    write_folder(tmp_path, train_images_idx3=noise)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:keep])
    path.unlink()
    with pytest.raises(DataError, match=r"train-images|damaged"):
        pack(str(tmp_path), tmp_path / "new", PLAIN)
    assert not (tmp_path / "new").exists()


def test_what_is_packed_is_not_packed_again(tmp_path: Path) -> None:
    pack(both(tmp_path), tmp_path / "new", PLAIN)
    with pytest.raises(DataError, match="is packed already"):
        pack(str(tmp_path / "new"), tmp_path / "newer", PLAIN)


@pytest.mark.parametrize("source", ["gone", "gone.npz"])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=source):
        pack(str(tmp_path / source), tmp_path / "new", PLAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["w_train", "x_train.picture", "y_test.0"])
def test_weights_and_several_inputs_are_refused_and_not_dropped(tmp_path: Path, name: str) -> None:
    source = both(tmp_path, **{name: np.ones(6)})
    advice = re.escape(f"train on the file itself: lockstep train --data {source}")
    with pytest.raises(DataError, match=f"has '{name}', and weights of samples, or several inputs .* {advice}"):
        pack(source, tmp_path / "new", PLAIN)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for each, array in (ARRAYS | {name: np.ones(6)}).items():
        np.save(folder / f"{each}.npy", array)
    with pytest.raises(DataError, match=f"has '{name}', .*; remove it"):
        pack(str(folder), tmp_path / "new", PLAIN)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["w", "x.picture", "y.0", "w_train"])
def test_weights_and_several_inputs_are_not_divided_and_not_dropped(tmp_path: Path, name: str) -> None:
    ends = ("_train", "_train") if name == "w_train" else ("", "")
    arrays = {f"x{ends[0]}": ARRAYS["x_train"], f"y{ends[1]}": ARRAYS["y_train"], name: np.ones(6)}
    source = tmp_path / "whole.npz"
    np.savez(source, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"has '{name}', and samples with weights, .* expected a test set next to them"):
        pack(str(source), tmp_path / "new", PLAIN)
    assert not (tmp_path / "new").exists()


def test_samples_without_a_value_or_of_another_type_are_refused(tmp_path: Path) -> None:
    for samples, text in (
        (np.zeros((6, 0)), r"'x' is of shape \(6, 0\): expected at least one value for each sample"),
        (np.zeros((6, 2, 2), np.int64), "'x' is of dtype 'int64': expected uint8 or floats"),
    ):
        np.savez(tmp_path / "some.npz", x=samples, y=np.arange(6) % 2)
        with pytest.raises(DataError, match=text):
            pack(str(tmp_path / "some.npz"), tmp_path / "new", PLAIN)
