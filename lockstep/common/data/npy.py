"""The header of an .npy file, read and written; it knows nothing of what the array means.

`numpy.load` allocates what a header claims before it reads the data, and parses the header as Python; this takes of it
three things only, and reads no pickles. The format: numpy.lib.format (NEP 1).
"""

import math
import re
import struct
from typing import Any, Protocol

import msgspec
import numpy as np

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line

#: Most bytes of an array that is read into memory: forty times MNIST's training images.
MAX_BYTES = 2 * 1024**3
#: Bytes of an array's header: NumPy reads no longer ones either.
MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 32

#: Bytes before the data of a file that is written here: a page, so that mapped samples begin where pages do.
DATA_OFFSET = 4096

_MAGIC = b"\x93NUMPY"
#: By version, the length of an array's header.
_LENGTHS = {b"\x01\x00": struct.Struct("<H"), b"\x02\x00": struct.Struct("<I")}
#: One key of a header, which is a dict of Python as text, with its value: of simple arrays they are no more than these.
_PAIR = re.compile(r"""\s*'(descr|fortran_order|shape)'\s*:\s*('[^']{0,40}'|True|False|\([0-9, ]*\))\s*,?""", re.ASCII)
_SIZES = re.compile(r"\((?:|(?:[0-9]{1,19}, ?)+(?:[0-9]{1,19})?)\)", re.ASCII)
_PLAIN_DTYPE = re.compile(r"'[<>|=]?[biuf][0-9]{1,2}'", re.ASCII)


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
    magic, version = stream.read(len(_MAGIC)), stream.read(2)
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic!r}, and not with {_MAGIC!r}")
    if version not in _LENGTHS:
        raise DataError(f"{named} is of .npy version {tuple(version)!r}: expected (1, 0) or (2, 0)")
    (length,) = _LENGTHS[version].unpack(stream.read(_LENGTHS[version].size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, above {MAX_HEADER_BYTES}")
    text = stream.read(length).decode("ascii")
    pairs = _pairs(text)
    descr, order, sizes = (pairs.get(key, "") for key in ("descr", "fortran_order", "shape"))
    if not _PLAIN_DTYPE.fullmatch(descr) or order not in ("True", "False") or not _SIZES.fullmatch(sizes):
        advice = "; number classes from 0, as numpy.unique(labels, return_inverse=True) does" if "U" in descr else ""
        raise DataError(f"{named} has the header {one_line(text.strip(), 120)!r}: expected plain numbers{advice}")
    shape = tuple(int(size) for size in re.findall("[0-9]+", sizes))
    # Sizes next to a 0 count as well: NumPy has no array of them.
    if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > most_values:
        raise ValueError(f"it claims the shape {sizes}")
    return NpyHeader(shape, _dtype(descr.strip("'")), order == "True")


def header_bytes(header: NpyHeader) -> bytes:
    """Return a header in C order, of the same length for any shape, so that it may be written before this is known."""
    text = f"{{'descr': '{header.dtype.str}', 'fortran_order': False, 'shape': {header.shape}, }}"
    length = DATA_OFFSET - len(_MAGIC) - 4
    return _MAGIC + b"\x01\x00" + struct.pack("<H", length) + f"{text:<{length - 1}}\n".encode("ascii")


def _pairs(text: str) -> dict[str, str]:
    """Return the keys of a header with their values as text; none if there is anything else."""
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
