"""The readers of arrays return what was written, name what is wrong, and allocate nothing on the word of a header.

`tests/fuzz/test_files.py` damages such files in every way.
"""

import errno
import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy
from numpy.typing import NDArray

from lockstep.common.data.array_files import open_idx, open_npz
from lockstep.common.data.npy import MAX_BYTES
from lockstep.common.errors import DataError


def read_idx(path: Path, dimensions: int = 3) -> NDArray[np.uint8]:
    with open_idx(path, dimensions) as reader:
        return reader.read_whole()


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """Return an array as an IDX file."""
    return header(*array.shape) + array.tobytes()


def header(*shape: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def npy_of(data: bytes, *shape: int) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def npz_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.file"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_an_idx_file_is_read_as_it_was_written(
    pack: type[bytes], array: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(pack(idx_bytes(array)))
    read = read_idx(path, dimensions=array.ndim)
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape
    assert not read.flags.writeable


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.zeros((0, 4), dtype=np.float32),
        np.array(7),
    ],
)
def test_an_npz_file_is_read_as_it_was_written(save: Any, array: NDArray[Any], file: Path) -> None:
    with file.open("wb") as stream:
        save(stream, a=array, other=np.ones(2))
    read = read_a(file)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


ZEROS = idx_bytes(np.zeros((3, 2, 2), np.uint8))
#: By what is wrong with an IDX file, its bytes and the text; most are packed by gzip as well.
IDX: list[tuple[bytes, str]] = [
    (b"", "starts with ''"),
    (b"GIF89a", "starts with '47494638': expected '00000803'"),
    (header(0), "starts with '00000801': expected '00000803'"),
    (header(0, 0, 0, kind=13), "starts with '00000d03': expected '00000803'"),
    (header(1, 2, 2)[:11], "ends within its header"),
    (header(2, 2, 2) + bytes(7), "shorter than its header says: 7 bytes of data, expected 8"),
    (header(2, 2, 2) + bytes(9), "longer than its header says"),
    (header(2**32 - 1, 28, 28) + bytes(784), f"claims 4294967295 x 28 x 28 values: expected at most {MAX_BYTES}"),
    (header(2_000_000, 28, 28) + bytes(784), "shorter than its header says"),
]
PACKED: list[tuple[bytes, str]] = [
    *((gzip.compress(content), text) for content, text in IDX),
    (gzip.compress(ZEROS)[:-4], "damaged ("),
    (gzip.compress(ZEROS) + b"more", "damaged ("),
    # The message would come late, from a big process, if it unpacked the 64 MiB of zeros behind a claim of one byte.
    (gzip.compress(header(1, 1, 1) + bytes(2**26), 1), "longer than its header says: more than 1 bytes"),
]
OBJECTS, OTHERS = io.BytesIO(), io.BytesIO()
np.savez(OBJECTS, a=np.array([{"a": 1}], dtype=object))
np.savez(OTHERS, x=np.ones(1), y=np.ones(1))
NPZ: list[tuple[bytes, str]] = [
    (npz_of(a=npy_of(bytes(8), 10**9)), "data, expected 4000000000"),
    (npz_of(a=npy_of(bytes(9), 2)), "longer than its header says: 9 bytes"),
    (npz_of(a=npy_of(bytes(8), -2)), "its header is not one of NumPy"),
    (npz_of(a=b"no numpy"), "damaged"),
    (npz_of(a=b"\x93NUMPY\x03\x00" + bytes(8)), "version"),
    (b"no zip at all", "expected an .npz file"),
    (OBJECTS.getvalue(), "'a' has values of type '|O': expected plain numbers"),
    (OTHERS.getvalue(), "no array 'a': expected it next to the others; it has x, y"),
]


def read_a(path: Path) -> NDArray[Any]:
    with open_npz(path) as archive:
        return archive.array("a").read_whole()


@pytest.mark.parametrize(
    ("read", "content", "text"),
    [*((read_idx, *case) for case in (*IDX, *PACKED)), *((read_a, *case) for case in NPZ)],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_damage_is_named(read: Callable[[Path], object], content: bytes, text: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("read", [read_idx, read_a])
def test_a_missing_file_and_a_folder_are_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    for path, code in ((tmp_path / "absent", errno.ENOENT), (tmp_path, errno.EISDIR)):
        with pytest.raises(DataError, match=rf"cannot be read \({os.strerror(code)}\)"):
            read(path)
