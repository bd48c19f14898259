"""The header of an .npy file, read and compared with limits; it knows nothing of what the array means.

`numpy.load` allocates what a header claims before it reads the data, and takes seconds for some damaged headers, which
it parses a second time; this reads no pickles. The format: numpy.lib.format (NEP 1).
"""

import ast
import math
import re
import struct
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.lib import format as npy

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line

#: Most bytes of an array that is read into memory: forty times MNIST's training images.
MAX_BYTES = 2 * 1024**3
#: Bytes of an array's header: NumPy reads no longer ones either.
MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 32

#: Bytes before the data of a file that is written here: a page, so that mapped samples begin where pages do.
DATA_OFFSET = 4096

#: By version, the length of an array's header.
_LENGTHS = {(1, 0): struct.Struct("<H"), (2, 0): struct.Struct("<I")}
#: A type of plain numbers.
_PLAIN = re.compile(r"[<>|=]?[biuf][0-9]{1,2}", re.ASCII)


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header, which is a dict of Python as text."""

    descr: str | list[Any]
    fortran_order: bool
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]


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

    Raises DataError, which begins with `named`, for arrays of other values, and ValueError or struct.error if it is
    damaged or claims more than so many values.
    """
    source: Any = stream
    version = npy.read_magic(source)
    if version not in _LENGTHS:
        raise DataError(f"{named} is of .npy version {version!r}: expected (1, 0) or (2, 0)")
    (length,) = _LENGTHS[version].unpack(stream.read(_LENGTHS[version].size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, above {MAX_HEADER_BYTES}")
    try:
        claims = msgspec.convert(ast.literal_eval(stream.read(length).decode("ascii").strip()), _Claims)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header is not one of NumPy: {one_line(str(error), 120)}") from None
    dtype = _dtype(claims.descr)
    if dtype is None:
        advice = "; number classes from 0, as numpy.unique(labels, return_inverse=True) does" * ("U" in claims.descr)
        described = one_line(str(claims.descr), 120)
        raise DataError(f"{named} has values of type {described!r}: expected plain numbers{advice}")
    # Sizes next to a 0 count as well: NumPy has no array of them.
    if math.prod(size or 1 for size in claims.shape) > most_values:
        raise ValueError(f"it claims the shape {one_line(str(claims.shape), 120)}")
    return NpyHeader(claims.shape, dtype, claims.fortran_order)


def _dtype(descr: str | list[Any]) -> np.dtype[Any] | None:
    """Return the type of plain numbers, None if it is another, or is not known."""
    try:
        return np.dtype(descr) if isinstance(descr, str) and _PLAIN.fullmatch(descr) else None
    except TypeError:
        return None


def header_bytes(header: NpyHeader) -> bytes:
    """Return a header in C order, of the same length for any shape, so that it may be written before this is known."""
    text = f"{{'descr': '{header.dtype.str}', 'fortran_order': False, 'shape': {header.shape}, }}"
    length = DATA_OFFSET - npy.MAGIC_LEN - 2
    return npy.magic(1, 0) + struct.pack("<H", length) + f"{text:<{length - 1}}\n".encode("ascii")
