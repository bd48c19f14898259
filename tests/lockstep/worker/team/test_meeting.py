"""Where processes of a team meet: who is rung wakes up, and all read the same session."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from lockstep.common.errors import SharingError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import open_run
from lockstep.worker.team.meeting import MeetingPlace, Session, announce
from tests.simulation.small import digits, job_of


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[MeetingPlace]]:
    MeetingPlace.create(tmp_path, 3)
    MeetingPlace.create(tmp_path, 3)  # a supervisor that begins again finds it made
    found = [MeetingPlace.open(tmp_path, process, 3) for process in range(3)]
    yield found
    for place in found:
        place.close()


def test_a_ring_that_came_before_the_wait_is_not_lost_and_wakes_once(places: list[MeetingPlace]) -> None:
    for _ in range(3):
        places[0].ring(2)
    assert places[2].wait(60.0)
    assert not places[2].wait(0.0)
    assert not places[1].wait(0.0)


def test_one_that_does_not_read_keeps_nobody_waiting(places: list[MeetingPlace]) -> None:
    for _ in range(100_000):
        places[0].ring(1)
    assert places[1].wait(0.0)


def test_a_process_that_is_started_again_hears_what_was_rung_meanwhile(
    places: list[MeetingPlace], tmp_path: Path
) -> None:
    places[2].close()
    places[2].close()  # once more is nothing
    places[0].ring(2)
    places[2] = MeetingPlace.open(tmp_path, 2, 3)
    assert places[2].wait(0.0)


def test_a_session_is_told_to_all(places: list[MeetingPlace]) -> None:
    assert places[2].session() is None
    welcome = open_run("run", job_of(), digits(), RunOptions()).info.welcome(4)
    for number, session in enumerate(
        (Session(welcome=welcome, folder="/dev/shm/x", shared_root="/dev/shm"), Session(code=130)), 1
    ):
        assert announce(places[1], session) == number
        assert [place.session() for place in places] == [replace(session, number=number)] * 3
        assert [place.wait(0.0) for place in places] == [True, False, True]


def test_another_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(SharingError, match="is not where a team of 2 meets"):
        MeetingPlace.open(tmp_path, 0, 2)


def test_only_this_user_can_ring(places: list[MeetingPlace], tmp_path: Path) -> None:
    assert [os.stat(tmp_path / f"bell-{process}").st_mode & 0o777 for process in range(3)] == [0o600] * 3


def test_a_process_is_the_only_one_of_its_number_until_it_closes(places: list[MeetingPlace], tmp_path: Path) -> None:
    bell = os.open(tmp_path / "bell-1", os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(bell, fcntl.LOCK_EX | fcntl.LOCK_NB)
        places[1].close()
        fcntl.flock(bell, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(bell)
