"""Checkpoints, damaged under a seal that is right again: they are read, or refused by a typed error."""

import contextlib
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.layout import layout_of
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.ps.checkpoint.checkpoint import CheckpointIdentity, RunProgress, read_checkpoint, sealed_parts
from tests.fuzz.bar import amounts, bear, examine
from tests.fuzz.mutation import damaged
from tests.fuzz.tape import Tape
from tests.fuzz.test_records import DIGEST, odd_json
from tests.lockstep.common.model.built import build_model

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


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "step-00000003.safetensors"


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


def look(file: Path) -> None:
    """Read a checkpoint, and take out of it what a run would."""
    with contextlib.suppress(UsageError):
        read_checkpoint(file).held(LAYOUT, ["momentum_buffer"])


@amounts("checkpoints")
def test_checkpoints(cases: int, file: Path) -> None:
    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        look(file)

    examine(cases, odd_checkpoint, check)


def test_a_whole_one_is_read(file: Path) -> None:
    assert sealed(HEADER, b"".join(ARRAYS)) == WHOLE
    file.write_bytes(WHOLE)
    assert read_checkpoint(file).progress == PROGRESS


DEEP = b'{\\"a\\":' * 20_000
BOMBS = {
    "a job of objects in objects": sealed(
        HEADER.replace(b'"job":"', b'"job":"{\\"model\\":' + DEEP, 1), b"".join(ARRAYS)
    ),
    "a header of the greatest length": struct.pack("<Q", 2**64 - 1) + WHOLE[8:],
    "a header longer than the file": struct.pack("<Q", 2**30) + WHOLE[8:],
    "nothing": b"",
    "a length alone": LENGTH,
    "another seal": WHOLE.replace(KEY, KEY + b"f", 1),
}


@pytest.mark.parametrize("contents", BOMBS.values(), ids=list(BOMBS))
def test_a_checkpoint_that_lies_is_refused(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)

    def explode() -> None:
        with pytest.raises(FileFormatError):
            read_checkpoint(file)

    bear(explode)
