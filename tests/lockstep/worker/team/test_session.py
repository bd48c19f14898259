"""How a team comes to share memory: the leader makes it where there is room, and tells the others, which map it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from lockstep.common.aggregation.slices import frames_of
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import SharingError
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import WEIGHTS, TeamShape
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.setup import open_run
from lockstep.worker.compute import Compute
from lockstep.worker.setup import LoadedRun, gather
from lockstep.worker.team.meeting import Session, announce
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.memory import RESULT
from lockstep.worker.team.session import LeaderSetup, _check_room, follow, lead, shape_of
from tests.lockstep.worker.team.crew import Alone
from tests.lockstep.worker.team.noticeboard import BoardMeeting, Noticeboard, Recorder, context, welcome_to
from tests.simulation.small import digits, job_of, load_digits

#: Folders in which there is no room: one that is not there, and one of a file system without any.
FULL = {"missing": Path("/proc/lockstep-none"), "full": Path("/proc")}


def loaded(welcome: Welcome) -> LoadedRun:
    return gather(welcome, load_digits)


def team(board: Noticeboard, memory: Path, welcome: Welcome, root: Path | None = None) -> tuple[LeaderSetup, Session]:
    """Return what the leader of a team of two has, and what it has announced."""
    setup = lead(welcome, loaded(welcome), context(BoardMeeting(board, 0), [memory], Recorder(), root=root))
    assert board.session is not None
    return setup, board.session


def second(board: Noticeboard, memory: Path, session: Session) -> TeamMember:
    """Return what the other process of the team has."""
    welcome = session.welcome
    assert welcome is not None
    return follow(session, welcome, loaded(welcome), context(BoardMeeting(board, 1), [memory], Recorder()), process=1)


def weights_of(compute: Compute) -> tuple[Vector, Vector]:
    """Return the two vectors of weights that somebody computes with in turn."""
    assert compute.slots
    return compute.slots


def ready(member: TeamMember) -> list[int]:
    """Return for which session each process is ready."""
    found: list[int] = member.memory.marks.processes["ready"].tolist()
    return found


@contextmanager
def serving(memory: Path) -> Iterator[tuple[Welcome, ServerSharedMemory]]:
    """Give the welcome of a server that shares its memory, which is in that folder."""
    opening, sharing = share(open_run("run", job_of(), digits(), RunOptions()), memory)
    try:
        yield opening.info.welcome(0), sharing
    finally:
        sharing.close()


def test_a_session_is_announced_when_its_memory_is_there_and_the_others_map_the_same(memory: Path) -> None:
    board, welcome = Noticeboard(), welcome_to()
    leader, session = team(board, memory, welcome)
    assert (session.number, session.welcome, session.shared_root) == (1, welcome, "")
    assert board.rung == [1]
    assert leader.folder is not None
    assert session.folder == str(leader.folder.path)
    other = second(board, memory, session)
    assert other.waking.meeting == BoardMeeting(board, 1)
    assert leader.member is not None
    assert leader.member.waking.meeting == BoardMeeting(board, 0)
    assert ready(leader.member) == [1, 1]
    weights_of(leader.compute)[1][:] = 7.0
    assert weights_of(other.compute)[1].tolist() == weights_of(leader.compute)[1].tolist()
    other.memory.vector(1, 0)[:3] = 5.0
    assert leader.member.memory.vector(1, 0)[:3].tolist() == [5.0] * 3
    other.close()
    leader.close()
    assert list(memory.iterdir()) == []


def test_who_takes_part_has_memory_for_its_first_sums_and_for_the_slices_that_it_adds_up(memory: Path) -> None:
    """What it is given first is then not refused in the middle of an order."""
    board = Noticeboard()
    leader, session = team(board, memory, welcome_to())
    file = Path(session.folder) / "process-1"
    before = file.stat().st_blocks
    other = second(board, memory, session)
    taken, stride = file.stat().st_blocks, other.memory.own.shape.stride // 512
    assert taken - before == 2 * stride
    for vector in (0, RESULT):
        other.memory.own.vectors[vector][:] = 1.0
    assert file.stat().st_blocks == taken
    other.close()
    leader.close()


def test_a_member_is_ready_for_the_session_that_was_announced(memory: Path) -> None:
    board, welcome = Noticeboard(), welcome_to()
    announce(BoardMeeting(board, 0), Session(welcome=welcome))
    leader, session = team(board, memory, welcome)
    assert session.number == 2
    assert leader.member is not None
    assert ready(leader.member) == [2, 0]
    other = second(board, memory, session)
    assert ready(leader.member) == [2, 2]
    assert (leader.member.pace.session, other.pace.session) == (2, 2)
    other.close()
    leader.close()


def test_each_session_has_a_higher_number_than_the_one_before() -> None:
    board, welcome = Noticeboard(), welcome_to()
    meeting, numbers = BoardMeeting(board, 0), []
    for is_last in (False, True, False):
        if is_last:
            announce(meeting, Session(code=3))
        else:
            announce(meeting, Session(welcome=welcome))
        assert board.session is not None
        numbers.append(board.session.number)
    assert numbers == [1, 2, 3]


def test_a_run_is_foretold_without_memory_and_the_end_without_a_run() -> None:
    board, welcome = Noticeboard(), welcome_to()
    announce(BoardMeeting(board, 0), Session(welcome=welcome))
    assert board.session == Session(number=1, welcome=welcome)
    announce(BoardMeeting(board, 0), Session(code=2, reason="no"))
    assert board.session == Session(number=2, code=2, reason="no")
    assert board.rung == [1, 1]


def test_a_leader_that_was_started_again_makes_memory_of_its_own(memory: Path) -> None:
    board, welcome = Noticeboard(), welcome_to()
    first, _ = team(board, memory, welcome)
    again, session = team(board, memory, welcome)
    assert session.number == 2
    assert again.folder is not None
    assert first.folder is not None
    assert again.folder.path != first.folder.path
    first.close()
    again.close()


def test_a_team_that_shares_the_servers_memory_has_its_weights_and_no_others(memory: Path) -> None:
    board = Noticeboard()
    with serving(memory) as (welcome, _):
        leader, session = team(board, memory, welcome, root=memory)
        assert session.shared_root == str(memory)
        assert leader.folder is not None
        assert not (leader.folder.path / WEIGHTS).exists()
        other = second(board, memory, session)
        assert other.place is not None
        assert weights_of(other.compute)[0].tobytes() == weights_of(leader.compute)[0].tobytes()
        assert leader.shared is not None
        assert leader.compute.slots is leader.shared.slots
        other.close()
        leader.close()


def test_if_the_servers_memory_is_gone_the_team_has_weights_of_its_own_and_knows_why(memory: Path) -> None:
    with serving(memory) as (welcome, _):
        pass
    leader, session = team(Noticeboard(), memory, welcome, root=memory)
    assert leader.shared is None
    assert f"cannot be opened here: {os.strerror(errno.ENOENT)}" in leader.obstacle
    assert (Path(session.folder) / WEIGHTS).exists()
    assert session.shared_root == ""
    leader.close()


@pytest.mark.parametrize(("is_alone", "has_room"), [(True, True), (False, True), (False, False)])
def test_sums_that_the_servers_do_not_see_are_sent_in_the_frames_of_all_servers(
    memory: Path, is_alone: bool, has_room: bool
) -> None:
    welcome = msgspec.structs.replace(welcome_to(), shards=["tcp://h:2"])
    meeting = None if is_alone else BoardMeeting(Noticeboard(), 0)
    leader = lead(welcome, loaded(welcome), context(meeting, [memory if has_room else FULL["full"]], Recorder()))
    assert (leader.member is None) is (is_alone or not has_room)
    assert leader.compute.frames == frames_of(leader.compute.layout.size, 2)
    leader.close()


@pytest.mark.parametrize("full", FULL.values(), ids=FULL)
def test_without_room_at_the_first_place_a_team_is_at_the_second(memory: Path, full: Path) -> None:
    board, welcome, recorder = Noticeboard(), welcome_to(), Recorder()
    leader = lead(welcome, loaded(welcome), context(BoardMeeting(board, 0), [full, memory], recorder))
    assert recorder.said == []
    assert leader.folder is not None
    assert leader.folder.path.parent == memory
    leader.close()


def test_without_room_anywhere_the_leader_says_so_and_computes_alone() -> None:
    board, welcome, recorder = Noticeboard(), welcome_to(), Recorder()
    leader = lead(welcome, loaded(welcome), context(BoardMeeting(board, 0), [*FULL.values()][::-1], recorder))
    (said,) = recorder.said
    assert said.startswith("warning: only one of 2 processes computes: /proc has no room for the ")
    assert said.endswith("make it larger (for a container, --shm-size)")
    assert (board.session, leader.member, leader.folder) == (None, None, None)
    alone = Alone.of(welcome.job)
    expected, tally, _ = alone.train(0, Node(0, 4))
    weights_of(leader.compute)[0][:] = weights_of(alone.compute)[0]
    leader.compute.turn(0)
    sums, found = leader.compute.train(0, Node(0, 4))
    assert (sums.tobytes(), found) == (expected.tobytes(), tally)
    leader.close()


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_shape_of_a_teams_memory_follows_from_the_run(clip_norm: float | None) -> None:
    job = msgspec.structs.replace(welcome_to().job, clip_norm=clip_norm)
    welcome = msgspec.structs.replace(welcome_to(), job=job, metric_sums=7)
    assert shape_of(welcome, 3, 100, 2) == TeamShape(
        processes=3, micro_batches=job.micro_batches, size=100, clips=clip_norm is not None, metrics=7, makers=2
    )


def test_a_team_needs_room_for_the_weights_and_two_vectors_a_process() -> None:
    shape = shape_of(welcome_to(), 3, 10**8, 2)
    # Of 400 MB each: six of three processes, two of weights, and a little for the marks.
    with pytest.raises(
        SharingError, match=r"^/proc has no room for the 305[2-9] MiB of a team of 3 \(0 MiB are free\)"
    ):
        _check_room(FULL["full"], shape)


def test_one_process_that_shares_no_memory_makes_none_and_says_nothing(memory: Path) -> None:
    welcome, recorder = welcome_to(), Recorder()
    leader = lead(welcome, loaded(welcome), context(None, [memory], recorder))
    assert leader.member is None
    assert (recorder.said, list(memory.iterdir())) == ([], [])
    leader.close()


def test_one_process_that_shares_the_servers_memory_is_a_team_without_a_meeting(memory: Path) -> None:
    with serving(memory) as (welcome, _):
        leader = lead(welcome, loaded(welcome), context(None, [memory], Recorder(), root=memory))
        assert leader.member is not None
        assert ready(leader.member) == [1]
        leader.close()


@pytest.mark.parametrize("missing", ["", "marks", WEIGHTS, "process-1"], ids=["all", "marks", "weights", "vectors"])
def test_memory_that_is_gone_is_an_error_and_leaves_nothing_open(memory: Path, missing: str) -> None:
    board = Noticeboard()
    leader, session = team(board, memory, welcome_to())
    if missing:
        (found,) = Path(session.folder).glob(f"*{missing}*")
        found.unlink()
    else:
        leader.close()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SharingError, match="cannot be opened"):
        second(board, memory, session)
    assert len(os.listdir("/proc/self/fd")) <= before
    if missing:
        leader.close()
