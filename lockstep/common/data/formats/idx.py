"""Reads IDX, the format MNIST is published in, plain or gzipped; it knows nothing of what the bytes mean.

A file is two zero bytes, a type code, the number of dimensions, each dimension as a big-endian uint32, and the values
in row-major order (http://yann.lecun.com/exdb/mnist). Nothing is believed before it is checked: what a header claims is
compared with what the file can hold before a byte is allocated for it.
"""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import DataError
from lockstep.common.files.reading import read_regular

#: No file may unpack to more: forty times MNIST's training images.
MAX_BYTES = 2 * 1024**3
#: Deflate codes at most 258 bytes in two bits (RFC 1951), so nothing unpacks to more than this many times itself.
DEFLATE_RATIO = 1032

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in the IDX file at `path`, which must have this many dimensions.

    The array is read-only. Raises DataError if the file cannot be
    read, is of another kind, or is longer or shorter than its header says.
    """
    contents = _contents(path)
    stream = _Gzip(path, contents) if contents[:2] == _GZIP_MAGIC else _Plain(contents)
    shape = _shape(path, stream.take(4 + 4 * dimensions), dimensions)
    claimed = math.prod(shape)
    if claimed > stream.most_left:
        raise _truncated(path, shape, "too short to hold them")
    # One more than claimed, so that a longer file shows; and never without a bound, since it may be a gzip bomb.
    values = stream.take(claimed + 1)
    if len(values) > claimed or stream.has_more():
        raise DataError(f"{path}: bytes follow the {_times(shape)} values that its header claims: expected the end")
    if len(values) < claimed:
        raise _truncated(path, shape, f"{len(values)} of these bytes")
    # NumPy asks for large pages, which the bytes as they were read are not in: a batch's rows lie all over the array,
    # and 128 of MNIST are then gathered in 12.7 instead of 15.9 us.
    array = np.empty(shape, np.uint8)
    array.reshape(-1)[:] = np.frombuffer(values, np.uint8)
    array.flags.writeable = False
    return array


class _Plain:
    """The bytes of a file, taken in order."""

    def __init__(self, contents: bytes) -> None:
        self._rest = memoryview(contents)

    @property
    def most_left(self) -> int:
        return len(self._rest)

    def take(self, count: int) -> bytes | memoryview:
        """Return the next `count` bytes, or fewer at the end."""
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def has_more(self) -> bool:
        return bool(self._rest)


class _Gzip:
    """The unpacked bytes of one gzip member, never more than asked for. Zlib checks length and CRC at the end."""

    def __init__(self, path: Path, contents: bytes) -> None:
        self._path = path
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        self._rest = contents
        self._most_left = len(contents) * DEFLATE_RATIO

    @property
    def most_left(self) -> int:
        return self._most_left

    def take(self, count: int) -> bytes:
        """Return the next `count` unpacked bytes, or fewer at the end; raises DataError if they cannot be unpacked."""
        try:
            taken = self._inflate.decompress(self._rest, count)
        except zlib.error as error:
            raise DataError(f"{self._path}: damaged gzip ({error}): expected an IDX file; fetch it again") from None
        self._rest = self._inflate.unconsumed_tail
        if len(taken) < count and not self._inflate.eof:
            raise DataError(f"{self._path}: the gzip stream ends too early: expected a complete file; fetch it again")
        return taken

    def has_more(self) -> bool:
        return bool(self._inflate.unused_data)


def _contents(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): expected an IDX file") from None


def _shape(path: Path, header: bytes | memoryview, dimensions: int) -> tuple[int, ...]:
    magic = bytes(header[:4])
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise DataError(
            f"{path}: starts with {magic.hex()!r}: expected {expected.hex()!r}, which marks an IDX file of unsigned "
            f"bytes in {dimensions} dimensions"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends within its header: expected {dimensions} dimensions of 4 bytes each")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    # Sizes next to a 0 count as well: NumPy has no array of them.
    if math.prod(size or 1 for size in shape) > MAX_BYTES:
        raise DataError(f"{path}: its header claims {_times(shape)} values: expected at most {MAX_BYTES}")
    return shape


def _truncated(path: Path, shape: tuple[int, ...], found: str) -> DataError:
    return DataError(f"{path}: truncated: its header claims {_times(shape)} values, and it is {found}; fetch it again")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
