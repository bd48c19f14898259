"""Reads the arrays of .npy, .npz and IDX files, whole or some rows at a time; knows nothing of what they mean.

IDX is the format in which MNIST is published (http://yann.lecun.com/exdb/mnist): two zero bytes, a type code, the
number of dimensions, each dimension as a big-endian uint32, and the values in row-major order. An .npz is a zip of .npy
files (PKWARE's APPNOTE). No file is trusted: what a header claims is compared with what the file can hold before a byte
is allocated for it, and nothing unpacks to more than is claimed.
"""

import gzip
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.npy import MAX_BYTES, ByteStream, NpyHeader, read_header
from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line

#: Deflate codes at most 258 bytes in two bits (RFC 1951), so nothing unpacks to more than this many times itself.
DEFLATE_RATIO = 1032
#: Bytes of an archive's directory: some thousand arrays. `zipfile` makes an object of each of its lines.
MAX_DIRECTORY_BYTES = 2**17

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
#: The compression of NumPy: `zipfile` unpacks others without a bound.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Bytes that are unpacked at once.
_PIECE_BYTES = 2**23


@dataclass
class ArrayReader:
    """The rows of one array, in order."""

    #: The file and, in an archive, the array.
    named: str
    #: The kind of the file, for errors.
    kind: str
    header: NpyHeader
    stream: ByteStream
    rows_read: int = 0

    def read(self, rows: int) -> NDArray[Any]:
        """Return the next rows, fewer at the end; DataError if the file is damaged or shorter than its header says."""
        header = self.header
        array = np.empty((min(rows, header.shape[0] - self.rows_read), *header.shape[1:]), header.dtype)
        self._fill(array)
        self.rows_read += len(array)
        return array

    def read_whole(self) -> NDArray[Any]:
        """Return the whole array, read-only; DataError also if something follows what the header claims."""
        # Not as a view of the bytes that were read: NumPy asks for large pages. A batch's rows are all over the array,
        # and 128 of MNIST are then gathered in 12.7 instead of 15.9 us.
        array = np.empty(self.header.shape, self.header.dtype, order="F" if self.header.is_fortran else "C")
        self._fill(array.T if self.header.is_fortran else array)
        self.check_end()
        array.flags.writeable = False
        return array

    def _fill(self, array: NDArray[Any]) -> None:
        view, done = array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b""), 0
        while done < len(view):
            with _damage_named(self.named, self.kind):
                piece = self.stream.read(min(_PIECE_BYTES, len(view) - done))
            if not piece:
                before = self.rows_read * math.prod(self.header.shape[1:]) * self.header.dtype.itemsize
                raise _length_error(self.named, self.header, "shorter", str(before + done))
            view[done : done + len(piece)] = piece
            done += len(piece)

    def check_end(self) -> None:
        """Raise DataError if something follows what the header claims."""
        with _damage_named(self.named, self.kind):
            is_longer = bool(self.stream.read(1))
        if is_longer:
            raise _length_error(self.named, self.header, "longer", f"more than {self.header.data_bytes}")


@contextmanager
def open_npy(path: Path, most_bytes: int = MAX_BYTES) -> Iterator[ArrayReader]:
    """Open an .npy file with at most so many bytes of data; DataError if it is another, or cannot be read."""
    with _damage_named(path, "an .npy file"):
        file = open_regular(path, most_bytes)
    with file:
        with _damage_named(path, "an .npy file"):
            header = read_header(file, str(path), most_bytes)
        _check_length(str(path), header, os.fstat(file.fileno()).st_size - file.tell())
        yield ArrayReader(str(path), "an .npy file", header, file)


@contextmanager
def open_idx(path: Path, dimensions: int, most_bytes: int = MAX_BYTES) -> Iterator[ArrayReader]:
    """Open an IDX file of bytes in so many dimensions, plain or gzipped; DataError as `open_npy`."""
    with _damage_named(path, "an IDX file"):
        file = open_regular(path, most_bytes)
    with file:
        size, is_packed = os.fstat(file.fileno()).st_size, file.peek(2)[:2] == _GZIP_MAGIC
        stream: ByteStream = gzip.GzipFile(fileobj=file) if is_packed else file
        with _damage_named(path, "an IDX file"):
            header = _idx_header(path, stream, dimensions, most_bytes)
        if is_packed and header.data_bytes > size * DEFLATE_RATIO:
            raise _length_error(str(path), header, "shorter", f"at most {size * DEFLATE_RATIO}")
        if not is_packed:
            _check_length(str(path), header, size - file.tell())
        yield ArrayReader(str(path), "an IDX file", header, stream)


