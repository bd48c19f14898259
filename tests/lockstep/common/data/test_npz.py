"""The .npz reader returns what numpy.savez wrote, allocates nothing on a header's word, and runs no pickle."""

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy
from numpy.typing import NDArray

from lockstep.common.data.array_files import read_npz
from lockstep.common.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.npz"


def npy_file(header: dict[str, Any], data: bytes) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


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
def test_what_is_saved_is_read(save: Any, array: NDArray[Any], file: Path) -> None:
    save(file, a=array, other=np.ones(2))
    read = read_npz(file, ["a"])["a"]
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


def test_a_missing_array_is_named_with_those_there(file: Path) -> None:
    np.savez(file, x=np.ones(1), y=np.ones(1))
    with pytest.raises(DataError, match="no array 'x_train': expected it next to the others; it has x, y"):
        read_npz(file, ["x_train"])


def test_a_member_that_is_no_array_is_none_of_them(file: Path) -> None:
    np.savez(file, x=np.ones(1))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("y", b"no array")
    with pytest.raises(DataError, match=r"no array 'y': expected it next to the others; it has x$"):
        read_npz(file, ["y"])


def test_objects_are_refused_and_not_unpickled(file: Path) -> None:
    np.savez(file, a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"'a' has values of type 'object': expected plain numbers"):
        read_npz(file, ["a"])


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (npy_file({"descr": "<f4", "fortran_order": False, "shape": (10**9,)}, bytes(8)), "data, expected 4000000000"),
        (
            npy_file({"descr": "<f4", "fortran_order": False, "shape": (2,)}, bytes(9)),
            "longer than its header says: 9 bytes",
        ),
        (npy_file({"descr": "<f4", "fortran_order": False, "shape": (-2,)}, bytes(8)), "claims the shape"),
        (b"no numpy", "damaged"),
        (b"\x93NUMPY\x03\x00" + bytes(8), "version"),
    ],
)
def test_damage_is_named(entry: bytes, text: str, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", entry)
    with pytest.raises(DataError, match=text) as caught:
        read_npz(file, ["a"])
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_zip_is_named(file: Path) -> None:
    file.write_bytes(b"no zip at all")
    with pytest.raises(DataError, match=r"damaged .*expected an \.npz file"):
        read_npz(file, ["a"])


def test_every_truncation_is_an_error(file: Path) -> None:
    np.savez_compressed(file, a=np.arange(20))
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_npz(file, ["a"])


def test_every_flipped_byte_is_an_error_or_harmless(file: Path) -> None:
    array = np.arange(20)
    np.savez_compressed(file, a=array)
    whole = file.read_bytes()
    for index in range(len(whole)):
        file.write_bytes(whole[:index] + bytes([whole[index] ^ 0x55]) + whole[index + 1 :])
        try:
            read = read_npz(file, ["a"])["a"]
        except DataError:
            continue
        np.testing.assert_array_equal(read, array)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot be read .{os.strerror(errno.ENOENT)}"):
        read_npz(tmp_path / "absent.npz", ["a"])
