"""A checkpoint comes back as it went in, everybody can read it, and no damage to it goes unnoticed."""

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors import safe_open

from lockstep.common import nn
from lockstep.common.aggregation.layout import layout_of
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.safetensors import parts_of
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.checkpoint.checkpoint import (
    Checkpoint,
    CheckpointIdentity,
    RunProgress,
    read_checkpoint,
    sealed_parts,
)
from tests.lockstep.ps.runs import facts_of

LAYOUT = layout_of(nn.Sequential(nn.Linear(24, 4), nn.BatchNorm1d(4)))
EPOCH = EpochRecord(
    epoch=1, loss=0.1, accuracy=0.5, test_loss=1 / 3, test_accuracy=0.7, wall_s=2.0, weights_sha256="0" * 64
)
PROGRESS = RunProgress(
    steps=7,
    is_evaluated=False,
    loss_sum=1e300 / 3,
    count=9,
    samples=99,
    history=[EPOCH],
    elapsed_s=3.25,
    wall_s=4.5,
    train_s=0.1,
    compute_s=0.2,
    update_s=0.3,
    metrics_bytes=1000,
    ledger_bytes=2000,
)


def held() -> tuple[Vector, dict[str, Vector]]:
    rng = generator(0, Purpose.CANARY)
    weights = rng.standard_normal(LAYOUT.size, dtype=np.float32)
    state = {name: rng.standard_normal(LAYOUT.parameter_size, dtype=np.float32) for name in ("exp_avg", "exp_avg_sq")}
    return weights, state


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000007.safetensors"
    write_atomically(path, sealed_parts(CheckpointIdentity.of(facts_of()), PROGRESS, LAYOUT, *held()))
    return path


def test_it_comes_back_as_it_went_in(file: Path) -> None:
    checkpoint, (weights, state) = read_checkpoint(file), held()
    assert (checkpoint.identity, checkpoint.progress) == (CheckpointIdentity.of(facts_of()), PROGRESS)
    weights_back, state_back = checkpoint.held(LAYOUT, state)
    assert weights_back.tobytes() == weights.tobytes()
    assert {name: slot.tobytes() for name, slot in state_back.items()} == {
        name: slot.tobytes() for name, slot in state.items()
    }


def test_the_weights_open_with_the_safetensors_package_under_their_own_names(file: Path) -> None:
    weights = LAYOUT.read(held()[0])
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
        assert (metadata["format"], metadata["step"]) == ("lockstep checkpoint 1", "7")
        for name, array in weights.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array)
        np.testing.assert_array_equal(
            opened.get_tensor("optimizer/exp_avg/0.weight"), LAYOUT.parameters[0].view(held()[1]["exp_avg"])
        )


def damaged(file: Path, data: bytes) -> bool:
    """Tell whether such contents are refused, with the file's name."""
    file.write_bytes(data)
    try:
        read_checkpoint(file)
    except FileFormatError as error:
        return str(file) in str(error)
    return False


def test_a_file_cut_off_anywhere_is_refused(file: Path) -> None:
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    # Every byte of the header, and more than a hundred others: at the begin, within and at the end of a value.
    assert len(data) > header + 1000
    assert all(damaged(file, data[:size]) for size in (*range(header), *range(header, len(data), 7), len(data) - 1))
    assert damaged(file, data + b"\0")


def test_any_flipped_bit_is_found(file: Path) -> None:
    data = file.read_bytes()
    places = generator(1, Purpose.CANARY).integers(0, 8 * len(data), size=400).tolist()
    # All of the length and of the seal, too: they are what is looked at first.
    seal = data.index(b'"sha256":"') * 8
    for place in (*range(64), *range(seal, seal + 8 * 76), *places):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        assert damaged(file, bytes(flipped)), place


def test_exchanged_arrays_are_found(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-8:], data[-16:-8] = data[-16:-8], data[-8:]
    assert damaged(file, bytes(data))


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused(file: Path, content: bytes) -> None:
    assert damaged(file, content)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_checkpoint(tmp_path / "nothing")
    assert str(caught.value) == (
        f"{tmp_path / 'nothing'}: cannot be read ({os.strerror(errno.ENOENT)}): expected a checkpoint"
    )


def sealed(path: Path, data: bytes) -> Path:
    """Write data with its digest in the place of 64 zeros; return the path."""
    path.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode()))
    return path


