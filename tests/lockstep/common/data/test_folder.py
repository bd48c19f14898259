"""A dataset folder holds what was packed, says so of every block, and is whole or not there."""

import errno
import fcntl
import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import BLOCK_BYTES, MANIFEST, check_folder, read_manifest
from lockstep.common.data.folder_writer import LOCK
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.npy import DATA_OFFSET
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.source import load, with_moments, with_validation
from lockstep.common.errors import DataError
from tests.lockstep.common.data.folders import folder_of, write_folder
from tests.simulation.small import digits

rng = np.random.default_rng  # of a test's own values


def floats(count: int = 3000, width: int = 700) -> NDArray[np.float32]:
    """Return more than one block of values."""
    return rng(0).normal(3.0, 2.0, size=(count, width)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(digits(), tmp_path / "digits")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Of three blocks, in none of which a row begins with the block."""
    samples, labels = floats(), np.arange(3000) % 3
    return write_folder(tmp_path / "large", (samples, labels), (samples[:5], labels[:5]), 3)


def test_numpy_opens_each_array(folder: Path) -> None:
    for name, part in (("train", digits().train), ("test", digits().test)):
        for array, expected in (("samples", part.images[:]), ("labels", part.labels)):
            found = np.load(folder / f"{name}-{array}.npy", mmap_mode="r", allow_pickle=False)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_it_is_the_dataset_that_was_packed(folder: Path) -> None:
    data = load(str(folder))
    assert data.name == "digits"
    assert isinstance(data.train.images, MappedSamples)
    assert (data.train.classes, data.train.sample_shape, len(data.train)) == (10, (1, 28, 28), len(digits().train))
    np.testing.assert_array_equal(data.test.images[:], digits().test.images[:])
    np.testing.assert_array_equal(data.train.labels, digits().train.labels)


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_its_moments_are_those_of_the_arrays_in_memory_to_the_bit(kind: str, tmp_path: Path) -> None:
    samples = floats() if kind == "floats" else floats().clip(0, 9).astype(np.uint8)
    labels = np.arange(3000) % 3
    path = write_folder(tmp_path / "new", (samples, labels), (samples[:5], labels[:5]), 3)
    data, in_memory = load(str(path)), Dataset(samples, labels, 3)
    assert Preparation.of(data.train) == Preparation.of(in_memory)
    assert data.train.largest() == float(samples.max())
    # Of what a validation set leaves, they are computed.
    split = with_moments(with_validation(data, 0.3, 5))
    both = TrainTest("both", in_memory, in_memory)
    assert Preparation.of(split.train) == Preparation.of(with_validation(both, 0.3, 5).train)
    assert split.train.moments is not None


def test_a_validation_set_is_taken_out_of_it_without_reading(folder: Path) -> None:
    data, expected = with_validation(load(str(folder)), 0.25, 3), with_validation(digits(), 0.25, 3)
    assert data.validation is not None
    assert expected.validation is not None
    for part, other in ((data.train, expected.train), (data.validation, expected.validation)):
        assert isinstance(part.images, MappedSamples)
        np.testing.assert_array_equal(part.images[:], other.images[:])
        np.testing.assert_array_equal(part.labels, other.labels)


def test_equal_arrays_have_one_digest_and_others_another(tmp_path: Path) -> None:
    samples, labels = floats(20, 3), np.arange(20) % 3
    one, same = (write_folder(tmp_path / name, (samples, labels), (samples, labels), 3) for name in ("a", "b"))
    digests = [load(str(path)).digest for path in (one, same)]
    assert digests[0] == digests[1] == read_manifest(one).digest()
    given, turned = (samples, labels), (samples[::-1].copy(), labels[::-1].copy())
    for number, parts in enumerate((
        ((turned[0], labels), given), ((samples, turned[1]), given),
        # The same training set, with which the same weights are trained, and another test set.
        (given, (turned[0], labels)), (given, (samples, turned[1])), (given, (samples[:9], labels[:9])),
    )):  # fmt: skip
        digests.append(load(str(write_folder(tmp_path / f"{number}", *parts, 3))).digest)
    assert len(set(digests)) == 6


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_a_whole_check_names_the_block_that_has_changed(large: Path) -> None:
    assert check_folder(large) == read_manifest(large)
    path = large / "train-samples.npy"
    damage(path, DATA_OFFSET + BLOCK_BYTES + 17)
    with pytest.raises(DataError, match=re.escape(f"{path}: block 1 (bytes 4,194,304 to 8,388,607 of the data)")):
        check_folder(large)


@pytest.mark.parametrize("at", [0, 2 * BLOCK_BYTES])
def test_a_change_at_either_end_is_seen_when_it_is_opened(large: Path, at: int) -> None:
    damage(large / "train-samples.npy", DATA_OFFSET + at)
    with pytest.raises(DataError, match=f"block {at // BLOCK_BYTES} "):
        load(str(large))


def test_who_verifies_sees_a_change_in_the_middle_when_it_gets_there(large: Path) -> None:
    damage(large / "train-samples.npy", DATA_OFFSET + BLOCK_BYTES + 17)
    images = load(str(large), is_checked=True).train.images
    assert len(images.take(np.arange(1400))) == 1400
    with pytest.raises(DataError, match="block 1 "):
        images.take(np.array([1600]))
    # A row that lies in two blocks is of both.
    with pytest.raises(DataError, match="block 1 "):
        images.take(np.array([BLOCK_BYTES // 2800]))


def edited(folder: Path, **changed: Any) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changed))
    return folder


BROKEN = {
    "format": ({"format": "lockstep dataset 9"}, "damaged"),
    "names": ({"class_names": ["one"]}, "1 names for 10 classes"),
    "std": ({"std": 0.0}, "damaged"),
    "more": ({"more": 1}, "damaged"),
    "blocks": ({"block_bytes": 4096}, "1 digests for"),
}


@pytest.mark.parametrize(("changed", "text"), BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_contradicts_itself_is_refused(folder: Path, changed: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=re.escape(str(folder / MANIFEST)) + ".*" + text):
        load(str(edited(folder, **changed)))


def test_a_file_that_is_shorter_than_its_header_says_is_refused(folder: Path) -> None:
    path = folder / "test-samples.npy"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=re.escape(f"{path}: its header claims ") + ".*pack it again"):
        load(str(folder))


def test_a_file_of_another_array_is_refused(folder: Path) -> None:
    (folder / "train-labels.npy").write_bytes((folder / "test-labels.npy").read_bytes())
    with pytest.raises(DataError, match=r"train-labels.npy: holds <i8 \(30,\): expected <i8 \("):
        load(str(folder))


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    (folder / "train-labels.npy").unlink()
    with pytest.raises(DataError, match=rf"train-labels.npy: cannot be read \({os.strerror(errno.ENOENT)}"):
        load(str(folder))


# How it is written


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_there_is_no_room_nothing_is_left(tmp_path: Path) -> None:
    samples, labels = floats(), np.arange(3000) % 3
    with files_no_longer_than(2**20), pytest.raises(DataError) as raised:
        write_folder(tmp_path / "new", (samples, labels), (samples, labels), 3)
    assert str(raised.value) == (
        f"{str(tmp_path / 'new')!r} cannot be written ({os.strerror(errno.EFBIG)}): make room, or give another folder; "
        "the one of the cache is given with XDG_CACHE_HOME"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_touched(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(DataError, match="exists: expected a new folder"):
        folder_of(digits(), folder)
    assert (folder / MANIFEST).read_bytes() == before


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    # Labels of another shape in the second set.
    with pytest.raises(DataError, match="labels to test with are float64 of shape"):
        write_folder(tmp_path / "new", (floats(9, 3), np.zeros(9)), (floats(2, 3), np.zeros((2, 1))), 1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_cleared_away(tmp_path: Path) -> None:
    partial = tmp_path / ".new.partial"
    (partial / "scratch").mkdir(parents=True)
    (partial / "train-samples.npy").write_bytes(b"half of it")
    folder_of(digits(), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert len(list((tmp_path / "new").iterdir())) == 5


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    partial = tmp_path / ".new.partial"
    partial.mkdir()
    with (partial / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (partial / "train-samples.npy").write_bytes(b"half of it")
        with pytest.raises(DataError, match="is being written by another process"):
            folder_of(digits(), tmp_path / "new")
        assert (partial / "train-samples.npy").exists()


@pytest.mark.parametrize(("train", "test", "text"), [(0, 2, "the train set is empty"), (2, 0, "the test set is empty")])
def test_an_empty_set_is_refused(tmp_path: Path, train: int, test: int, text: str) -> None:
    samples, labels = floats(2, 3), np.zeros(2, np.int64)
    with pytest.raises(DataError, match=text):
        write_folder(tmp_path / "new", (samples[:train], labels[:train]), (samples[:test], labels[:test]), 1)
    assert list(tmp_path.iterdir()) == []
