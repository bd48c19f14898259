"""Our reader and writer agree with the package `safetensors`, and refuse what is damaged, saying how."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lockstep.common.errors import FileFormatError
from lockstep.common.files.safetensors import MAX_HEADER_BYTES, read, write

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?"]
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=6,
)
UNREADABLE = "expected one JSON object {name: {dtype, shape, data_offsets}}, each key once"
LAW = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


def assert_same(read_: dict[str, NDArray[Any]], written: dict[str, NDArray[Any]]) -> None:
    assert set(read_) == set(written)
    for name, array in written.items():
        assert (read_[name].dtype, read_[name].shape) == (array.dtype, array.shape)
        assert read_[name].tobytes() == array.tobytes()


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@given(tensors=TENSORS, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
@LAW
def test_what_we_write_both_read(
    tensors: dict[str, NDArray[Any]], metadata: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file"
    write(path, tensors, metadata)
    ours, our_metadata = read(path)
    assert_same(ours, tensors)
    assert our_metadata == metadata
    assert_same(safetensors.numpy.load_file(path), tensors)
    with safetensors.safe_open(path, "np") as opened:
        assert (opened.metadata() or {}) == metadata


@given(tensors=TENSORS)
@LAW
def test_what_the_package_writes_we_read(
    tensors: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file"
    safetensors.numpy.save_file(tensors, path, {"who": "package"})
    ours, metadata = read(path)
    assert_same(ours, tensors)
    assert metadata == {"who": "package"}


def test_the_order_is_kept_and_the_arrays_can_be_written_to(file: Path) -> None:
    tensors = {name: np.full(3, index, np.float32) for index, name in enumerate(["2.bias", "0.weight", "1"])}
    write(file, tensors)
    arrays, _ = read(file)
    assert list(arrays) == list(tensors)
    arrays["1"] += 1
    np.testing.assert_array_equal(arrays["0.weight"], 1)


def test_arrays_of_any_layout_are_written_in_row_major_order(file: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write(file, {"transposed": array.T, "strided": array[:, ::2], "swapped": array.astype(">f4")})
    arrays, _ = read(file)
    np.testing.assert_array_equal(arrays["transposed"], array.T)
    np.testing.assert_array_equal(arrays["strided"], array[:, ::2])
    np.testing.assert_array_equal(arrays["swapped"], array)


def test_arrays_are_aligned_even_where_the_writer_did_not_care(file: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": f32(1, 9, 2)}
    file.write_bytes(raw(header, b"\x07" + np.array([1, 2], "<f4").tobytes()))
    arrays, _ = read(file)
    assert arrays["b"].flags.aligned
    np.testing.assert_array_equal(arrays["b"], [1, 2])


def test_a_file_is_replaced_as_a_whole(file: Path) -> None:
    write(file, {"a": np.zeros(9)})
    with pytest.raises(ValueError, match="dtype 'complex64'"):
        write(file, {"a": np.zeros(9), "b": np.zeros(1, np.complex64)})
    assert list(read(file)[0]) == ["a"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1025, "__metadata__"])
def test_names_that_cannot_be_read_back_are_not_written(name: str, file: Path) -> None:
    with pytest.raises(ValueError, match="a name of"):
        write(file, {name: np.zeros(1)})


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"short", "claims a header of 500136110195 bytes in a file of 5"),
        (struct.pack("<Q", 100) + b"{}", "claims a header of 100 bytes in a file of 10"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", f"expected at most {MAX_HEADER_BYTES}"),
        (raw(b""), "it begins with b''"),
        (raw(b" {}"), "it begins with b' '"),
        (raw(b"[]"), "it begins with b'['"),
        *((raw(text), UNREADABLE) for text in (b"{}{}", b'{"\xff": 1}', b'{"a":' * 100_000)),
        (raw(b'{"a": %s, "a": %s}' % ((json.dumps(f32(0, 4, 1)).encode(),) * 2), bytes(4)), "a key appears twice"),
        (
            raw(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
            "appears twice",
        ),
        (raw({"a": 1}), UNREADABLE),
        (raw({"a": {"dtype": "F32", "shape": [1]}}), UNREADABLE),
        (raw({"a": f32(0, 4, 1) | {"more": 1}}, bytes(4)), UNREADABLE),
        (raw({"a": f32(0, 4, -1)}, bytes(4)), UNREADABLE),
        (raw({"__metadata__": {"a": 1}}), UNREADABLE),
        (raw({"a": f32(0, 4, *[1] * 65)}, bytes(4)), ""),
        (raw({"a": f32(0, 0, 2**62, 0)}), ""),
        (raw({"a": f32(0, 4, 1) | {"dtype": "F8"}}, bytes(4)), "'a' has dtype 'F8': expected one of BF16, F64, F32"),
        (raw({"a": f32(0, 8, 1)}, bytes(8)), "'a' is at bytes [0, 8] of the data: expected [0, 4]"),
        (raw({"a": f32(4, 0, 1)}, bytes(4)), "'a' is at bytes [4, 0]"),
        (raw({"a": f32(0, 2**62, 2**60)}, bytes(4)), "4 bytes of data: expected 4611686018427387904"),
        (raw({"a": f32(0, 4, 1), "b": f32(0, 4, 1)}, bytes(4)), "'b' is at bytes [0, 4] of the data: expected [4, 8]"),
        (
            raw({"a": f32(0, 4, 1), "b": f32(8, 12, 1)}, bytes(12)),
            "'b' is at bytes [8, 12]",
        ),
        (raw({"a": f32(0, 4, 1)}, bytes(3)), "3 bytes of data: expected 4"),
        (raw({"a": f32(0, 4, 1)}, bytes(5)), "5 bytes of data: expected 4"),
        (raw({"": f32(0, 4, 1)}, bytes(4)), "a name of 0 characters"),
        (raw({"x" * 2000: f32(0, 4, 1)}, bytes(4)), "a name of 2000 characters"),
        (raw({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x02"), "'a' has the byte 2"),
    ],
)
def test_damage_is_named(contents: bytes, text: str, file: Path) -> None:
    file.write_bytes(contents)
    with pytest.raises(FileFormatError) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flipped_byte_of_the_header_is_an_error_or_read_as_the_package_does(file: Path) -> None:
    write(file, {"a": np.arange(3.0), "b": np.ones((2, 2), np.float32)}, {"k": "v"})
    whole = file.read_bytes()
    for index in range(len(whole) - 40):
        file.write_bytes(whole[:index] + bytes([whole[index] ^ 0x01]) + whole[index + 1 :])
        try:
            ours, _ = read(file)
        except FileFormatError:
            continue
        assert_same(ours, safetensors.numpy.load_file(file))


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_is_not_a_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        read(tmp_path / name)


def test_bfloat16_is_read_as_the_float32_of_which_it_is_the_upper_half(tmp_path: Path) -> None:
    upper = np.array([1.0, -2.5, np.inf, 1e-38], np.float32).view(np.uint32) & 0xFFFF0000
    stored = (upper >> 16).astype("<u2").tobytes()
    entries = {
        "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
    }
    path = tmp_path / "bf16.safetensors"
    path.write_bytes(raw(entries, stored + stored[:2]))
    arrays, _ = read(path)
    assert arrays["a"].tobytes() == upper.tobytes()
    assert (arrays["b"].shape, str(arrays["b"].dtype), float(arrays["b"])) == ((), "float32", 1.0)
