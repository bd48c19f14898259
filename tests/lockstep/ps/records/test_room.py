"""A full disk is told from other failures, and is over only when what was missing could be written."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.ps.records.run_folder import DiskRoom


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
