"""Samples that a server sent, kept on this machine's disk: what was once here is not asked for again.

A folder for each dataset, as a run cuts it, named by what its samples follow from. A set is three files of their full
length, with holes where nothing has come yet: images, labels, and a checksum for each sample, written last. A sample
counts as here where its checksum is right: whatever a crash or a full disk left is asked for again.
"""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import Dataset, TrainTest
from common.data.manifest import Manifest, PartInfo, PartName, unpacked
from common.errors import DataError, RemoteProtocolError
from common.protocol.messages import SamplesRequest

Places = NDArray[np.int64]

#: Of a checksum.
_MARK_BYTES = 4


@dataclass
class PartStore:
    """One set."""

    facts: PartInfo
    #: Without the ends `.images`, `.labels` and `.marks`.
    stem: Path
    images: NDArray[Any] = field(init=False)
    labels: NDArray[Any] = field(init=False)
    _marks: NDArray[np.uint32] = field(init=False)
    #: For each sample, whether this process has found it here.
    _known: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        facts, count = self.facts, self.facts.samples
        self.images = self._mapped(".images", facts.images_dtype, (count, *facts.sample_shape))
        self.labels = self._mapped(".labels", facts.labels_dtype, (count, *facts.label_shape))
        self._marks = self._mapped(".marks", "<u4", (count,))
        self._known = np.zeros(count, np.bool_)

    def _mapped(self, end: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a file of that shape, made where it is missing, to be read."""
        path = self._path(end)
        size = np.dtype(dtype).itemsize * math.prod(shape)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        return np.memmap(path, dtype, "r", shape=shape)

    def _path(self, end: str) -> Path:
        return self.stem.with_name(self.stem.name + end)

    def missing(self, places: Places) -> Places:
        """Return those of some samples that are not here."""
        unknown = places[~self._known[places]]
        found = [place for place in unknown if self._is_here(int(place))]
        self._known[found] = True
        return unknown[~self._known[unknown]]

    def _is_here(self, place: int) -> bool:
        mark = int(self._marks[place])
        return mark != 0 and mark == checksum(self.images[place].tobytes(), self.labels[place].tobytes())

    def put(self, places: Places, images: bytes, labels: bytes) -> None:
        """Keep samples; OSError where there is no room, and what was written is as good as missing."""
        with (
            open(self._path(".images"), "r+b", buffering=0) as to_images,
            open(self._path(".labels"), "r+b", buffering=0) as to_labels,
            open(self._path(".marks"), "r+b", buffering=0) as to_marks,
        ):
            for place, image, label in self._each(places, images, labels):
                # Not through the mapping: a full disk would end the process there, instead of raising.
                _write(to_images.fileno(), image, place * self.facts.image_bytes)
                _write(to_labels.fileno(), label, place * self.facts.label_bytes)
                _write(to_marks.fileno(), checksum(image, label).to_bytes(4, "little"), place * _MARK_BYTES)
        self._known[places] = True

    def _each(self, places: Places, images: bytes, labels: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        image_bytes, label_bytes = self.facts.image_bytes, self.facts.label_bytes
        for number, place in enumerate(places):
            image = images[number * image_bytes : (number + 1) * image_bytes]
            yield int(place), image, labels[number * label_bytes : (number + 1) * label_bytes]


def checksum(image: bytes, label: bytes) -> int:
    """Return a number from 1 to 2**32 - 1; 0 stands where there is no sample."""
    return zlib.crc32(label, zlib.crc32(image)) or 1


def _write(descriptor: int, data: bytes, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(0, "no room for a whole sample")


@dataclass
class SampleStore:
    """All sets of a dataset that is elsewhere."""

    folder: Path
    manifest: Manifest
    parts: dict[PartName, PartStore]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "SampleStore":
        """Open what is kept of a dataset in a folder, which is made; `DataError` where it cannot be."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            parts = {name: PartStore(facts, folder / name) for name, facts in manifest.parts().items()}
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(
                f"samples cannot be kept in {str(folder)!r}: {error}: expected a folder to write to; give another "
                "with --cache"
            ) from error
        return cls(folder, manifest, parts)

    def data(self, name: str) -> TrainTest:
        """Return the dataset: of samples that have not come, zeros."""
        sets = {name: Dataset(part.images, part.labels, self.manifest.classes) for name, part in self.parts.items()}
        return TrainTest(name, sets["train"], sets["test"], sets.get("validation"))

    def wanted(self, name: PartName, places: Places) -> SamplesRequest | None:
        """Return what is to be asked for next, so that these samples are here; None where they are."""
        part = self.parts[name]
        missing = part.missing(places)[: part.facts.in_a_message()]
        return SamplesRequest(part=name, places=missing.astype("<u4").tobytes()) if len(missing) else None

    def put(self, name: PartName, places: Places, words: NDArray[np.float32]) -> None:
        """Keep what was sent; `RemoteProtocolError` where it is not what it says, `DataError` where no room is."""
        part = self.parts.get(name)
        if part is None or (len(places) and places.max() >= part.facts.samples):
            raise RemoteProtocolError(f"samples of {name!r} that this dataset does not have")
        data = unpacked(part.facts, len(places), words)
        if data is None:
            raise RemoteProtocolError(f"{len(places)} samples in {words.nbytes} bytes: not what each of them takes")
        try:
            part.put(places, *data)
        except OSError as error:
            raise DataError(
                f"samples cannot be kept in {str(self.folder)!r}: {error.strerror}: make room, or give another folder "
                "with --cache"
            ) from error
