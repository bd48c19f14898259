"""A file is read as far as it is one: a pipe holds nobody, a device does not fill the memory."""

import os
import sys
from pathlib import Path
from types import FrameType

import pytest

from lockstep.common.files.reading import open_regular, read_regular


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    assert read_regular(path, 8) == b"contents"
    with open_regular(path, 8) as file:
        assert file.read() == b"contents"


def test_a_link_to_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 8) == b"contents"


def test_one_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents!")
    with pytest.raises(OSError, match="9 bytes, above 8"):
        read_regular(path, 8)


def test_a_pipe_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe", 8)


def test_a_device_is_no_file() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(Path("/dev/zero"), 8)


def test_what_is_not_there_or_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", 8)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 8)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # nobody is left to close it
def test_an_interrupt_while_a_file_is_opened_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"all of it")

    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code.co_name == "fdopen":
            sys.setprofile(None)
            del argument  # the file, which the traceback would keep open
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_regular(path, 100)
    finally:
        sys.setprofile(before)
    assert read_regular(path, 100) == b"all of it"
