"""Writes a dataset folder row by row, so that its name leads to a whole one or to nothing.

It is written next to where it will be, under another name that a lock keeps to one process. The remains of a killed
process there are removed by the next one that packs to the same place.
"""

import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.columns import Column
from lockstep.common.data.folder import (
    ARRAYS,
    BLOCK_BYTES,
    MANIFEST,
    ArrayName,
    FolderManifest,
    FolderPart,
    Kind,
    Origin,
    PartName,
    Reading,
    array_file,
)
from lockstep.common.data.manifest import part_info
from lockstep.common.data.npy import DATA_OFFSET, NpyHeader, header_bytes
from lockstep.common.data.preparation import BLOCK, moments_of
from lockstep.common.errors import DataError
from lockstep.common.files.atomic import sync_folder, write_atomically
from lockstep.common.files.sanitize import one_line


@dataclass
class ArrayWriter:
    """One array's file: its header is written last, since the number of rows is known only then."""

    path: Path
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    rows: int = 0
    #: The largest value, as a float.
    largest: float = -math.inf
    #: The digests of the blocks that are whole.
    digests: list[str] = field(default_factory=list)
    _file: BinaryIO = field(init=False)
    _digest: Any = field(default_factory=hashlib.sha256)
    #: Bytes of the block that is not whole yet.
    _filled: int = 0

    def __post_init__(self) -> None:
        self._file = self.path.open("w+b")
        self._file.seek(DATA_OFFSET)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the written rows."""
        return (self.rows, *self.row_shape)

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows, which are of our dtype and shape."""
        assert (rows.dtype, rows.shape[1:]) == (self.dtype, self.row_shape)
        self.largest = max(self.largest, float(rows.max(initial=-math.inf if rows.dtype.kind == "f" else 0)))
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
        self._file.write(header_bytes(NpyHeader(self.shape, self.dtype)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def value_blocks(self) -> Iterator[NDArray[Any]]:
        """Return all values that were written, in the blocks of `Preparation`."""
        self._file.flush()
        self._file.seek(DATA_OFFSET)
        while len(block := np.fromfile(self._file, self.dtype, BLOCK)):
            yield block

    def close(self) -> None:
        self._file.close()


@dataclass
class FolderWriter:
    """A folder that is being written; see `dataset_folder`."""

    folder: Path
    #: The samples and labels of the sets that were begun.
    parts: dict[PartName, tuple[ArrayWriter, ArrayWriter]] = field(default_factory=dict)

    def append(self, name: PartName, samples: NDArray[Any], labels: NDArray[Any]) -> None:
        """Write samples with their labels to a set; the first ones decide its dtypes and shapes."""
        if name not in self.parts:
            self.parts[name] = self._writer(name, "samples", samples), self._writer(name, "labels", labels)
        for writer, rows in zip(self.parts[name], (samples, labels), strict=True):
            writer.append(rows)

    def _writer(self, name: PartName, array: ArrayName, rows: NDArray[Any]) -> ArrayWriter:
        return ArrayWriter(array_file(self.folder, name, array), rows.dtype, rows.shape[1:])

    def finish(
        self,
        *,
        kind: Kind,
        classes: int,
        origin: Origin,
        class_names: Sequence[str] = (),
        columns: Sequence[Column] = (),
        targets: Sequence[Column] = (),
        reading: Reading | None = None,
    ) -> FolderManifest:
        """Write the manifest; the folder then gets its name at the end of the context."""
        self._check()
        for array in chain.from_iterable(self.parts.values()):
            array.end()
        samples = self.parts["train"][0]
        is_tokens = samples.dtype == np.int32
        count = math.prod(samples.shape)
        mean, std = (0.0, 1.0) if is_tokens else moments_of(samples.value_blocks, samples.dtype, count)
        manifest = FolderManifest(
            kind=kind,
            classes=classes,
            class_names=list(class_names),
            columns=list(columns),
            targets=list(targets),
            reading=reading or Reading(),
            mean=mean,
            std=std,
            largest=0.0 if is_tokens else samples.largest,
            block_bytes=BLOCK_BYTES,
            train=self._part("train"),
            test=self._part("test"),
            origin=origin,
        )
        write_manifest(self.folder, manifest)
        return manifest

    def _check(self) -> None:
        """Raise DataError unless both sets have samples, and arrays alike."""
        for name, use in (("train", "learn from"), ("test", "test with")):
            if name not in self.parts or not self.parts[name][0].rows:
                raise DataError(f"the {name} set is empty: expected samples to {use}")
        for what, one, other in zip(ARRAYS, self.parts["train"], self.parts["test"], strict=True):
            if (one.dtype, one.row_shape) != (other.dtype, other.row_shape):
                raise DataError(
                    f"{what} to test with are {other.dtype} of shape {other.row_shape}: expected {one.dtype} of "
                    f"{one.row_shape}, as in training"
                )

    def _part(self, name: PartName) -> FolderPart:
        samples, labels = self.parts[name]
        return FolderPart(info=part_info(samples, labels), samples=samples.digests, labels=labels.digests)

    def scratch(self, name: str) -> Path:
        """Return a scratch file; it is removed before the folder gets its name."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path / name

    def close(self) -> None:
        for array in chain.from_iterable(self.parts.values()):
            array.close()
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
            with closing(FolderWriter(partial)) as writer:
                yield writer
            if (partial / MANIFEST).exists():
                (partial / LOCK).unlink()
                os.rename(partial, destination)
                sync_folder(destination.parent)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise DataError(f"{str(destination)!r} is being written by another process: wait for it") from None
        reason = one_line(error.strerror or str(error))
        raise DataError(
            f"{str(destination)!r} cannot be written ({reason}): make room, or give another folder; "
            "the one of the cache is given with XDG_CACHE_HOME"
        ) from None


#: Keeps a folder that is being written to one process.
LOCK = "lock"


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Make an empty folder for this process only, until the end of the context; BlockingIOError if another has it."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The remains of a killed process.
        for path in partial.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: FolderManifest) -> None:
    """Write what describes a dataset folder, whole or not at all."""
    write_atomically(folder / MANIFEST, [msgspec.json.format(msgspec.json.encode(manifest), indent=1)])
