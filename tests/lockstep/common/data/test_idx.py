"""The IDX reader returns what was written and names what is wrong with everything else."""

import errno
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lockstep.common.data.array_files import open_idx
from lockstep.common.data.npy import MAX_BYTES
from lockstep.common.errors import DataError


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    with open_idx(path, dimensions) as reader:
        return reader.read_whole()


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """Return `array` as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some-idx-ubyte"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_what_is_written_is_read(
    pack: type[bytes], array: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(pack(idx_bytes(array)))
    read = read_idx(path, dimensions=array.ndim)
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape
    assert not read.flags.writeable


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"", "starts with ''"),
        (b"GIF89a", "starts with '47494638': expected '00000803'"),
        (bytes([0, 0, 8, 1]) + bytes(4), "starts with '00000801': expected '00000803'"),
        (bytes([0, 0, 13, 3]) + bytes(12), "starts with '00000d03': expected '00000803'"),
        (header(1, 2, 2)[:11], "ends within its header"),
        (header(2, 2, 2) + bytes(7), "shorter than its header says: 7 bytes of data, expected 8"),
        (header(2, 2, 2) + bytes(9), "longer than its header says"),
        (header(2**32 - 1, 28, 28) + bytes(784), f"claims 4294967295 x 28 x 28 values: expected at most {MAX_BYTES}"),
        (header(2_000_000, 28, 28) + bytes(784), "shorter than its header says"),
    ],
)
def test_damage_is_named(pack: type[bytes], contents: bytes, text: str, file: Path) -> None:
    file.write_bytes(pack(contents))
    with pytest.raises(DataError) as caught:
        read_idx(file, dimensions=3)
    assert str(file) in str(caught.value)
    assert text in str(caught.value)


@given(cut=st.integers(0, 40), flip=st.integers(0, 40))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_damaged_gzip_is_an_error_or_the_same_array(
    cut: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    whole = bytearray(gzip.compress(idx_bytes(array), mtime=0))
    whole[flip % len(whole)] ^= 0xFF
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(whole[: len(whole) - cut])
    try:
        read = read_idx(path, dimensions=3)
    except DataError:
        return
    np.testing.assert_array_equal(read, array)


def test_a_gzip_that_breaks_off_is_named(file: Path) -> None:
    file.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 2, 2), np.uint8)))[:-4])
    with pytest.raises(DataError, match=r"damaged \(.*\): expected"):
        read_idx(file, dimensions=3)


def test_bytes_after_the_gzip_stream_are_named(file: Path) -> None:
    file.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 2, 2), np.uint8))) + b"more")
    with pytest.raises(DataError, match=r"damaged \(.*\): expected"):
        read_idx(file, dimensions=3)


def test_a_gzip_bomb_unpacks_to_no_more_than_its_header_claims(file: Path) -> None:
    # 64 MiB of zeros behind a claim of one byte: the message would come late, and from a big process, if it unpacked.
    file.write_bytes(gzip.compress(header(1, 1, 1) + bytes(64 * 1024**2), compresslevel=1))
    with pytest.raises(DataError, match="longer than its header says: more than 1 bytes"):
        read_idx(file, dimensions=3)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot be read \({os.strerror(errno.ENOENT)}\)"):
        read_idx(tmp_path / "absent", dimensions=1)
    with pytest.raises(DataError, match=rf"cannot be read \({os.strerror(errno.EISDIR)}\)"):
        read_idx(tmp_path, dimensions=1)
