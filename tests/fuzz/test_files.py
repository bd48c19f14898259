"""Files of arrays, checkpoints, ledgers, jobs: damaged or made up, read or refused by a typed error at a small cost."""

import contextlib
import gzip
import hashlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.aggregation.layout import layout_of
from lockstep.common.data.array_files import open_npz
from lockstep.common.errors import DataError, FileFormatError, JobError, UsageError
from lockstep.common.files.safetensors import parts_of, read
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.ps.checkpoint.checkpoint import CheckpointIdentity, RunProgress, read_checkpoint, sealed_parts
from tests.fuzz.bar import CASE_BYTES, CASES, FILE_BYTES, bear, examine
from tests.fuzz.mutation import EDGES, damaged
from tests.fuzz.tape import Tape
from tests.fuzz.test_jobs import JOB_BOMBS, TOMLS, odd_toml, read_job_file
from tests.fuzz.test_records import DIGEST, LEDGER_BOMBS, WHOLE_LEDGER, odd_json, odd_ledger, read_ledger_at
from tests.lockstep.common.data.test_array_files import header, read_idx
from tests.lockstep.common.model.built import build_model

#: Returns the arrays of a file.
Read = Callable[[Path], Sequence[NDArray[Any]]]


class Format(NamedTuple):
    """A format of files, and what is tried with it."""

    read: Read
    #: What a file that cannot be read raises.
    refusal: type[Exception]
    #: Files that can be read.
    wholes: Sequence[bytes]
    #: Draws a file that is damaged or made up.
    draw: Callable[[Tape], bytes]
    #: Files that claim what is not so, by what that is.
    lies: Mapping[str, bytes]
    #: Times the bytes of a file that its arrays may have.
    ratio: float = 1.0
    #: Bytes that a lie may take.
    most: int = CASE_BYTES
    #: Whether no part of a file can be read as a whole one.
    is_sealed: bool = True


# safetensors


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


def odd_safetensors(tape: Tape) -> bytes:
    return odd_header(tape) if tape.happens(3) else damaged(tape, tape.choose(SAFETENSORS), SAFETENSORS)


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


# IDX


def idx_of(*shape: int, data: bytes = b"", kind: int = 8) -> bytes:
    return header(*shape, kind=kind) + data


IDX = [idx_of(2, 3, 4, data=bytes(24)), idx_of(0, 3, 4), idx_of(1, 1, 1, data=b"1")]
GZIPPED = [gzip.compress(contents, mtime=0) for contents in IDX]


def odd_idx(tape: Tape) -> bytes:
    if tape.happens(3):
        contents = idx_of(*(tape.choose(EDGES) % 2**32 for _ in range(3)), data=tape.raw(tape.below(30)))
    else:
        contents = damaged(tape, tape.choose(IDX + GZIPPED), IDX + GZIPPED)
    return gzip.compress(contents, 1, mtime=0) if tape.happens(4) else contents


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


# npz


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


