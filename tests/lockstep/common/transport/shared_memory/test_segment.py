"""A mapped file: what is written here is read there, what is not ours is refused, and no room is no signal."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.errors import SharingError
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.common.transport.shared_memory.segment import (
    PAGE_BYTES,
    Allocate,
    Shape,
    reserve,
    write_again,
)
from tests.leftovers import LINUX_ONLY, nothing_left_open

NONCE = bytes(range(16))
SHAPE = Shape(vectors=2, size=5000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SharedFolder]:
    """The test's own folder, open."""
    folder = SharedFolder(tmp_path, NONCE, os.open(tmp_path, os.O_RDONLY))
    yield folder
    folder.close()


@pytest.mark.parametrize("size", [1, PAGE_BYTES // 4, PAGE_BYTES // 4 + 1, 100_000])
def test_each_vector_has_pages_of_its_own(size: int) -> None:
    shape = Shape(vectors=3, size=size)
    assert shape.stride % PAGE_BYTES == 0
    assert size * 4 <= shape.stride < size * 4 + PAGE_BYTES
    assert shape.total == PAGE_BYTES + 3 * shape.stride


def test_what_one_writes_the_other_reads(folder: SharedFolder) -> None:
    ours = folder.make("a", SHAPE)
    theirs = folder.attach("a", SHAPE)
    assert theirs.nonce == NONCE
    assert [vector.shape for vector in theirs.vectors] == [(5000,)] * 2
    for number, vector in enumerate(ours.vectors):
        vector[:] = number + 1.5
    assert [set(vector.tolist()) for vector in theirs.vectors] == [{1.5}, {2.5}]


def test_another_process_reads_and_writes(tmp_path: Path, folder: SharedFolder) -> None:
    ours = folder.make("a", SHAPE)
    ours.vectors[0][:] = 3.0
    program = """if True:
        import os, sys
        from pathlib import Path
        from lockstep.common.transport.shared_memory.folder import SharedFolder
        from lockstep.common.transport.shared_memory.segment import Shape
        folder = SharedFolder(Path(sys.argv[1]), b"", os.open(sys.argv[1], os.O_RDONLY))
        segment = folder.attach("a", Shape(2, 5000), is_writable=True)
        segment.vectors[1][:] = segment.vectors[0] * 2
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parents[5])
    assert set(ours.vectors[1].tolist()) == {6.0}
    assert (tmp_path / "a").exists()


def test_who_has_it_to_read_cannot_write(folder: SharedFolder) -> None:
    folder.make("a", SHAPE)
    theirs = folder.attach("a", SHAPE)
    assert not theirs.vectors[0].flags.writeable


def test_it_outlives_its_file(tmp_path: Path, folder: SharedFolder) -> None:
    ours = folder.make("a", SHAPE)
    theirs = folder.attach("a", SHAPE).vectors[0]
    (tmp_path / "a").unlink()
    ours.vectors[0][7] = 9.0
    assert theirs[7] == 9.0


def test_the_file_is_open_to_its_user_only_and_all_there(tmp_path: Path, folder: SharedFolder) -> None:
    folder.make("a", SHAPE)
    found = (tmp_path / "a").stat()
    assert (found.st_mode & 0o777, found.st_size) == (0o600, SHAPE.total)
    assert found.st_blocks * 512 >= SHAPE.total


def test_a_name_that_is_taken_is_refused_and_kept(tmp_path: Path, folder: SharedFolder) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(SharingError, match=f"a cannot be created: {os.strerror(errno.EEXIST)}"):
        folder.make("a", SHAPE)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, r"[0-9.]+ MiB are free, .*--shm-size"),
        (errno.EDQUOT, r"[0-9.]+ MiB are free, .*--shm-size"),
        (
            errno.EFBIG,
            r"'[^']+', a limit of this process\): start it after `ulimit -f unlimited`, or use --tran[a-z]+ ipc$",
        ),
    ],
)
def test_missing_room_is_named_with_its_cause_and_leaves_nothing(
    tmp_path: Path, folder: SharedFolder, code: int, text: str
) -> None:
    def allocate(descriptor: int, size: int) -> None:
        os.write(descriptor, b"a part of it")
        raise OSError(code, os.strerror(code))

    with pytest.raises(SharingError, match=rf"has no room for 0\.1 MiB \({text}"):
        folder.make("a", SHAPE, allocate)
    assert list(tmp_path.iterdir()) == []


def test_whatever_else_the_system_says_is_told(tmp_path: Path, folder: SharedFolder) -> None:
    def allocate(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SharingError, match=f"a cannot be created: {os.strerror(errno.EIO)}"):
        folder.make("a", SHAPE, allocate)
    assert list(tmp_path.iterdir()) == []


def test_a_real_limit_of_the_system_is_no_signal(tmp_path: Path) -> None:
    program = """if True:
        import os, resource, sys
        from pathlib import Path
        from lockstep.common.errors import SharingError
        from lockstep.common.transport.shared_memory.folder import SharedFolder
        from lockstep.common.transport.shared_memory.segment import Shape
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        folder = SharedFolder(Path(sys.argv[1]), bytes(16), os.open(sys.argv[1], os.O_RDONLY))
        try:
            folder.make("a", Shape(2, 50_000))
        except SharingError as error:
            print(error)
    """
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[5])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "has no room for 0.4 MiB" in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allocate", [reserve, write_again])
def test_what_is_there_stays_when_more_is_reserved(tmp_path: Path, allocate: Callable[[int, int, int], None]) -> None:
    words = bytes(range(1, 251)) * 8_000
    (tmp_path / "a").write_bytes(words)
    with (tmp_path / "a").open("r+b") as file:
        allocate(file.fileno(), 3_000_000, 1_000_000)
    assert (tmp_path / "a").read_bytes() == words + bytes(2_000_000)


@pytest.mark.parametrize("allocate", [reserve, write_again])
def test_memory_is_had_before_it_is_used(tmp_path: Path, allocate: Allocate) -> None:
    with (tmp_path / "a").open("w+b") as file:
        allocate(file.fileno(), 3_000_000)
    assert (tmp_path / "a").stat().st_size == 3_000_000
    assert (tmp_path / "a").stat().st_blocks * 512 >= 3_000_000


# What is not ours.


def test_a_file_that_is_not_there(folder: SharedFolder) -> None:
    with pytest.raises(SharingError, match=f"a cannot be opened: {os.strerror(errno.ENOENT)}"):
        folder.attach("a", SHAPE)


def test_a_symbolic_link(tmp_path: Path, folder: SharedFolder) -> None:
    folder.make("a", SHAPE)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(SharingError, match=r"link is a symbolic link"):
        folder.attach("link", SHAPE)


def test_a_fifo_holds_nobody(tmp_path: Path, folder: SharedFolder) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SharingError, match=r"pipe is not a regular file"):
        folder.attach("pipe", SHAPE)


def test_a_folder(tmp_path: Path, folder: SharedFolder) -> None:
    (tmp_path / "sub").mkdir(mode=0o700)
    with pytest.raises(SharingError, match=r"sub is not a regular file"):
        folder.attach("sub", SHAPE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_file_that_is_open_to_others(tmp_path: Path, folder: SharedFolder, mode: int) -> None:
    folder.make("a", SHAPE)
    (tmp_path / "a").chmod(mode)
    with pytest.raises(SharingError, match=rf"a has mode {mode:04o}: expected it to be open to its user only"):
        folder.attach("a", SHAPE)


@pytest.mark.parametrize("other", [Shape(1, 5000), Shape(2, 10_000), Shape(3, 5000)])
def test_a_file_of_another_size(folder: SharedFolder, other: Shape) -> None:
    folder.make("a", SHAPE)
    with pytest.raises(SharingError, match=rf"a has {SHAPE.total} bytes: expected {other.total}"):
        folder.attach("a", other)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user(tmp_path: Path, folder: SharedFolder) -> None:
    folder.make("a", SHAPE)
    os.chown(tmp_path / "a", 1, -1)
    with pytest.raises(SharingError, match=r"a belongs to user 1: expected 0, as this process"):
        folder.attach("a", SHAPE)


def test_vectors_are_of_the_type_that_is_computed_with(folder: SharedFolder) -> None:
    vectors = folder.make("a", SHAPE).vectors
    assert all(vector.dtype == np.float32 and vector.flags.c_contiguous for vector in vectors)
    assert all(not vector.any() for vector in vectors)


@LINUX_ONLY
def test_nothing_stays_open_or_mapped_without_its_vectors(folder: SharedFolder) -> None:
    with nothing_left_open():
        for number in range(3):
            ours = folder.make(str(number), SHAPE)
            theirs = folder.attach(str(number), SHAPE)
            assert theirs.nonce == ours.nonce
        del ours, theirs


@LINUX_ONLY
def test_a_refusal_leaves_nothing_open(tmp_path: Path, folder: SharedFolder) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "short").write_bytes(b"")
    with nothing_left_open():
        with pytest.raises(SharingError):
            folder.make("a", SHAPE, refuse)
        with pytest.raises(SharingError):
            folder.attach("short", SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["short"]
