"""Files of arrays, damaged or made up: they are read, or refused by a typed error, and cost what they may."""

import contextlib
import gzip
import io
import json
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.array_files import read_npz
from lockstep.common.errors import DataError, FileFormatError
from lockstep.common.files.safetensors import parts_of, read
from tests.fuzz.bar import FILE_BYTES, amounts, bear, examine
from tests.fuzz.mutation import EDGES, damaged
from tests.fuzz.tape import Tape
from tests.lockstep.common.data.test_idx import read_idx


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "file.npz"


def safetensors_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, *shape: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


TENSORS: dict[str, NDArray[Any]] = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bias": np.ones(3, np.float64),
    "mask": np.array([True, False]),
    "none": np.empty((0, 4), np.int32),
}
SAFETENSORS = [
    b"".join(bytes(part) for part in parts_of(TENSORS, {"format": "pt"})),
    b"".join(bytes(part) for part in parts_of({"a": np.zeros(1, np.uint8)})),
    safetensors_of({"a": entry(0, 4, 1), "b": entry(4, 8, 1)}, bytes(8)),
]


def odd_header(tape: Tape) -> bytes:
    """Return a file whose header claims what is not so."""
    sizes: tuple[Any, ...] = (*EDGES, -1, 0.0, 4.0, 4.5, True, None, "4", [], math.nan, math.inf, 10**400, 2**40)
    data = bytes(tape.below(40))
    header: dict[str, Any] = {}
    for _ in range(1 + tape.below(4)):
        shape = [tape.choose(sizes) for _ in range(tape.below(5))]
        begin, end = tape.choose((*sizes, *range(9))), tape.choose((*sizes, *range(9)))
        name = tape.choose(("a", "b", "", "__metadata__", "\n", "\ud800", "x" * 2000))
        header[name] = {
            "dtype": tape.choose(("F32", "U8", "BOOL", "F64", "BF16", "", 3, None)),
            "shape": tape.choose((shape, 0 if tape.happens() else shape)),
            "data_offsets": [begin, end] if tape.happens(8) or tape.happens() else [begin],
        }
        if tape.happens(6):
            header[name] = tape.choose(sizes)
    return safetensors_of(header, data)


@amounts("safetensors")
def test_safetensors(cases: int, file: Path) -> None:
    def make(tape: Tape) -> bytes:
        return odd_header(tape) if tape.happens(3) else damaged(tape, tape.choose(SAFETENSORS), SAFETENSORS)

    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        with contextlib.suppress(FileFormatError):
            arrays, _ = read(file)
            assert sum(array.nbytes for array in arrays.values()) <= len(contents)

    examine(cases, make, check)


SAFETENSORS_BOMBS = {
    "one name twice": safetensors_of(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2 + b'"b":1}', b"1"),
    "one name twice, among very many": safetensors_of(
        b"{" + b",".join(b'"%d":0' % min(i, 59_998) for i in range(60_000)) + b"}"
    ),
    "one place for two": safetensors_of({"a": entry(0, 4, 1), "b": entry(0, 4, 1)}, bytes(4)),
    "places that overlap": safetensors_of({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, bytes(12)),
    "empty arrays of great shape": safetensors_of({"a": entry(0, 0, 2**62, 0), "b": entry(0, 0, 0, 2**63 - 1)}),
    "a product that overflows": safetensors_of({"a": entry(0, 4, 2**32, 2**32, 2**32)}, bytes(4)),
    "a product that overflows to what is there": safetensors_of({"a": entry(0, 0, 2**32, 2**32)}),
    "offsets that are truth values": safetensors_of({"a": entry(False, True, True, dtype="U8")}, b"1"),
    "offsets that are fractions": safetensors_of({"a": entry(0, 4.0, 1.0)}, bytes(4)),  # type: ignore[arg-type]
    "numbers of thousands of digits": safetensors_of(b'{"a":' + b"9" * 100_000 + b"}"),
    "an infinity": safetensors_of({"a": entry(0, math.inf, 1)}, bytes(4)),  # type: ignore[arg-type]
    "lists in lists": safetensors_of(b'{"a":' + b"[" * 100_000),
    "metadata in metadata": safetensors_of(b'{"__metadata__":' * 20_000),
    "half a surrogate": safetensors_of({"\ud800": entry(0, 4, 1)}, bytes(4)),
    "a header of the greatest length": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 2**20) + b"{}",
    "a header of empty lists": safetensors_of(b'{"a":[' + b",".join([b"[]"] * 100_000) + b"]}"),
}


