"""Samples that were sent are kept on the disk, found again there, and never trusted where they are damaged."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from common.data.manifest import manifest_of, packed, part_of
from common.errors import DataError, RemoteProtocolError
from tests.simulation.small import digits
from worker.samples import Places, SampleStore

PLACES = np.array([7, 3, 39])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def opened(folder: Path) -> SampleStore:
    return SampleStore.open(folder, manifest_of(digits()))


def put(store: SampleStore, places: Places = PLACES) -> None:
    store.put("train", places, packed(digits().train, places))


def asked(store: SampleStore, places: Places) -> list[int]:
    request = store.request_for("train", places)
    return [] if request is None else [int(place) for place in np.frombuffer(request.places, "<u4")]


def test_what_is_not_here_is_wanted_in_order(folder: Path) -> None:
    store = opened(folder)
    assert asked(store, PLACES) == [7, 3, 39]
    put(store, PLACES[:1])
    assert asked(store, PLACES) == [3, 39]


def test_what_was_put_is_the_data(folder: Path) -> None:
    store = opened(folder)
    data = store.data("digits")
    put(store)
    assert np.array_equal(data.train.images[PLACES], digits().train.images[PLACES])
    assert np.array_equal(data.train.labels[PLACES], digits().train.labels[PLACES])
    assert not data.train.images[0].any()
    assert (len(data.train), len(data.test), data.train.classes) == (40, 30, 10)


def test_another_process_finds_it(folder: Path) -> None:
    put(opened(folder))
    assert asked(opened(folder), np.arange(5)) == [0, 1, 2, 4]


@pytest.mark.parametrize("end", ["images", "labels", "marks"])
def test_what_was_damaged_is_wanted_again(folder: Path, end: str) -> None:
    put(opened(folder))
    path = folder / f"train.{end}"
    size = path.stat().st_size // 40
    with path.open("r+b") as file:
        file.seek(3 * size)
        byte = file.read(1)
        file.seek(3 * size)
        file.write(bytes([byte[0] ^ 1]))
    again = opened(folder)
    assert asked(again, PLACES) == [3]
    put(again, PLACES[1:2])
    assert asked(opened(folder), PLACES) == []


def test_files_of_another_length_are_as_good_as_empty(folder: Path) -> None:
    put(opened(folder))
    os.truncate(folder / "train.images", 10)
    assert asked(opened(folder), PLACES) == [7, 3, 39]


@pytest.mark.parametrize(
    ("name", "places", "words"),
    [
        ("validation", PLACES, packed(digits().train, PLACES)),
        ("train", np.array([40]), packed(digits().train, PLACES[:1])),
        ("train", PLACES, packed(digits().train, PLACES[:2])),
    ],
)
def test_what_is_not_what_it_says_is_a_breach_of_the_protocol(
    folder: Path, name: str, places: Places, words: np.ndarray
) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(folder).put(name, places, words)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*--cache"):
        opened(tmp_path / "file" / "kept")


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**32, 2**32), (2**40,) * 4, (0,)], ids=str)
@pytest.mark.parametrize("samples", [1, 2**32 - 1])
def test_samples_of_impossible_sizes_are_no_samples(shape: tuple[int, ...], samples: int, folder: Path) -> None:
    manifest = manifest_of(digits())
    huge = msgspec.structs.replace(manifest.train, samples=samples, images_dtype="<f4", sample_shape=shape)
    with pytest.raises(DataError):
        SampleStore.open(folder, msgspec.structs.replace(manifest, train=huge))


def test_what_is_kept_is_this_users_alone(folder: Path) -> None:
    put(opened(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
@pytest.mark.parametrize("end", ["images", "labels", "marks"])
def test_a_full_disk_is_named_with_the_way_out_and_what_did_not_fit_is_wanted_again(folder: Path, end: str) -> None:
    store, path = opened(folder), folder / f"train.{end}"
    put(store, PLACES[:1])
    path.rename(folder / "aside")
    path.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be kept in .*No space left.*make room, .* --cache"):
        put(store, PLACES[1:])
    assert asked(store, PLACES) == [3, 39]
    (folder / "aside").replace(path)
    assert asked(opened(folder), PLACES) == [3, 39]


def test_the_test_set_is_a_set_of_its_own(folder: Path) -> None:
    store = opened(folder)
    test = part_of(digits(), "test")
    assert test is not None
    store.put("test", PLACES[:2], packed(test, PLACES[:2]))
    assert asked(store, PLACES[:2]) == [7, 3]
    assert store.request_for("test", PLACES[:2]) is None
