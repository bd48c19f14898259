"""Lines of a run and the room for them: no line is lost on a full disk, after an interrupt, or to another process."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.common.errors import UsageError
from lockstep.ps.records.run_folder import BUFFER_LINES, DiskRoom, LineFile


@dataclass
class Disk:
    """Writes as `os.write` does, as long as there is room."""

    room: int
    said: list[str] = field(default_factory=list)

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.write(descriptor, data[: self.room])
        self.room -= taken
        return taken


@dataclass
class InterruptedDisk:
    """Ctrl-C just after the system has taken the first bytes, before anybody could note that."""

    interrupts: int = 1

    def write(self, descriptor: int, data: bytes) -> int:
        taken = os.write(descriptor, data[:5])
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return taken


def test_lines_are_written_when_many_wait_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = LineFile(path)
    for _ in range(BUFFER_LINES - 1):
        file.append(b"one")
    assert not path.exists()
    file.append(b"last")
    assert path.read_bytes() == b"one\n" * (BUFFER_LINES - 1) + b"last\n"
    file.append(b"more")
    assert (file.size(), path.stat().st_size) == (4 * BUFFER_LINES + 6, 4 * BUFFER_LINES + 1)
    file.close()
    assert path.stat().st_size == file.size()


@pytest.mark.parametrize("room", [0, 1, 6, 7, 11])
def test_a_full_disk_costs_no_line_and_is_told_once(tmp_path: Path, room: int) -> None:
    disk = Disk(room)
    file = LineFile(tmp_path / "lines", disk.said.append, disk.write)
    for number in range(3):
        file.append(b"line %d" % number)
        file.flush()
    told = (
        f"warning: cannot write to '{tmp_path}/lines': {os.strerror(errno.ENOSPC)}: the run continues, and its lines "
        "wait in memory"
    )
    assert disk.said == [told]
    assert (tmp_path / "lines").read_bytes() == b"line 0\nline 1\nline 2\n"[:room]
    disk.room = 1000
    file.flush()
    assert disk.said[1:] == [f"'{tmp_path}/lines' can be written to again"]
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"line 0\nline 1\nline 2\n"


def test_an_interrupt_within_a_write_doubles_nothing(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines", write=InterruptedDisk().write)
    file.append(b"first line")
    with pytest.raises(KeyboardInterrupt):
        file.flush()
    file.append(b"second line")
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"first line\nsecond line\n"


def test_a_file_is_one_writers(tmp_path: Path) -> None:
    first, second = LineFile(tmp_path / "lines"), LineFile(tmp_path / "lines")
    first.open()
    with pytest.raises(UsageError, match="is in use by a run that is not over"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_lines_go_on_behind_those_of_another_life_and_can_be_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthree\n")
    file = LineFile(path)
    assert file.cut(8) == b"three\n"
    file.append(b"four")
    assert file.size() == 13
    file.close()
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    assert LineFile(path).cut(100) == b""


@dataclass
class Attempts:
    """Writes that are refused for as long as some are left to be."""

    room: DiskRoom
    refusals: int
    made: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        self.made.append(1)
        if self.refusals:
            self.refusals -= 1
            self.room.refuse(OSError(errno.EDQUOT, ""), 10)


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_only_room_ends_what_it_is_called_for(code: int, expected: bool) -> None:
    room = DiskRoom(Path("run"))
    assert room.refuse(OSError(code, os.strerror(code)), 5) is expected
    assert room.is_lacking is expected


def test_the_most_that_is_missing_counts_and_an_empty_write_counts_too() -> None:
    room = DiskRoom(Path("run"))
    room.refuse(OSError(errno.ENOSPC, ""), 0)
    assert room.needed == 1
    room.refuse(OSError(errno.ENOSPC, ""), 500)
    room.refuse(OSError(errno.ENOSPC, ""), 50)
    assert room.needed == 500


def test_nothing_is_tried_before_there_is_room_for_it() -> None:
    free = [499]
    room = DiskRoom(Path("run"), free=lambda path: free[0])
    room.refuse(OSError(errno.ENOSPC, ""), 500)
    attempts = Attempts(room, refusals=1)
    assert not room.try_again(attempts)
    assert not attempts.made
    free[0] = 500
    # A quota may refuse it all the same.
    assert not room.try_again(attempts)
    assert room.is_lacking
    assert room.try_again(attempts)
    assert not room.is_lacking
    assert len(attempts.made) == 2


def test_a_person_reads_where_what_is_missing() -> None:
    room = DiskRoom(Path("runs/a"), free=lambda path: 1500)
    room.refuse(OSError(errno.ENOSPC, ""), 3000)
    assert room.text == (
        "the run pauses: the disk of 'runs/a' is full: it needs 3 KiB, and 1 KiB are free; make room, and it continues "
        "by itself"
    )


def test_the_system_is_asked_for_what_is_free(tmp_path: Path) -> None:
    assert DiskRoom(tmp_path).free(tmp_path) > 0
