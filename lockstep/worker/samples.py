"""Samples that a server sends: which to request for a lease, and a store on this machine's disk.

The store has a folder for each dataset, as a run splits it, named by what its samples follow from. A set is three files
of their full length, with holes where nothing has come yet: images, labels, and a checksum for each sample, written
last. A sample counts as stored if its checksum is right: whatever a crash or a full disk left is requested again.
"""

import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.manifest import Manifest, PartInfo, PartName, unpacked
from lockstep.common.data.mapped import Indices
from lockstep.common.errors import DataError, RemoteProtocolError
from lockstep.common.protocol.messages import Lease, Samples, SamplesRequest, Work
from lockstep.worker.batches import Batches

_CHECKSUM_BYTES = 4

#: The set that each kind of work is about.
PARTS: dict[Work, PartName] = {"train": "train", "audit": "train", "validate": "validation", "evaluate": "test"}


@dataclass
class PartStore:
    """One set."""

    info: PartInfo
    #: Without the suffixes `.images`, `.labels` and `.marks`.
    stem: Path
    images: NDArray[Any] = field(init=False)
    labels: NDArray[Any] = field(init=False)
    _checksums: NDArray[np.uint32] = field(init=False)
    #: For each sample, whether this process has checked that it is here.
    _verified: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        info, count = self.info, self.info.samples
        self.images = self._mapped(".images", info.images_dtype, (count, *info.sample_shape))
        self.labels = self._mapped(".labels", info.labels_dtype, (count, *info.label_shape))
        self._checksums = self._mapped(".marks", "<u4", (count,))
        self._verified = np.zeros(count, np.bool_)

    def _mapped(self, suffix: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a file of that shape, mapped for reading; it is made if it is missing."""
        path = self._path(suffix)
        size = np.dtype(dtype).itemsize * math.prod(shape)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        return np.memmap(path, dtype, "r", shape=shape)

    def _path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    def missing(self, places: Indices) -> Indices:
        """Return those of the given samples that are not here."""
        unknown = places[~self._verified[places]]
        found = [place for place in unknown if self._is_here(int(place))]
        self._verified[found] = True
        return unknown[~self._verified[unknown]]

    def _is_here(self, place: int) -> bool:
        return int(self._checksums[place]) == checksum(self.images[place].tobytes(), self.labels[place].tobytes())

    def put(self, places: Indices, images: bytes, labels: bytes) -> None:
        """Store samples; OSError if there is no room: samples that were written then count as missing."""
        with (
            open(self._path(".images"), "r+b") as to_images,
            open(self._path(".labels"), "r+b") as to_labels,
            open(self._path(".marks"), "r+b") as to_checksums,
        ):
            for place, image, label in self._each(places, images, labels):
                # Not through the mapping: a full disk would end the process there, instead of raising.
                _write(to_images.fileno(), image, place * self.info.image_bytes)
                _write(to_labels.fileno(), label, place * self.info.label_bytes)
                _write(to_checksums.fileno(), checksum(image, label).to_bytes(4, "little"), place * _CHECKSUM_BYTES)
        self._verified[places] = True

    def _each(self, places: Indices, images: bytes, labels: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        image_bytes, label_bytes = self.info.image_bytes, self.info.label_bytes
        for number, place in enumerate(places):
            image = images[number * image_bytes : (number + 1) * image_bytes]
            yield int(place), image, labels[number * label_bytes : (number + 1) * label_bytes]


def checksum(image: bytes, label: bytes) -> int:
    """Return a number from 1 to 2**32 - 1; 0 means that there is no sample."""
    return zlib.crc32(label, zlib.crc32(image)) or 1


def _write(descriptor: int, data: bytes, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(0, "no room for a whole sample")


@dataclass
class SampleStore:
    """All sets of a dataset that is not on this machine."""

    folder: Path
    manifest: Manifest
    parts: dict[PartName, PartStore]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "SampleStore":
        """Open the stored samples of a dataset in a folder, which is made; `DataError` if that fails."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            parts = {name: PartStore(info, folder / name) for name, info in manifest.parts().items()}
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(
                f"samples cannot be kept in {str(folder)!r}: {error}: expected a folder to write to; give another "
                "with XDG_CACHE_HOME, or with `lockstep worker --cache`"
            ) from error
        return cls(folder, manifest, parts)

    def data(self, name: str) -> TrainTest:
        """Return the dataset; samples that have not come are zeros."""
        sets = {
            name: Dataset(part.images, part.labels, self.manifest.classes, is_checked=True)
            for name, part in self.parts.items()
        }
        data = TrainTest(name, sets["train"], sets["test"], sets.get("validation"))
        return data.with_moments((self.manifest.mean, self.manifest.std))

    def request_for(self, name: PartName, places: Indices) -> SamplesRequest | None:
        """Return the next request that brings these samples here; None if they are here."""
        part = self.parts[name]
        missing = part.missing(places)[: part.info.in_a_message()]
        return SamplesRequest(part=name, places=missing.astype("<u4").tobytes()) if len(missing) else None

    def put(self, samples: Samples, words: Vector) -> None:
        """Store samples that were sent; `RemoteProtocolError` if it is malformed, `DataError` if there is no room."""
        part, places = self.parts.get(samples.part), np.frombuffer(samples.places, "<u4").astype(np.int64)
        if part is None or (len(places) and places.max() >= part.info.samples):
            raise RemoteProtocolError(f"samples of {samples.part!r} that this dataset does not have")
        data = unpacked(part.info, len(places), words)
        if data is None:
            raise RemoteProtocolError(f"{len(places)} samples in {words.nbytes} bytes: not what each of them takes")
        try:
            part.put(places, *data)
        except OSError as error:
            raise DataError(
                f"samples cannot be kept in {str(self.folder)!r}: {error.strerror}: make room, or give another folder "
                "with XDG_CACHE_HOME, or with `lockstep worker --cache`"
            ) from error


def request_for_lease(
    store: SampleStore, batches: Batches, lease: Lease, later: Iterable[Lease]
) -> SamplesRequest | None:
    """Return the request to send before a lease can be computed; None if all of its samples are here.

    If there is room in the message, it also requests what later leases need: that comes while this one is computed.
    """
    part, leases = PARTS[lease.work], [lease, *(each for each in later if each.work == lease.work)]
    own, *others = (batches.samples_of(each.work, each.step, each.node()) for each in leases)
    if store.request_for(part, own) is None:
        return None
    return store.request_for(part, np.concatenate([own, *others]))