@pytest.mark.parametrize(("header", "cut"), [(b'{"sha256":"' + b"0" * 64, 1), (b'{"sha-256":"' + b"0" * 64, 0)])
def test_a_seal_counts_under_its_name_within_the_header_only(tmp_path: Path, header: bytes, cut: int) -> None:
    path = sealed(tmp_path / "one", (len(header) - cut).to_bytes(8, "little") + header)
    with pytest.raises(FileFormatError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (f"{path}: has no seal: it is damaged, cut off, or not a checkpoint")


def test_damage_is_told_with_the_digest_and_the_seal(file: Path) -> None:
    data, place = file.read_bytes(), file.read_bytes().index(b'"sha256":"') + 10
    seal = data[place : place + 64].decode()
    damage = data[:-1] + bytes([data[-1] ^ 1])
    found = hashlib.sha256(damage.replace(seal.encode(), b"0" * 64)).hexdigest()
    file.write_bytes(damage)
    with pytest.raises(FileFormatError) as caught:
        read_checkpoint(file)
    assert str(caught.value) == (f"{file}: is damaged: its SHA-256 is {found[:12]}…, and its seal records {seal[:12]}…")
    # Whatever is in its place.
    file.write_bytes(data[:place] + b"\xff" * 64 + data[place + 64 :])
    with pytest.raises(FileFormatError, match=f"and its seal records {chr(0xFFFD) * 12}…$"):
        read_checkpoint(file)


def test_another_model_or_optimizer_is_told(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    with pytest.raises(FileFormatError, match=r"'optimizer/exp_avg/0\.bias' is in the file or in the model"):
        checkpoint.held(LAYOUT, ["momentum_buffer"])
    other = layout_of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.raises(FileFormatError, match=r"array '0\.weight' is not float32 of shape"):
        checkpoint.held(other, ["exp_avg", "exp_avg_sq"])


def test_the_identity_is_what_decides_the_bits() -> None:
    assert CheckpointIdentity.of(facts_of()).numerics == fingerprint()


#: Each digest is another one.
IDENTITY = msgspec.structs.replace(
    CheckpointIdentity.of(facts_of()), source="1" * 64, dataset="2" * 64, layout="3" * 64
)


def written(path: Path, progress: RunProgress = PROGRESS) -> Checkpoint:
    write_atomically(path, sealed_parts(IDENTITY, progress, LAYOUT, *held()))
    return read_checkpoint(path)


def test_the_identity_is_of_the_run_and_comes_back(tmp_path: Path) -> None:
    info = replace(facts_of(), source="1" * 64, dataset="2" * 64, layout="3" * 64)
    assert CheckpointIdentity.of(info) == IDENTITY
    assert written(tmp_path / "one").identity == IDENTITY


@pytest.mark.parametrize(
    ("epoch", "digest", "is_evaluated", "expected"),
    [(2, "2", True, True), (1, "1", True, False), (2, "1", True, False), (3, "2", True, False), (2, "2", False, False)],
)
def test_it_is_of_the_epoch_whose_evaluation_came_last(
    tmp_path: Path, epoch: int, digest: str, is_evaluated: bool, expected: bool
) -> None:
    history = [msgspec.structs.replace(EPOCH, epoch=number, weights_sha256=str(number) * 64) for number in (1, 2)]
    progress = msgspec.structs.replace(PROGRESS, history=history, is_evaluated=is_evaluated)
    checkpoint = written(tmp_path / "one", progress)
    of = msgspec.structs.replace(EPOCH, epoch=epoch, weights_sha256=digest * 64)
    assert checkpoint.is_of(of) is expected


def test_an_array_that_the_model_has_and_the_file_has_not_is_told(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    del checkpoint.arrays["0.bias"]
    with pytest.raises(FileFormatError, match=r"array '0\.bias' is in the file or in the model, but not in both"):
        checkpoint.held(LAYOUT, ["exp_avg", "exp_avg_sq"])


def test_an_array_that_only_the_file_has_is_told(file: Path) -> None:
    with pytest.raises(FileFormatError, match="is in the file or in the model, but not in both"):
        read_checkpoint(file).held(LAYOUT, ["exp_avg"])


def test_an_array_of_another_type_is_told(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    checkpoint.arrays["0.bias"] = checkpoint.arrays["0.bias"].astype(np.float64)
    with pytest.raises(FileFormatError, match=r"array '0\.bias' is not float32"):
        checkpoint.held(LAYOUT, ["exp_avg", "exp_avg_sq"])


def test_a_sealed_file_of_another_version_is_told(tmp_path: Path) -> None:
    # As it was written, but for the array of the progress.
    data = b"".join(parts_of({"x": np.zeros(2, np.float32)}, {"sha256": "0" * 64}))
    path = sealed(tmp_path / "other", data)
    with pytest.raises(FileFormatError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: is not a checkpoint of this version of lockstep ('lockstep/past'): expected one; resume with the "
        "version that wrote it"
    )