def _idx_header(path: Path, stream: ByteStream, dimensions: int, most_bytes: int) -> NpyHeader:
    magic, expected = stream.read(4), bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise DataError(
            f"{path}: starts with {magic.hex()!r}: expected {expected.hex()!r}, which marks an IDX file of unsigned "
            f"bytes in {dimensions} dimensions"
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: ends within its header: expected {dimensions} dimensions of 4 bytes each")
    header = NpyHeader(struct.unpack(f">{dimensions}I", sizes), np.dtype(np.uint8))
    # Sizes next to a 0 count as well: NumPy has no array of them.
    if math.prod(size or 1 for size in header.shape) > most_bytes:
        raise DataError(
            f"{path}: its header claims {' x '.join(map(str, header.shape))} values: expected at most {most_bytes}"
        )
    return header


@contextmanager
def open_npz(path: Path, most_bytes: int = MAX_BYTES) -> Iterator["NpzArchive"]:
    """Open an .npz file of at most so many bytes; DataError if it is another, or cannot be read."""
    with _damage_named(path, "an .npz file"):
        file = _Bounded(open_regular(path, most_bytes).detach())
    with file, ExitStack() as stack:
        with _damage_named(path, "an .npz file"):
            archive = stack.enter_context(zipfile.ZipFile(file))
        file.most = os.fstat(file.fileno()).st_size
        yield NpzArchive(path, archive, stack, most_bytes)


class _Bounded(io.BufferedReader):
    """A file of which no more than `most` bytes can be read at once: so is an archive's directory bounded."""

    most = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        above = self.most + 1
        data = super().read(above if size is None or size < 0 else min(size, above))
        if len(data) == above:
            raise zipfile.BadZipFile(f"a part of more than {self.most} bytes: expected an ordinary archive")
        return data


@dataclass
class NpzArchive:
    """An open .npz file."""

    path: Path
    _archive: zipfile.ZipFile
    #: Closes the streams of its arrays.
    _stack: ExitStack
    _most_bytes: int

    def names(self) -> set[str]:
        return {name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")}

    def array(self, name: str) -> ArrayReader:
        """Open an array; DataError if it is missing, of a kind that needs pickle, or damaged."""
        named = f"{self.path}: {name!r}"
        with _damage_named(named, "an .npz file"):
            entry = self._entry(named, name)
            stream = self._stack.enter_context(self._archive.open(entry))
            header = read_header(stream, named, self._most_bytes)
            _check_length(named, header, entry.file_size - stream.tell())
        return ArrayReader(named, "an .npz file", header, stream)

    def _entry(self, named: str, name: str) -> zipfile.ZipInfo:
        if name not in self.names():
            there = ", ".join(sorted(self.names())[:10]) or "nothing"
            raise DataError(f"{self.path}: no array {name!r}: expected it next to the others; it has {one_line(there)}")
        entry = self._archive.getinfo(f"{name}.npy")
        if entry.compress_type not in _METHODS:
            raise DataError(f"{named} is packed by method {entry.compress_type}: expected deflate, as NumPy uses")
        if entry.file_size > min(self._most_bytes, entry.compress_size * DEFLATE_RATIO):
            raise DataError(
                f"{named} claims {entry.file_size} bytes: expected at most {self._most_bytes}, and as packed"
            )
        return entry


def _check_length(named: str, header: NpyHeader, found: int) -> None:
    """Raise DataError if a file has not as many bytes of data as its header claims."""
    if found != header.data_bytes:
        raise _length_error(named, header, "shorter" if found < header.data_bytes else "longer", str(found))


def _length_error(named: str, header: NpyHeader, what: str, found: str) -> DataError:
    return DataError(
        f"{named}: {what} than its header says: {found} bytes of data, expected {header.data_bytes}; write it again"
    )


@contextmanager
def _damage_named(named: object, kind: str) -> Iterator[None]:
    """Raise DataError in place of what the standard library raises for a file that is damaged or cannot be read."""
    try:
        yield
    except (
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise DataError(f"{named}: damaged ({one_line(str(error))}): expected {kind}; write it again") from None
    except OSError as error:
        raise DataError(f"{named}: cannot be read ({error.strerror or error}): expected {kind}") from None