def odd_npz(tape: Tape) -> bytes:
    if tape.happens():
        method = tape.choose((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return npz_of(method, a=damaged(tape, tape.choose(NPY), NPY))
    return damaged(tape, tape.choose(NPZ), NPZ)


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


def archive_of(members: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(members):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    return buffer.getvalue()


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
    "a directory of very many members": archive_of(30_000),
}


# Checkpoints

JOB = Job(model={"class": "Linear", "args": [2, 3]}, data="digits", epochs=2, global_batch=16, micro_batches=4)
LAYOUT = layout_of(build_model(JOB.model))
PROGRESS = RunProgress(
    steps=3,
    is_evaluated=True,
    loss_sum=1.5,
    count=8,
    samples=40,
    history=[],
    elapsed_s=1.0,
    wall_s=1.0,
    train_s=1.0,
    compute_s=1.0,
    update_s=0.1,
    metrics_bytes=0,
    ledger_bytes=0,
)
IDENTITY = CheckpointIdentity(job=JOB, source="", dataset=DIGEST, layout=LAYOUT.digest(), numerics=fingerprint())
HELD = np.zeros(LAYOUT.size, np.float32), {"momentum_buffer": np.ones(LAYOUT.size, np.float32)}
LENGTH, HEADER, *ARRAYS = (bytes(part) for part in sealed_parts(IDENTITY, PROGRESS, LAYOUT, *HELD))
WHOLE = b"".join((LENGTH, HEADER, *ARRAYS))
KEY = b'"sha256":"'


def sealed(header: bytes, data: bytes) -> bytes:
    """Return a file with that header and data, under the seal that belongs to it, where there is room for one."""
    header += b" " * (-len(header) % 8)
    before, key, after = header.partition(KEY)
    contents = [struct.pack("<Q", len(header)), before + key, b"0" * 64, after[64:], data]
    contents[2] = hashlib.sha256(b"".join(contents)).hexdigest().encode()
    return b"".join(contents)


def odd_checkpoint(tape: Tape) -> bytes:
    data = b"".join(ARRAYS)
    match tape.below(4):
        case 0:
            return damaged(tape, WHOLE)
        case 1:
            return sealed(HEADER, damaged(tape, data))
        case 2:
            # The past is the last array: longer or shorter, its place in the header is not right any more.
            return sealed(HEADER, (data[: -len(ARRAYS[-1])] + odd_json(tape, ARRAYS[-1]))[: len(data)].ljust(len(data)))
        case _:
            return sealed(odd_json(tape, HEADER), data)


DEEP = b'{\\"a\\":' * 20_000
CHECKPOINT_LIES = {
    "a job of objects in objects": sealed(
        HEADER.replace(b'"job":"', b'"job":"{\\"model\\":' + DEEP, 1), b"".join(ARRAYS)
    ),
    "a header of the greatest length": struct.pack("<Q", 2**64 - 1) + WHOLE[8:],
    "a header longer than the file": struct.pack("<Q", 2**30) + WHOLE[8:],
    "nothing": b"",
    "a length alone": LENGTH,
    "another seal": WHOLE.replace(KEY, KEY + b"f", 1),
}


def held(path: Path) -> list[NDArray[Any]]:
    """Read a checkpoint, and take out of it what a run would."""
    weights, slots = read_checkpoint(path).held(LAYOUT, ["momentum_buffer"])
    return [weights, *slots.values()]


def whole_array(path: Path) -> NDArray[Any]:
    """Return the array of an archive."""
    with open_npz(path) as archive:
        return archive.array("a").read_whole()


FORMATS = {
    "safetensors": Format(
        lambda path: [*read(path)[0].values()],
        FileFormatError,
        SAFETENSORS,
        odd_safetensors,
        SAFETENSORS_BOMBS,
        most=FILE_BYTES,
    ),
    "idx": Format(lambda path: [read_idx(path)], DataError, [*IDX, *GZIPPED], odd_idx, IDX_BOMBS, 1032),
    # NumPy parses a header, of 10,000 bytes at most, as Python.
    "npz": Format(lambda path: [whole_array(path)], DataError, NPZ, odd_npz, NPZ_BOMBS, 1032, 2**23),
    "checkpoints": Format(held, UsageError, [WHOLE], odd_checkpoint, CHECKPOINT_LIES),
    # Losses travel as text, and are float64 here.
    "ledgers": Format(read_ledger_at, FileFormatError, [WHOLE_LEDGER], odd_ledger, LEDGER_BOMBS, 8, is_sealed=False),
    "job files": Format(
        read_job_file,
        JobError,
        [text.encode() for text in TOMLS[:2]],
        odd_toml,
        JOB_BOMBS,
        most=FILE_BYTES,
        is_sealed=False,
    ),
}


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "step-00000003.safetensors"


AMOUNTS = [(kind, CASES[kind][0]) for kind in FORMATS]
MANY = [pytest.param(kind, CASES[kind][1], marks=pytest.mark.slow) for kind in FORMATS]


def assert_short(error: Exception) -> None:
    """Demand that an error can be read in a log, whatever the file holds."""
    assert len(str(error)) < 2500
    assert str(error).isprintable()


@pytest.mark.parametrize(("kind", "cases"), [*AMOUNTS, *MANY])
def test_a_damaged_file_is_refused_or_read(kind: str, cases: int, file: Path) -> None:
    tried = FORMATS[kind]

    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        try:
            assert sum(array.nbytes for array in tried.read(file)) <= tried.ratio * len(contents)
        except tried.refusal as error:
            assert_short(error)

    examine(cases, tried.draw, check)


@pytest.mark.parametrize(("kind", "lie"), [(kind, lie) for kind, tried in FORMATS.items() for lie in tried.lies])
def test_a_file_that_lies_is_refused(kind: str, lie: str, file: Path) -> None:
    tried = FORMATS[kind]
    file.write_bytes(tried.lies[lie])

    def explode() -> None:
        with pytest.raises(tried.refusal) as caught:
            tried.read(file)
        assert_short(caught.value)

    bear(explode, tried.most)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_is_read_and_each_truncation_refused(kind: str, file: Path) -> None:
    tried = FORMATS[kind]
    for whole in tried.wholes:
        file.write_bytes(whole)
        tried.read(file)
        for length in range(0, len(whole), 1 + len(whole) // 400) if tried.is_sealed else ():
            file.write_bytes(whole[:length])
            with pytest.raises(tried.refusal):
                tried.read(file)


@pytest.mark.parametrize(("kind", "whole"), [("idx", GZIPPED[0]), ("npz", NPZ[1])], ids=["idx", "npz"])
def test_a_flipped_byte_of_a_file_with_checksums_is_refused_or_harmless(kind: str, whole: bytes, file: Path) -> None:
    file.write_bytes(whole)
    (expected,) = FORMATS[kind].read(file)
    for index in range(len(whole)):
        file.write_bytes(whole[:index] + bytes([whole[index] ^ 0x55]) + whole[index + 1 :])
        with contextlib.suppress(DataError):
            np.testing.assert_array_equal(FORMATS[kind].read(file)[0], expected)


def test_a_whole_checkpoint_is_under_the_seal_that_belongs_to_it(file: Path) -> None:
    assert sealed(HEADER, b"".join(ARRAYS)) == WHOLE
    file.write_bytes(WHOLE)
    assert read_checkpoint(file).progress == PROGRESS


def test_the_size_of_deflate_is_what_the_readers_take_it_for() -> None:
    assert len(zlib.compress(bytes(2**20), 9)) * 1032 >= 2**20
