"""Arrays as sources: .npz and .npy files of any length, and IDX files, read some rows at a time."""

import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.formats.npy import NpyHeader, read_header
from lockstep.common.data.formats.npz import open_archive, open_array
from lockstep.common.data.mapped import MAX_FILE_BYTES
from lockstep.common.data.source import IDX_CLASSES, IDX_TEST, IDX_TRAIN, as_labels, as_samples
from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line

#: Bytes of samples that are read at once.
BATCH_BYTES = 2**23

#: The arrays of a training set, and of a test set, in an .npz or as .npy files of a folder.
TRAIN, TEST = ("x_train", "y_train"), ("x_test", "y_test")

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


@dataclass
class RowReader:
    """The rows of one array, in order."""

    named: str
    header: NpyHeader
    stream: io.BufferedIOBase
    rows_read: int = 0

    def read(self, rows: int) -> NDArray[Any]:
        """Return the next rows, fewer at the end; DataError if the file is shorter than its header says."""
        shape, dtype = self.header.shape, self.header.dtype
        rows = min(rows, shape[0] - self.rows_read)
        array = np.empty((rows, *shape[1:]), dtype)
        if array.nbytes:
            view, done = array.reshape(-1).view(np.uint8).data, 0
            while done < array.nbytes and (count := self.stream.readinto(view[done:])):
                done += count
            if done < array.nbytes:
                whole = self.rows_read * (self.header.data_bytes // shape[0]) + done
                raise DataError(
                    f"{self.named}: truncated: its header claims {self.header.data_bytes} bytes of data, and it has "
                    f"{whole}: write it again"
                )
        self.rows_read += rows
        return array

    def check_end(self) -> None:
        """Raise DataError if something follows what the header claims."""
        if self.stream.read(1):
            raise DataError(f"{self.named}: more bytes follow than its header claims: expected the end")


@dataclass
class ArraySet:
    """One set: samples with their labels."""

    samples: RowReader
    labels: RowReader

    def __post_init__(self) -> None:
        for reader in (self.samples, self.labels):
            if reader.header.is_fortran and len(reader.header.shape) > 1:
                raise DataError(f"{reader.named} is in Fortran order: save numpy.ascontiguousarray of it")
            if not reader.header.shape:
                raise DataError(f"{reader.named} is a single number: expected an array of samples")
        count, labels = self.samples.header.shape[0], self.labels.header.shape[0]
        if count != labels:
            raise DataError(f"{self.labels.named}: {labels} labels for {count} samples: expected one each")

    def batches(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Return samples and labels as they are stored in a folder, some at a time."""
        header = self.samples.header
        each = max(1, header.data_bytes // max(1, header.shape[0]))
        rows = max(1, BATCH_BYTES // each)
        while self.samples.rows_read < header.shape[0]:
            first = self.samples.rows_read
            samples = as_samples(self.samples.named, self.samples.read(rows))
            labels = as_labels(self.labels.named, self.labels.read(rows))
            _check_finite(self.samples.named, samples, first)
            _check_finite(self.labels.named, labels, first)
            if labels.dtype == np.int64 and int(labels.min()) < 0:
                row = first + int(np.argwhere(labels < 0)[0, 0])
                raise DataError(f"{self.labels.named}: label {int(labels.min())} in row {row}: expected classes from 0")
            yield samples, labels
        self.samples.check_end()
        self.labels.check_end()


def _check_finite(named: str, rows: NDArray[Any], first: int) -> None:
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        row, *rest = np.argwhere(~np.isfinite(rows))[0].tolist()
        place = f", at {tuple(rest)}" if rest else ""
        raise DataError(f"{named}: row {first + row}{place} is not a finite number: expected none that is missing")


@dataclass(frozen=True)
class ArraySource:
    """The sets of a source of arrays; no test set if it has none."""

    train: ArraySet
    test: ArraySet | None
    #: Classes that there are at least.
    classes: int = 0


@contextmanager
def open_arrays(source: str, labels: Path | None) -> Iterator[ArraySource]:
    """Open a source of arrays; DataError if it cannot be read, or is damaged as far as it is read in the context."""
    with ExitStack() as stack:
        path = Path(source)
        try:
            if source == "mnist":
                folder = stack.enter_context(as_file(files("lockstep.common.data") / "mnist"))
                yield _idx_folder(stack, folder)
            elif path.suffix == ".npz":
                yield _npz(stack, path)
            elif path.suffix == ".npy":
                if labels is None:
                    raise DataError(f"{path}: has samples alone: expected --labels FILE.npy with a label for each")
                yield ArraySource(ArraySet(_npy(stack, path), _npy(stack, labels)), None)
            elif (path / f"{TRAIN[0]}.npy").is_file():
                yield _npy_folder(stack, path)
            else:
                yield _idx_folder(stack, path)
        except (ValueError, struct.error, EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = one_line(str(error))
            raise DataError(f"{path}: damaged ({reason}): expected a whole file; write it again") from None


def is_array_source(source: str) -> bool:
    """Tell whether a source is one of arrays."""
    path = Path(source)
    is_idx = any((path / name).is_file() or (path / f"{name}.gz").is_file() for name in IDX_TRAIN)
    return source == "mnist" or path.suffix in (".npz", ".npy") or (path / f"{TRAIN[0]}.npy").is_file() or is_idx


def _npz(stack: ExitStack, path: Path) -> ArraySource:
    archive = stack.enter_context(open_archive(path, MAX_FILE_BYTES))
    there = {name.removesuffix(".npy") for name in archive.namelist()}

    def reader(name: str) -> RowReader:
        stream, header = stack.enter_context(open_array(archive, path, name, MAX_FILE_BYTES))
        return RowReader(f"{path}: {name!r}", header, stream)

    train = TRAIN if TRAIN[0] in there or "x" not in there else ("x", "y")
    test = ArraySet(*map(reader, TEST)) if there.intersection(TEST) else None
    return ArraySource(ArraySet(*map(reader, train)), test)


def _npy_folder(stack: ExitStack, folder: Path) -> ArraySource:
    sets = [
        ArraySet(*(_npy(stack, folder / f"{name}.npy") for name in names))
        for names in (TRAIN, TEST)
        if names is TRAIN or (folder / f"{names[0]}.npy").is_file()
    ]
    return ArraySource(sets[0], sets[1] if len(sets) > 1 else None)


def _npy(stack: ExitStack, path: Path) -> RowReader:
    file = _opened(stack, path)
    header = read_header(file, str(path), MAX_FILE_BYTES)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if header.data_bytes != left:
        what = "shorter" if left < header.data_bytes else "longer"
        raise DataError(
            f"{path}: {what} than its header says: {left} bytes of data, expected {header.data_bytes}; write it again"
        )
    return RowReader(str(path), header, file)


def _opened(stack: ExitStack, path: Path) -> io.BufferedReader:
    try:
        return stack.enter_context(open_regular(path, MAX_FILE_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): expected a file") from None


def _idx_folder(stack: ExitStack, folder: Path) -> ArraySource:
    train, test = (
        ArraySet(_idx(stack, folder, names[0], 3), _idx(stack, folder, names[1], 1)) for names in (IDX_TRAIN, IDX_TEST)
    )
    return ArraySource(train, test, IDX_CLASSES)


def _idx(stack: ExitStack, folder: Path, name: str, dimensions: int) -> RowReader:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name}: missing: expected this IDX file, or the same with .gz")
    file = _opened(stack, path)
    is_packed = file.peek(2)[:2] == _GZIP
    stream: io.BufferedIOBase = stack.enter_context(closing(gzip.GzipFile(fileobj=file))) if is_packed else file
    magic, expected = stream.read(4), bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise DataError(f"{path}: starts with {magic.hex()!r}: expected {expected.hex()!r}, an IDX file of bytes")
    shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
    return RowReader(str(path), NpyHeader(shape, np.dtype(np.uint8)), stream)
