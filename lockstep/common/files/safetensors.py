"""Reads and writes safetensors files, strictly; knows no models, layouts or runs.

The format (https://github.com/huggingface/safetensors): the header's length as a little-endian uint64, a JSON object
{name: {dtype, shape, data_offsets}} with text under "__metadata__", and the arrays' bytes without gap or overlap. Every
claim of a header is compared with the file's size before anything is allocated for it.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import convert, open_regular
from lockstep.common.files.sanitize import one_line

#: Bytes of a file: the most that a vector of weights with its optimizer state may have.
MAX_FILE_BYTES = 2**36
#: The format allows 100 MB; ten thousand arrays need one. A parsed header may take fifty times as much.
MAX_HEADER_BYTES = 2**20

_METADATA = "__metadata__"
_CODES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "BOOL": "?"}
_CODES |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}
_NAMES: dict[np.dtype[Any], str] = {np.dtype(code): name for name, code in _CODES.items()}
#: NumPy lacks bfloat16, in which many pretrained weights are: such numbers are the upper halves of float32.
_READ: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), **{name: dtype for dtype, name in _NAMES.items()}}

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header's entry of one array; offsets are bytes from the end of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


def write(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Replace a file by one with these arrays and texts, atomically. Raises as `parts_of` does, and OSError."""
    write_atomically(path, parts_of(tensors, metadata))


def parts_of(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """Return the bytes of a file with these arrays and texts: the header's length, the header, the arrays one by one.

    Wide dtypes come first, so that all arrays are aligned, otherwise the mapping's order holds. Raises ValueError for a
    name or dtype that the format does not have.
    """
    arrays = {name: np.asarray(each, each.dtype.newbyteorder("<"), order="C") for name, each in tensors.items()}
    ordered = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in ordered:
        _check_name(name)
        if arrays[name].dtype not in _NAMES:
            dtype = str(arrays[name].dtype)
            raise ValueError(f"{name!r} has dtype {dtype!r}: expected one of {', '.join(map(str, _NAMES))}")
        end = offset + arrays[name].nbytes
        header[name] = _Entry(_NAMES[arrays[name].dtype], arrays[name].shape, (offset, end))
        offset = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes: expected at most {MAX_HEADER_BYTES}; write fewer arrays")
    return [len(text).to_bytes(8, "little"), text, *(arrays[name].reshape(-1).data for name in ordered)]


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 1024 or not name.isprintable() or name == _METADATA:
        raise ValueError(f"a name of {len(name)} characters, {name[:80]!r}: expected 1 to 1024 printable ones")


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays in the order of their bytes, which they share and which may be written to, and the metadata.

    Raises FileFormatError if the file cannot be read or is not one that `write` or another strict writer made.
    """
    try:
        with open_regular(path, MAX_FILE_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(
                    f"claims a header of {length} bytes in a file of {size}: expected at most {MAX_HEADER_BYTES} and "
                    "within the file; it is truncated or of another format"
                )
            entries, metadata = _parsed(file.read(length))
            _check_layout(entries, size - 8 - length)
            data = np.fromfile(file, np.uint8, size - 8 - length)
            return {name: _array(name, entry, data) for name, entry in entries.items()}, metadata
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}): expected a safetensors file") from None
    except ValueError as error:
        raise FileFormatError(f"{path}: {one_line(str(error))}") from None


def _parsed(text: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Return the entries of a header in the order of their bytes, and the metadata."""
    try:
        if not text.startswith(b"{"):
            raise ValueError(f"it begins with {text[:1]!r}")
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
        metadata = convert(header.pop(_METADATA, {}), dict[str, str])
        entries = convert(header, dict[str, _Entry])
    except (ValueError, RecursionError) as error:
        expected = "expected one JSON object {name: {dtype, shape, data_offsets}}, each key once"
        raise ValueError(f"its header cannot be read ({error}): {expected}") from None
    return dict(sorted(entries.items(), key=lambda item: item[1].data_offsets)), metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return unique


def _check_layout(entries: Mapping[str, _Entry], size: int) -> None:
    """Demand that arrays, in the order of their bytes, cover the `size` bytes of data, each byte once."""
    covered = 0
    for name, entry in entries.items():
        _check_name(name)
        if entry.dtype not in _READ:
            raise ValueError(f"{name!r} has dtype {entry.dtype[:80]!r}: expected one of {', '.join(_READ)}")
        end = covered + math.prod(entry.shape) * _READ[entry.dtype].itemsize
        if entry.data_offsets != (covered, end):
            raise ValueError(f"{name!r} is at bytes {list(entry.data_offsets)} of the data: expected {[covered, end]}")
        covered = end
    if covered != size:
        raise ValueError(f"{size} bytes of data: expected {covered}, as in its header; it is truncated or damaged")


def _array(name: str, entry: _Entry, data: NDArray[np.uint8]) -> NDArray[Any]:
    begin, end = entry.data_offsets
    stored = data[begin:end]
    if entry.dtype == "BOOL" and stored.max(initial=0) > 1:
        raise ValueError(f"{name!r} has the byte {int(stored.max())}: expected 0 or 1, as it is BOOL")
    # Another writer may have put it where such numbers must not be.
    array = np.require(stored.view(_READ[entry.dtype]).reshape(entry.shape), requirements="A")
    return (array.astype(np.uint32) << 16).view(np.float32) if entry.dtype == "BF16" else array
