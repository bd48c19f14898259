"""A file is replaced as a whole or not at all."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.files.atomic import Sync, write_atomically


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", [b"ab", np.array([99, 100], np.uint8).data, b""])
    assert (tmp_path / "file").read_bytes() == b"abcd"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", parts())
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "file", [b""])


def failing_at(number: int) -> Sync:
    """Return what fails when it is called that often."""
    calls = 0

    def sync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fsync(descriptor)

    return sync


@pytest.mark.parametrize(("number", "content"), [(1, b"old"), (2, b"new")])
def test_a_disk_that_fails_to_keep_what_it_took_leaves_one_whole_file(
    tmp_path: Path, number: int, content: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        write_atomically(tmp_path / "file", [b"new"], failing_at(number))
    assert caught.value.filename == (str(tmp_path / "file") if number == 1 else None)
    assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
