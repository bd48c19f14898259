"""Samples that were sent are kept on the disk, found again there, and never trusted where they are damaged."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.manifest import PartName, manifest_of, packed, part_of
from lockstep.common.data.mapped import Indices
from lockstep.common.errors import DataError, RemoteProtocolError
from lockstep.common.protocol.messages import Lease, Samples, SamplesRequest, Work
from lockstep.worker.batches import Batches
from lockstep.worker.samples import SampleStore, checksum, request_for_lease
from tests.lockstep.common.data.test_folder import files_no_longer_than
from tests.simulation.small import digits, job_of

PLACES = np.array([7, 3, 39])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def opened(folder: Path) -> SampleStore:
    return SampleStore.open(folder, manifest_of(digits()))


def sent(part: PartName, places: Indices) -> Samples:
    return Samples(part=part, places=places.astype("<u4").tobytes())


def put(store: SampleStore, places: Indices = PLACES) -> None:
    store.put(sent("train", places), packed(digits().train, places))


def asked(store: SampleStore, places: Indices) -> list[int]:
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
    # Whatever came later, next to it.
    for place in (4, 2):
        put(opened(folder), np.array([place]))
    assert asked(opened(folder), np.arange(5)) == [0, 1]


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
    ("name", "places", "words", "text"),
    [
        ("validation", PLACES, 3, "samples of 'validation' that this dataset does not have"),
        ("train", np.array([40]), 1, "samples of 'train' that this dataset does not have"),
        ("train", PLACES, 2, "3 samples in 1584 bytes: not what each of them takes"),
    ],
)
def test_what_is_not_what_it_says_is_a_breach_of_the_protocol(
    folder: Path, name: PartName, places: Indices, words: int, text: str
) -> None:
    with pytest.raises(RemoteProtocolError) as raised:
        opened(folder).put(sent(name, places), packed(digits().train, PLACES[:words]))
    assert str(raised.value) == text


def test_a_folder_that_cannot_be_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = tmp_path / "file" / "kept"
    with pytest.raises(DataError) as raised:
        opened(kept)
    reason = f"[Errno {errno.ENOTDIR}] {os.strerror(errno.ENOTDIR)}: {str(kept)!r}"
    assert str(raised.value) == (
        f"samples cannot be kept in {str(kept)!r}: {reason}: "
        "expected a folder to write to; give another with XDG_CACHE_HOME, or with `lockstep worker --cache`"
    )


def test_the_folders_above_are_made_as_well(tmp_path: Path) -> None:
    assert asked(opened(tmp_path / "cache" / "kept"), PLACES) == [7, 3, 39]
    assert asked(opened(tmp_path / "cache" / "kept"), PLACES) == [7, 3, 39]


def test_a_sample_that_was_written_in_part_is_told_of_and_wanted_again(folder: Path) -> None:
    store = opened(folder)
    with files_no_longer_than(7 * 784 + 100), pytest.raises(DataError) as raised:
        put(store)
    assert str(raised.value) == (
        f"samples cannot be kept in {str(folder)!r}: no room for a whole sample: make room, or give another folder "
        "with XDG_CACHE_HOME, or with `lockstep worker --cache`"
    )
    assert asked(opened(folder), PLACES) == [7, 3, 39]


def test_no_sample_has_the_checksum_of_a_hole() -> None:
    assert checksum(bytes.fromhex("9d0ad96d"), b"") == 1  # whose CRC is 0


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
    with pytest.raises(DataError, match=rf"cannot be kept in .*{os.strerror(errno.ENOSPC)}.*make room, .* --cache`"):
        put(store, PLACES[1:])
    assert asked(store, PLACES) == [3, 39]
    (folder / "aside").replace(path)
    assert asked(opened(folder), PLACES) == [3, 39]


def test_the_test_set_is_a_set_of_its_own(folder: Path) -> None:
    store = opened(folder)
    test = part_of(digits(), "test")
    assert test is not None
    store.put(sent("test", PLACES[:2]), packed(test, PLACES[:2]))
    assert asked(store, PLACES[:2]) == [7, 3]
    assert store.request_for("test", PLACES[:2]) is None


def test_what_a_message_has_no_room_for_is_requested_later(folder: Path) -> None:
    manifest = manifest_of(digits())
    many = msgspec.structs.replace(manifest, train=msgspec.structs.replace(manifest.train, samples=2000))
    # 784 bytes of an image and 8 of its label, in a MiB.
    assert asked(SampleStore.open(folder, many), np.arange(1500)) == list(range(1323))


def test_the_sets_of_a_run_are_those_of_its_manifest(folder: Path) -> None:
    split = TrainTest("digits", digits().train, digits().test, digits().test)
    data = SampleStore.open(folder, manifest_of(split)).data("named")
    assert data.validation is not None
    assert (data.name, len(data.train), len(data.validation)) == ("named", 40, 30)
    assert opened(folder).data("named").validation is None


@dataclass
class Fetching:
    """A store of samples for leases, and the data that they come from."""

    data: TrainTest
    store: SampleStore
    batches: Batches

    def request_for(self, lease: Lease, later: Sequence[Lease] = ()) -> SamplesRequest | None:
        return request_for_lease(self.store, self.batches, lease, later)

    def places(self, *leases: Lease) -> bytes:
        needed = [self.batches.samples_of(each.work, each.step, Node(each.lo, each.hi)) for each in leases]
        return np.concatenate(needed).astype("<u4").tobytes()

    def put(self, request: SamplesRequest) -> None:
        part = part_of(self.data, request.part)
        assert part is not None
        words = packed(part, np.frombuffer(request.places, "<u4").astype(np.int64))
        self.store.put(Samples(part=request.part, places=request.places), words)


@pytest.fixture
def fetching(folder: Path) -> Fetching:
    data = TrainTest("digits", digits().train, digits().test, digits().test)
    store = SampleStore.open(folder, manifest_of(data))
    batches = Batches(job_of(), store.data("digits"))
    return Fetching(data, store, batches)


@pytest.mark.parametrize(
    ("work", "part"), [("train", "train"), ("audit", "train"), ("validate", "validation"), ("evaluate", "test")]
)
def test_a_lease_is_missing_the_samples_that_it_is_about_until_they_are_here(
    fetching: Fetching, work: Work, part: PartName
) -> None:
    lease = Lease(work=work, step=1, lo=0, hi=1)
    request = fetching.request_for(lease)
    assert request == SamplesRequest(part=part, places=fetching.places(lease))
    fetching.put(request)
    assert fetching.request_for(lease) is None


def test_what_later_leases_of_the_same_work_need_is_requested_with_the_first(fetching: Fetching) -> None:
    first, second, third = (Lease(work="train", step=1, lo=m, hi=m + 1) for m in (2, 0, 1))
    others = [second, Lease(work="evaluate", step=1, lo=0, hi=1), third]
    request = fetching.request_for(first, others)
    assert request == SamplesRequest(part="train", places=fetching.places(first, second, third))
    # It is computed meanwhile: what comes next is no reason to wait.
    fetching.put(SamplesRequest(part="train", places=fetching.places(first)))
    assert fetching.request_for(first, others) is None
    assert fetching.request_for(second, [third]) == SamplesRequest(part="train", places=fetching.places(second, third))
