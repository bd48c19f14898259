"""Writes a dataset folder row by row, so that its name leads to a whole one or to nothing.

It is written next to where it will be, under another name that a lock keeps to one process. What a process that was
killed has left there is removed by the next that packs to the same place.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.folder import BLOCK_BYTES, MANIFEST, Column, FolderManifest, FolderPart, Origin, array_file
from lockstep.common.data.manifest import PartInfo
from lockstep.common.data.npy import DATA_OFFSET, NpyHeader, header_bytes
from lockstep.common.data.preparation import BLOCK, moments_of
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line


@dataclass
class ArrayWriter:
    """One array's file: its header is written last, since the number of rows is known only then."""

    path: Path
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    rows: int = 0
    #: The digests of the blocks that are whole.
    digests: list[str] = field(default_factory=list)
    _file: BufferedRandom = field(init=False)
    _digest: Any = field(default_factory=hashlib.sha256)
    #: Bytes of the block that is not whole yet.
    _filled: int = 0

    def __post_init__(self) -> None:
        self._file = self.path.open("w+b")
        self._file.seek(DATA_OFFSET)

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows, which are of our dtype and shape."""
        assert (rows.dtype, rows.shape[1:]) == (self.dtype, self.row_shape)
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self.rows += len(rows)
        while len(data):
            piece, data = data[: BLOCK_BYTES - self._filled], data[BLOCK_BYTES - self._filled :]
            self._digest.update(piece)
            self._filled += len(piece)
            if self._filled == BLOCK_BYTES:
                self._end_block()

    def _end_block(self) -> None:
        self.digests.append(self._digest.hexdigest())
        self._digest, self._filled = hashlib.sha256(), 0

    def end(self) -> None:
        """Write the header, and wait until all of it outlives a loss of power."""
        if self._filled:
            self._end_block()
        self._file.seek(0)
        self._file.write(header_bytes(NpyHeader((self.rows, *self.row_shape), self.dtype)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def value_blocks(self) -> Iterator[NDArray[Any]]:
        """Return all values that were written, in the blocks of `Preparation`."""
        self._file.flush()
        buffer = np.empty(BLOCK, self.dtype)
        self._file.seek(DATA_OFFSET)
        left = self.rows * int(np.prod(self.row_shape, dtype=np.int64))
        while left:
            block = buffer[: min(BLOCK, left)]
            if self._file.readinto(block.view(np.uint8).data) != block.nbytes:
                raise OSError(0, "became shorter while it was written")
            left -= len(block)
            yield block

    def close(self) -> None:
        self._file.close()


@dataclass
class PartWriter:
    """One set: samples, and as many labels."""

    samples: ArrayWriter
    labels: ArrayWriter

    def append(self, samples: NDArray[Any], labels: NDArray[Any]) -> None:
        """Write samples with their labels."""
        self.samples.append(samples)
        self.labels.append(labels)

    def info(self) -> PartInfo:
        """Return what is to be known of the set."""
        return msgspec.convert(
            {
                "samples": self.samples.rows,
                "images_dtype": self.samples.dtype.str,
                "sample_shape": self.samples.row_shape,
                "labels_dtype": self.labels.dtype.str,
                "label_shape": self.labels.row_shape,
            },
            PartInfo,
        )


@dataclass
class FolderWriter:
    """A folder that is being written; see `dataset_folder`."""

    #: Where it is written, and where it will be.
    folder: Path
    destination: Path
    parts: dict[str, PartWriter] = field(default_factory=dict)

    def open_part(
        self,
        name: str,
        samples: np.dtype[Any],
        shape: tuple[int, ...],
        labels: np.dtype[Any],
        label_shape: tuple[int, ...],
    ) -> PartWriter:
        """Begin the set called `name`, of samples and labels of these dtypes and shapes."""
        part = PartWriter(
            ArrayWriter(array_file(self.folder, name, "samples"), samples, shape),
            ArrayWriter(array_file(self.folder, name, "labels"), labels, label_shape),
        )
        self.parts[name] = part
        return part

    def finish(
        self,
        *,
        kind: str,
        classes: int,
        origin: Origin,
        class_names: list[str] | None = None,
        columns: list[Column] | None = None,
        targets: list[Column] | None = None,
    ) -> FolderManifest:
        """Write the manifest, and give the folder its name."""
        for name, use in (("train", "learn from"), ("test", "test with")):
            if name not in self.parts or not self.parts[name].samples.rows:
                raise DataError(f"the {name} set is empty: expected samples to {use}")
        train, test = self.parts["train"], self.parts["test"]
        for what, one, other in (("samples", train.samples, test.samples), ("labels", train.labels, test.labels)):
            if (one.dtype, one.row_shape) != (other.dtype, other.row_shape):
                raise DataError(
                    f"{what} to test with are {other.dtype} of shape {other.row_shape}: expected {one.dtype} of "
                    f"{one.row_shape}, as in training"
                )
        for array in (train.samples, train.labels, test.samples, test.labels):
            array.end()
        dtype, count = train.samples.dtype, train.samples.rows * int(np.prod(train.samples.row_shape, dtype=np.int64))
        largest = [-np.inf]

        def blocks() -> Iterator[NDArray[Any]]:
            for block in train.samples.value_blocks():
                largest.append(float(block.max()))
                yield block

        mean, std = (0.0, 1.0) if dtype == np.int32 else moments_of(blocks, dtype, count)
        manifest = FolderManifest(
            kind=kind,  # type: ignore[arg-type]
            classes=classes,
            class_names=class_names or [],
            columns=columns or [],
            targets=targets or [],
            mean=mean,
            std=std,
            largest=max(largest) if dtype != np.int32 else 0.0,
            block_bytes=BLOCK_BYTES,
            train=self._part("train"),
            test=self._part("test"),
            origin=origin,
        )
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        with open(self.folder / MANIFEST, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return manifest

    def _part(self, name: str) -> FolderPart:
        part = self.parts[name]
        return FolderPart(info=part.info(), samples=part.samples.digests, labels=part.labels.digests)

    def scratch(self, name: str) -> Path:
        """Return a file for what is on its way; it is removed before the folder gets its name."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path / name

    def close(self) -> None:
        for part in self.parts.values():
            part.samples.close()
            part.labels.close()
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)


@contextmanager
def dataset_folder(destination: Path) -> Iterator[FolderWriter]:
    """Write a dataset folder at a place where nothing is; it appears there whole, at the end of the context, or not.

    Raises DataError if something is there, if another process is writing it, or if there is no room.
    """
    destination = Path(os.path.abspath(destination))
    if os.path.lexists(destination):
        raise DataError(f"{str(destination)!r} exists: expected a new folder; give another name, or remove it")
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            try:
                writer = FolderWriter(partial, destination)
                try:
                    yield writer
                finally:
                    writer.close()
                if (partial / MANIFEST).exists():
                    (partial / LOCK).unlink()
                    os.rename(partial, destination)
                    _sync(destination.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise DataError(f"{str(destination)!r} is being written by another process: wait for it") from None
        reason = one_line(error.strerror or str(error))
        raise DataError(
            f"{str(destination)!r} cannot be written ({reason}): make room, or give another folder"
        ) from None


#: Keeps a folder that is being written to one process.
LOCK = "lock"


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Make a folder anew that no other process has; BlockingIOError if one has it."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What a process has left that was killed.
        for path in partial.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
