"""Reads arrays by name from an .npz file, which is a zip of .npy files; it knows nothing of what they mean.

`numpy.load` allocates what an array's header claims before it looks at the data; this checks the claim first, and
reads no pickles. The formats: numpy.lib.format (NEP 1) and PKWARE's APPNOTE.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from common.data.idx import DEFLATE_RATIO, MAX_BYTES
from common.errors import DataError


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called `names`; what else is in the file is not looked at.

    Raises DataError where the file cannot be read, an array is missing, of a kind that needs pickle, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _read_array(archive, path, name) for name in names}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): expected an .npz file") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"{path}: damaged ({error}): expected an .npz file as numpy.savez writes it") from None
    except zlib.error as error:
        raise DataError(f"{path}: damaged ({error}): expected an .npz file; write it again") from None


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        there = ", ".join(sorted(other.removesuffix(".npy") for other in archive.namelist())[:10]) or "nothing"
        raise DataError(f"{path}: no array {name!r}: expected it beside the others; it has {there}") from None
    if entry.file_size > min(MAX_BYTES, entry.compress_size * DEFLATE_RATIO):
        raise DataError(f"{path}: {name!r} claims {entry.file_size} bytes: expected at most {MAX_BYTES}, and as packed")
    with archive.open(entry) as stream:
        shape, is_fortran, dtype = _read_header(stream, path, name)
        length = math.prod(shape) * dtype.itemsize
        left = entry.file_size - stream.tell()
        if length != left:
            raise DataError(f"{path}: the header of {name!r} claims {length} bytes of data: expected {left}, as stored")
        values = np.frombuffer(stream.read(), dtype=dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_header(stream: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"{path}: {name!r} is of .npy version {version!r}: expected (1, 0) or (2, 0)")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise DataError(f"{path}: {name!r} is of dtype {str(dtype)!r} and shape {shape!r}: expected plain numbers")
    return shape, is_fortran, dtype
