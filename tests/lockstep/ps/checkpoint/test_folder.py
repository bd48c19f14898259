"""Which checkpoints stay, and that those before stay if one cannot be written or read."""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from lockstep.common.files.atomic import write_atomically
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder, CheckpointIdentity, sealed_parts
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.lockstep.common.files.test_atomic import failing_at
from tests.lockstep.ps.checkpoint.test_checkpoint import LAYOUT, PROGRESS, held
from tests.lockstep.ps.runs import facts_of

PARTS = sealed_parts(CheckpointIdentity.of(facts_of()), PROGRESS, LAYOUT, *held())


@dataclass
class FullDisk:
    """Has room for so many bytes of each file."""

    room: int
    error: int = errno.ENOSPC

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        def cut() -> Iterable[bytes | memoryview]:
            left = self.room
            for part in parts:
                if len(bytes(part)) > left:
                    yield bytes(part)[:left]
                    raise OSError(self.error, os.strerror(self.error))
                left -= len(bytes(part))
                yield part

        write_atomically(path, cut())


def folder_in(path: Path, keep: int = 2) -> tuple[CheckpointFolder, list[str]]:
    said: list[str] = []
    return CheckpointFolder(path / "checkpoints", said.append, keep), said


@pytest.mark.parametrize(
    ("keep", "best", "kept"), [(2, None, [4, 5]), (2, 2, [2, 4, 5]), (1, 5, [5]), (3, 9, [3, 4, 5])]
)
def test_the_newest_and_the_best_stay(tmp_path: Path, keep: int, best: int | None, kept: list[int]) -> None:
    folder, said = folder_in(tmp_path, keep)
    for step in (1, 2, 3, 4, 5):
        folder.save(step, PARTS, best)
    assert (folder.steps(), said) == (kept, [])


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_the_others_go(tmp_path: Path) -> None:
    folder, said = folder_in(tmp_path, keep=1)
    folder.path.mkdir()
    folder.file_of(1).mkdir()
    folder.save(2, PARTS, None)
    folder.save(3, PARTS, None)
    assert folder.steps() == [1, 3]
    assert said == [f"warning: cannot remove old checkpoint '{folder.file_of(1)}': {os.strerror(errno.EISDIR)}"] * 2


@pytest.mark.parametrize("room", [0, 8, 100, 2000])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_if_one_cannot_be_written_the_old_file_stays(tmp_path: Path, room: int, error: int) -> None:
    folder, _ = folder_in(tmp_path)
    folder.save(2, PARTS, None)
    before = folder.file_of(2).read_bytes()
    folder.write = FullDisk(room, error).write
    for step in (2, 3):
        with pytest.raises(OSError, match=os.strerror(error)):
            folder.save(step, PARTS, None)
    assert folder.file_of(2).read_bytes() == before
    assert [path.name for path in folder.path.iterdir()] == ["step-00000002.safetensors"]


@pytest.mark.parametrize("call", [1, 2])
def test_of_a_disk_that_fails_to_keep_what_it_took_nothing_wrong_is_ever_read(tmp_path: Path, call: int) -> None:
    folder, _ = folder_in(tmp_path)
    folder.save(1, PARTS, None)
    before = folder.file_of(1).read_bytes()
    folder.write = partial(write_atomically, sync=failing_at(call))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        folder.save(2, PARTS, None)
    assert folder.file_of(1).read_bytes() == before
    # Where only its name is in doubt, the file is whole.
    assert [checkpoint.progress for checkpoint in folder.back_from(9)] == [PROGRESS] * call
    assert not list(folder.path.glob(".*"))


def test_a_damaged_file_is_named_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    folder, said = folder_in(tmp_path, keep=9)
    for step in (1, 2, 3, 4):
        folder.save(step, PARTS, None)
    folder.file_of(4).write_bytes(folder.file_of(4).read_bytes()[:-1])
    folder.file_of(3).write_bytes(b"")
    (folder.path / "step-x.safetensors").write_bytes(b"")
    found = list(folder.back_from(9))
    assert [checkpoint.path for checkpoint in found] == [folder.file_of(2), folder.file_of(1)]
    assert [str(folder.file_of(step)) in told for step, told in zip((4, 3), said, strict=True)] == [True, True]
    assert all(told.startswith("warning: ") and told.endswith("using the one before it") for told in said)
    assert [checkpoint.path for checkpoint in folder.back_from(1)] == [folder.file_of(1)]


def test_damaged_files_are_set_aside_and_no_longer_count(tmp_path: Path) -> None:
    folder, _ = folder_in(tmp_path)
    for step in (8, 9):
        folder.save(step, PARTS, None)
    folder.set_aside(behind=8)
    assert folder.steps() == [8]
    assert (folder.path / "step-00000009.safetensors.damaged").exists()


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    folder, _ = folder_in(tmp_path)
    folder.save(1, PARTS, None)
    (folder.path / ".step-00000002.safetensors.77.partial").write_bytes(b"half")
    folder.sweep()
    assert [path.name for path in folder.path.iterdir()] == ["step-00000001.safetensors"]


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    folder, _ = folder_in(tmp_path)
    assert (folder.steps(), list(folder.back_from(9))) == ([], [])
    folder.sweep()


@LINUX_ONLY
def test_writing_and_reading_leave_nothing_open(tmp_path: Path) -> None:
    folder, _ = folder_in(tmp_path)
    with nothing_left_open():
        for step in (1, 2, 3):
            folder.save(step, PARTS, None)
        folder.write = FullDisk(100).write
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            folder.save(4, PARTS, None)
        folder.file_of(3).write_bytes(b"damaged")
        assert len(list(folder.back_from(3))) == 1
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
