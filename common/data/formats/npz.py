"""Reads arrays by name from an .npz file, which is a zip of .npy files; it knows nothing of what they mean.

`numpy.load` allocates what an array's header claims before it reads the data, and parses that header as Python; this
checks the claim first, takes of the header three things only, and reads no pickles. Nor is an archive believed: its
directory is bounded, since `zipfile` makes an object of each line, and members unpack to what they claim at most. The
formats: numpy.lib.format (NEP 1) and PKWARE's APPNOTE.
"""

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from common.data.formats.idx import DEFLATE_RATIO, MAX_BYTES
from common.errors import DataError
from common.files.reading import open_regular
from common.files.sanitize import one_line

#: Bytes of an archive's directory: some thousand arrays.
MAX_DIRECTORY_BYTES = 2**17
#: Bytes of an array's header: NumPy reads no longer ones either.
MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 32

_MAGIC = b"\x93NUMPY"
#: What NumPy compresses with: `zipfile` unpacks others without a bound.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: By version, the length of an array's header.
_LENGTHS = {b"\x01\x00": struct.Struct("<H"), b"\x02\x00": struct.Struct("<I")}
#: One key of a header, which is a dict of Python as text, with its value: of simple arrays they are no more than these.
_PAIR = re.compile(r"""\s*'(descr|fortran_order|shape)'\s*:\s*('[^']{0,40}'|True|False|\([0-9, ]*\))\s*,?""", re.ASCII)
_SIZES = re.compile(r"\((?:|(?:[0-9]{1,19}, ?)+(?:[0-9]{1,19})?)\)", re.ASCII)
_PLAIN_DTYPE = re.compile(r"'[<>|=]?[biuf][0-9]{1,2}'", re.ASCII)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called `names`; nothing else in the file is read.

    Raises DataError if the file cannot be read, an array is missing, of a kind that needs pickle, or damaged.
    """
    try:
        with _Bounded(open_regular(path, MAX_BYTES).detach()) as file, zipfile.ZipFile(file) as archive:
            file.most = os.fstat(file.fileno()).st_size
            return {name: _read_array(archive, path, name) for name in names}
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
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        there = ", ".join(sorted(other.removesuffix(".npy") for other in archive.namelist())[:10]) or "nothing"
        raise DataError(
            f"{path}: no array {name!r}: expected it next to the others; it has {one_line(there)}"
        ) from None
    if entry.compress_type not in _METHODS:
        raise DataError(f"{path}: {name!r} is packed by method {entry.compress_type}: expected deflate, as by NumPy")
    if entry.file_size > min(MAX_BYTES, entry.compress_size * DEFLATE_RATIO):
        raise DataError(f"{path}: {name!r} claims {entry.file_size} bytes: expected at most {MAX_BYTES}, and as packed")
    with archive.open(entry) as stream:
        shape, is_fortran, dtype = _read_header(stream, path, name)
        length, left = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
        if length != left:
            raise DataError(f"{path}: the header of {name!r} claims {length} bytes of data: expected {left}, as stored")
        # Not all that is there, since that may be more than is claimed.
        values = np.frombuffer(stream.read(length), dtype=dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_header(stream: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    magic, version = stream.read(len(_MAGIC)), stream.read(2)
    if magic != _MAGIC:
        raise ValueError(f"{name!r} begins with {magic!r}, and not with {_MAGIC!r}")
    if version not in _LENGTHS:
        raise DataError(f"{path}: {name!r} is of .npy version {tuple(version)!r}: expected (1, 0) or (2, 0)")
    (length,) = _LENGTHS[version].unpack(stream.read(_LENGTHS[version].size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"{name!r} has a header of {length} bytes, above {MAX_HEADER_BYTES}")
    text = stream.read(length).decode("ascii")
    pairs = _pairs(text)
    descr, order, sizes = (pairs.get(key, "") for key in ("descr", "fortran_order", "shape"))
    if not _PLAIN_DTYPE.fullmatch(descr) or order not in ("True", "False") or not _SIZES.fullmatch(sizes):
        raise DataError(f"{path}: {name!r} has the header {one_line(text.strip(), 120)!r}: expected plain numbers")
    shape = tuple(int(size) for size in re.findall("[0-9]+", sizes))
    # Sizes next to a 0 count as well: NumPy has no array of them.
    if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_BYTES:
        raise ValueError(f"{name!r} claims the shape {sizes}")
    return shape, order == "True", _dtype(descr.strip("'"))


def _pairs(text: str) -> dict[str, str]:
    """Return the keys of a header with their values as text, none of what is not just that."""
    body, at, pairs = text.strip(" \n"), 1, dict[str, str]()
    while (found := _PAIR.match(body, at)) is not None:
        key, value = found.groups()
        if key in pairs:
            return {}
        pairs[key], at = value, found.end()
    return pairs if body.startswith("{") and body[at:].strip() == "}" else {}


def _dtype(descr: str) -> np.dtype[Any]:
    try:
        return np.dtype(descr)
    except TypeError:
        raise ValueError(f"no dtype {descr!r}") from None