@pytest.mark.parametrize("contents", SAFETENSORS_BOMBS.values(), ids=list(SAFETENSORS_BOMBS))
def test_safetensors_that_lie(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)

    def explode() -> None:
        with pytest.raises(FileFormatError) as caught:
            read(file)
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()

    bear(explode, FILE_BYTES)


def idx_of(*shape: int, data: bytes = b"", kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


IDX = [idx_of(2, 3, 4, data=bytes(24)), idx_of(0, 3, 4), idx_of(1, 1, 1, data=b"1")]
GZIPPED = [gzip.compress(contents, mtime=0) for contents in IDX]


@amounts("idx")
def test_idx(cases: int, file: Path) -> None:
    def make(tape: Tape) -> bytes:
        if tape.happens(3):
            contents = idx_of(*(tape.choose(EDGES) % 2**32 for _ in range(3)), data=tape.raw(tape.below(30)))
        else:
            contents = damaged(tape, tape.choose(IDX + GZIPPED), IDX + GZIPPED)
        return gzip.compress(contents, 1, mtime=0) if tape.happens(4) else contents

    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        with contextlib.suppress(DataError):
            assert read_idx(file, dimensions=3).nbytes <= 1032 * len(contents)

    examine(cases, make, check)


IDX_BOMBS = {
    "a product that overflows": idx_of(2**32 - 1, 2**32 - 1, 2**32 - 1),
    "a product that overflows to zero": idx_of(2**31, 2**31, 4),
    "nothing, of great sizes": idx_of(0, 2**32 - 1, 2**32 - 1),
    "more than there is": idx_of(2**10, 2**10, 2**10, data=bytes(100)),
    "a bomb that claims little": gzip.compress(idx_of(1, 1, 1) + bytes(32 * 2**20), mtime=0),
    "a bomb that claims much": gzip.compress(idx_of(2**31 - 1, 1, 1) + bytes(2**20), mtime=0),
    "gzip in gzip": gzip.compress(gzip.compress(idx_of(1, 1, 1, data=b"1"))),
    "a head alone": idx_of(1, 1, 1)[:7],
    "floats": idx_of(1, 1, 1, data=bytes(4), kind=0x0D),
    "a dimension more": idx_of(1, 1, 1, 1, data=b"1"),
    "two members": gzip.compress(idx_of(1, 1, 1, data=b"1")) * 2,
}


@pytest.mark.parametrize("contents", IDX_BOMBS.values(), ids=list(IDX_BOMBS))
def test_idx_that_lies(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)
    explode_quietly(lambda: read_idx(file, dimensions=3))


def explode_quietly(read_file: Any) -> None:
    """Demand a `DataError`, and that within the bounds."""

    def explode() -> None:
        with pytest.raises(DataError) as caught:
            read_file()
        assert str(caught.value).isprintable()

    bear(explode)


def npy_of(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def npz_of(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, contents in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), contents, method)
    return buffer.getvalue()


NPY = [npy_of(np.arange(6, dtype=np.uint8).reshape(2, 3)), npy_of(np.float32(1.5)), npy_of(np.zeros((0, 3)))]
NPZ = [npz_of(a=NPY[0]), npz_of(zipfile.ZIP_DEFLATED, a=NPY[0], b=NPY[1]), npz_of(a=NPY[2])]


@amounts("npz")
def test_npz(cases: int, file: Path) -> None:
    def make(tape: Tape) -> bytes:
        if tape.happens():
            method = tape.choose((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            return npz_of(method, a=damaged(tape, tape.choose(NPY), NPY))
        return damaged(tape, tape.choose(NPZ), NPZ)

    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        with contextlib.suppress(DataError):
            assert read_npz(file, ("a",))["a"].nbytes <= 1032 * len(contents)

    examine(cases, make, check)


def with_size(contents: bytes, size: int) -> bytes:
    """Return an archive of one member whose directory claims another size for it."""
    at = contents.index(b"PK\x01\x02")
    return contents[: at + 24] + struct.pack("<I", size) + contents[at + 28 :]


def with_packed_size(contents: bytes, size: int) -> bytes:
    """Return an archive whose directory claims another size of its one member as it is packed."""
    at = contents.index(b"PK\x01\x02")
    return contents[: at + 20] + struct.pack("<I", size) + contents[at + 24 :]


OBJECTS = npy_of(np.array([{}, []], dtype=object), allow_pickle=True)
BIG = npy_of(np.zeros(32 * 2**20, np.uint8))
#: Larger than it may claim to be; its methods take seconds for what is really big.
LARGER = npy_of(np.zeros(2**16, np.uint8))
PLAIN = "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }"

NPZ_BOMBS = {
    "pickled objects": npz_of(a=OBJECTS),
    "objects, as is claimed": npz_of(a=npy_header(PLAIN.replace("|u1", "|O"), b"1")),
    "fields of objects": npz_of(a=npy_header(PLAIN.replace("'|u1'", "[('x', '|O')]"), b"1")),
    "a bomb that claims little": with_size(npz_of(zipfile.ZIP_DEFLATED, a=BIG), 129),
    "more than there is, packed": with_packed_size(npz_of(zipfile.ZIP_DEFLATED, a=NPY[0][:-1]), 2**31),
    "another method": npz_of(zipfile.ZIP_BZIP2, a=LARGER),
    "another method, that claims little": with_size(npz_of(zipfile.ZIP_LZMA, a=LARGER), 129),
    "a shape that overflows": npz_of(a=npy_header(PLAIN.replace("(1,)", f"({2**62}, {2**62})"), b"1")),
    "an empty shape that is great": npz_of(a=npy_header(PLAIN.replace("(1,)", f"({2**62}, 0)"))),
    "a negative shape": npz_of(a=npy_header(PLAIN.replace("(1,)", "(-1,)"), b"1")),
    "a truth value for a size": npz_of(a=npy_header(PLAIN.replace("(1,)", "(True,)"), b"1")),
    "numbers of thousands of digits": npz_of(a=npy_header(PLAIN.replace("(1,)", f"({'9' * 9000},)"))),
    "brackets in brackets": npz_of(a=npy_header("(" * 9000 + ")" * 9000)),
    "minus after minus": npz_of(a=npy_header(PLAIN.replace("(1,)", f"({'-' * 9000}1,)"))),
    "a call": npz_of(a=npy_header(PLAIN.replace("(1,)", "__import__('os')"))),
    "a dtype of many bytes": npz_of(a=npy_header(PLAIN.replace("|u1", "V99999999"), b"1")),
    "a header that ends early": npz_of(a=npy_header(PLAIN)[:20]),
    "another version": npz_of(a=NPY[0].replace(b"NUMPY\x01", b"NUMPY\x03")),
    "a directory that claims much": NPZ[0][:-10] + struct.pack("<II", 2**32 - 1, 0) + NPZ[0][-2:],
    "encrypted": NPZ[0].replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
    "no archive": b"PK\x05\x06",
}


@pytest.mark.parametrize("contents", NPZ_BOMBS.values(), ids=list(NPZ_BOMBS))
def test_npz_that_lies(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)
    explode_quietly(lambda: read_npz(file, ("a",)))


def test_a_directory_of_very_many_members_is_not_read(file: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(30_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    file.write_bytes(buffer.getvalue())
    explode_quietly(lambda: read_npz(file, ("a",)))


def test_the_size_of_deflate_is_what_the_readers_take_it_for() -> None:
    assert len(zlib.compress(bytes(2**20), 9)) * 1032 >= 2**20
