"""The header of an .npy file, read by NumPy and compared with limits; it knows nothing of what the array means.

`numpy.load` allocates what a header claims before it reads the data; this reads the header alone, and no pickles. The
format: numpy.lib.format (NEP 1).
"""

import math
import struct
import warnings
from tokenize import TokenError
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.lib import format as npy

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line

#: Most bytes of an array that is read into memory: forty times MNIST's training images.
MAX_BYTES = 2 * 1024**3
MAX_DIMENSIONS = 32

#: Bytes before the data of a file that is written here: a page, so that mapped samples begin where pages do.
DATA_OFFSET = 4096

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class ByteStream(Protocol):
    """A source of bytes in order: a file, or one that is unpacked."""

    def read(self, size: int, /) -> bytes: ...


class NpyHeader(msgspec.Struct, frozen=True):
    """The claims of a header about its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool = False

    @property
    def data_bytes(self) -> int:
        """Bytes of the data after the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: ByteStream, named: str, most_values: int = MAX_BYTES) -> NpyHeader:
    """Return the header at the beginning of a stream, which is then at the data.

    Raises DataError, which begins with `named`, for arrays of other values, and ValueError if it is damaged or claims
    more than so many values.
    """
    source: Any = stream
    version = npy.read_magic(source)
    if version not in _READERS:
        raise DataError(f"{named} is of .npy version {version!r}: expected (1, 0) or (2, 0)")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a header as Python 2 wrote it
            shape, is_fortran, dtype = _READERS[version](source)
    except (RecursionError, MemoryError, TypeError, SyntaxError, TokenError) as error:
        raise ValueError(one_line(str(error))) from None
    if dtype.kind not in "biuf":
        advice = "; number classes from 0, as numpy.unique(labels, return_inverse=True) does" * (dtype.kind == "U")
        raise DataError(f"{named} has values of type {one_line(str(dtype), 120)!r}: expected plain numbers{advice}")
    # Sizes next to a 0 count as well: NumPy has no array of them.
    is_odd = any(type(size) is not int or size < 0 for size in shape)
    if is_odd or len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > most_values:
        raise ValueError(f"it claims the shape {one_line(str(shape), 120)}")
    return NpyHeader(shape, dtype, is_fortran)


def header_bytes(header: NpyHeader) -> bytes:
    """Return a header in C order, of the same length for any shape, so that it may be written before this is known."""
    text = f"{{'descr': '{header.dtype.str}', 'fortran_order': False, 'shape': {header.shape}, }}"
    length = DATA_OFFSET - npy.MAGIC_LEN - 2
    return npy.magic(1, 0) + struct.pack("<H", length) + f"{text:<{length - 1}}\n".encode("ascii")
