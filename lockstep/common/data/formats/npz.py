"""Reads arrays by name from an .npz file, which is a zip of .npy files; it knows nothing of what they mean.

An archive is not believed: its directory is bounded, since `zipfile` makes an object of each line, and members unpack
to what they claim at most. The format: PKWARE's APPNOTE.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.formats.idx import DEFLATE_RATIO, MAX_BYTES
from lockstep.common.data.formats.npy import NpyHeader, read_header
from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line

#: Bytes of an archive's directory: some thousand arrays.
MAX_DIRECTORY_BYTES = 2**17
#: What NumPy compresses with: `zipfile` unpacks others without a bound.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called `names`; nothing else in the file is read.

    Raises DataError if the file cannot be read, an array is missing, of a kind that needs pickle, or damaged.
    """
    with open_archive(path, MAX_BYTES) as archive:
        return {name: _read_array(archive, path, name) for name in names}


@contextmanager
def open_archive(path: Path, most_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open an archive of at most so many bytes; what goes wrong in reading it within the context is a DataError."""
    try:
        with _Bounded(open_regular(path, most_bytes).detach()) as file, zipfile.ZipFile(file) as archive:
            file.most = os.fstat(file.fileno()).st_size
            yield archive
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): expected an .npz file") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        reason = one_line(str(error))
        raise DataError(f"{path}: damaged ({reason}): expected an .npz file as numpy.savez writes it") from None
    except zlib.error as error:
        raise DataError(f"{path}: damaged ({error}): expected an .npz file; write it again") from None


class _Bounded(io.BufferedReader):
    """A file of which no more than `most` bytes can be read at once: so is an archive's directory bounded."""

    most = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        above = self.most + 1
        data = super().read(above if size is None or size < 0 else min(size, above))
        if len(data) == above:
            raise zipfile.BadZipFile(f"a part of more than {self.most} bytes: expected an ordinary archive")
        return data


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    with open_array(archive, path, name, MAX_BYTES) as (stream, header):
        # Not all that is there, since that may be more than is claimed.
        values = np.frombuffer(stream.read(header.data_bytes), dtype=header.dtype)
    return values.reshape(header.shape, order="F" if header.is_fortran else "C")


@contextmanager
def open_array(
    archive: zipfile.ZipFile, path: Path, name: str, most_bytes: int
) -> Iterator[tuple[zipfile.ZipExtFile, NpyHeader]]:
    """Open an array of at most so many bytes: a stream that is at its data, and its header."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        there = ", ".join(sorted(other.removesuffix(".npy") for other in archive.namelist())[:10]) or "nothing"
        raise DataError(
            f"{path}: no array {name!r}: expected it next to the others; it has {one_line(there)}"
        ) from None
    if entry.compress_type not in _METHODS:
        raise DataError(f"{path}: {name!r} is packed by method {entry.compress_type}: expected deflate, as NumPy uses")
    if entry.file_size > min(most_bytes, entry.compress_size * DEFLATE_RATIO):
        raise DataError(
            f"{path}: {name!r} claims {entry.file_size} bytes: expected at most {most_bytes}, and as packed"
        )
    with archive.open(entry) as stream:
        assert isinstance(stream, zipfile.ZipExtFile)  # it is opened for reading
        header = read_header(stream, f"{path}: {name!r}", most_bytes)
        left = entry.file_size - stream.tell()
        if header.data_bytes != left:
            raise DataError(
                f"{path}: the header of {name!r} claims {header.data_bytes} bytes of data: expected {left}, as stored"
            )
        yield stream, header
