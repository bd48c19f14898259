"""Reads and writes safetensors files, strictly; knows no models, layouts or runs.

The format (https://github.com/huggingface/safetensors): the header's length as a little-endian uint64, a JSON object
{name: {dtype, shape, data_offsets}} with text under "__metadata__", and the arrays' bytes without gap or overlap. Every
claim of a header is checked against the file's size before anything is allocated for it.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line

#: Bytes of a file: the most that a vector of weights with its optimizer state may have.
MAX_FILE_BYTES = 2**36
#: The format allows 100 MB; ten thousand arrays need one. A parsed header may take fifty times as much.
MAX_HEADER_BYTES = 2**20
MAX_NAME_CHARACTERS = 1024
MAX_DIMENSIONS = 32

_METADATA = "__metadata__"
_EXPECTED = "expected one JSON object, each key once"
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _DTYPES.items()}

#: A type that NumPy lacks, read as float32: the upper halves of such numbers. Many pretrained weights are.
_BFLOAT16 = "BF16"
_READ: dict[str, np.dtype[Any]] = {**_DTYPES, _BFLOAT16: np.dtype("<u2")}

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header's entry of one array; offsets are bytes from the end of the header."""

    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[_Count, _Count]


def write(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Replace a file by one with these arrays and texts, atomically. Raises as `parts_of` does, and OSError."""
    write_atomically(path, parts_of(tensors, metadata))


def parts_of(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """Return the bytes of a file with these arrays and texts: the header's length, the header, the arrays one by one.

    Wide dtypes come first, so that all arrays are aligned, and otherwise the order is the mapping's. Raises ValueError
    for a name or dtype that the format does not have.
    """
    arrays = {name: np.ascontiguousarray(tensors[name], dtype=_stored(name, tensors[name])) for name in tensors}
    ordered = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in ordered:
        array, end = arrays[name], offset + arrays[name].nbytes
        # The shape as given: ascontiguousarray makes one dimension of none.
        shape = list(np.shape(tensors[name]))
        header[name] = {"dtype": _NAMES[array.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes: expected at most {MAX_HEADER_BYTES}; write fewer arrays")
    return [_LENGTH.pack(len(text)), text, *(arrays[name].data for name in ordered)]


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays in the order of their bytes, which they share and which may be written to, and the metadata.

    Those of bfloat16 are copies, as float32.

    Raises FileFormatError if the file cannot be read or is not one that `write` or another strict writer made.
    """
    try:
        with open_regular(path, MAX_FILE_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            entries, metadata = _read_header(path, file, size)
            data = np.empty(size - file.tell(), dtype=np.uint8)
            _check_layout(path, entries, data.size)
            if file.readinto(data.data) < data.size:
                raise FileFormatError(f"{path}: became shorter while it was read; expected {size} bytes")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}): expected a safetensors file") from None
    ordered = sorted(entries, key=lambda name: entries[name].data_offsets)
    return {name: _array(path, name, entries[name], data) for name in ordered}, metadata


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, _Entry], dict[str, str]]:
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise FileFormatError(f"{path}: {size} bytes: expected at least {_LENGTH.size}, the length of a header")
    (length,) = _LENGTH.unpack(prefix)
    if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
        raise FileFormatError(
            f"{path}: claims a header of {length} bytes in a file of {size}: expected at most {MAX_HEADER_BYTES} and "
            "within the file; it is truncated or of another format"
        )
    text = file.read(length)
    header = _parse(path, text)
    try:
        metadata = msgspec.json.decode(header.pop(_METADATA, b"{}"), type=dict[str, str])
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: {_METADATA!r} of the header: expected texts with their names ({one_line(str(error))})"
        ) from None
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    _check_unique_keys(path, text)
    return entries, metadata


def _parse(path: Path, text: bytes) -> dict[str, msgspec.Raw]:
    """Return the values of the header's keys as they are written: nothing is made of them that is not asked for."""
    if not text.startswith(b"{"):
        raise FileFormatError(f"{path}: header: starts with {text[:1]!r}: {_EXPECTED}")
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: header: cannot be parsed: {_EXPECTED} ({one_line(str(error))})") from None


def _check_unique_keys(path: Path, text: bytes) -> None:
    """Raise FileFormatError if a key occurs twice in a header or in an object within it."""
    try:
        json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise FileFormatError(f"{path}: header: {error}: {_EXPECTED}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"key {name[:80]!r} appears twice")
        unique[name] = value
    return unique


def _entry(path: Path, name: str, value: msgspec.Raw) -> _Entry:
    try:
        _check_name(name)
    except ValueError as error:
        raise FileFormatError(f"{path}: header: {error}") from None
    try:
        entry = msgspec.json.decode(value, type=_Entry)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: header of {name[:80]!r}: expected dtype, shape (at most {MAX_DIMENSIONS} sizes), data_offsets of "
            f"two bytes ({one_line(str(error))})"
        ) from None
    if entry.dtype not in _READ:
        raise FileFormatError(f"{path}: {name!r} has dtype {entry.dtype[:80]!r}: expected one of {', '.join(_READ)}")
    # NumPy has no array of such sizes, even where one of them is 0 and so nothing is stored.
    if 0 in entry.shape and math.prod(filter(None, entry.shape)) > MAX_FILE_BYTES:
        raise FileFormatError(f"{path}: {name!r} has shape {list(entry.shape)}: expected one that an array may have")
    begin, end = entry.data_offsets
    needed = math.prod(entry.shape) * _READ[entry.dtype].itemsize
    if end - begin != needed:
        raise FileFormatError(
            f"{path}: {name!r} lies at {begin} to {end}: expected {needed} bytes for {entry.dtype} of shape "
            f"{list(entry.shape)}"
        )
    return entry


def _check_layout(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """Demand that the arrays cover the `size` bytes of data, each byte once."""
    covered = 0
    for name in sorted(entries, key=lambda name: entries[name].data_offsets):
        begin, end = entries[name].data_offsets
        if begin != covered:
            what = "overlaps the one before it" if begin < covered else "leaves a gap"
            raise FileFormatError(f"{path}: {name!r} begins at byte {begin} and {what}: expected {covered}")
        covered = end
    if covered != size:
        what = "truncated" if covered > size else "too long"
        raise FileFormatError(f"{path}: {what}: {size} bytes of data: expected {covered}, as in its header")


def _array(path: Path, name: str, entry: _Entry, data: NDArray[np.uint8]) -> NDArray[Any]:
    begin, end = entry.data_offsets
    stored = data[begin:end]
    if entry.dtype == "BOOL" and stored.max(initial=0) > 1:
        raise FileFormatError(f"{path}: {name!r} holds the byte {int(stored.max())}: expected 0 or 1, as it is BOOL")
    # Another writer may have put it where such numbers must not lie.
    array = np.require(stored.view(_READ[entry.dtype]).reshape(entry.shape), requirements="A")
    if entry.dtype != _BFLOAT16:
        return array
    wide = array.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _stored(name: str, array: NDArray[Any]) -> np.dtype[Any]:
    _check_name(name)
    dtype = np.asarray(array).dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise ValueError(f"{name!r} has dtype {str(dtype)!r}: expected one of {', '.join(map(str, _NAMES))}")
    return dtype


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or name == _METADATA:
        raise ValueError(
            f"a name of {len(name)} characters, {name[:80]!r}: expected 1 to {MAX_NAME_CHARACTERS} printable ones, and "
            f"not {_METADATA!r}"
        )
