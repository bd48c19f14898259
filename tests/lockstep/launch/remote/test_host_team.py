"""The ranks of one host as a team: where they meet, who leads, and who does after a death."""

import errno
import fcntl
import os
import stat
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import UsageError
from lockstep.launch.remote.host_team import FIRST_S, LEADER, HostTeam
from lockstep.launch.remote.launcher import LauncherPlace

PLACE = LauncherPlace(launcher="Slurm", rank=4, size=8, host="a", port=5555, local_rank=0, local_size=4)


def team(root: Path, local_rank: int = 0) -> HostTeam:
    return HostTeam.of(msgspec.structs.replace(PLACE, rank=4 + local_rank, local_rank=local_rank), root)


def no_pause(seconds: float) -> None:
    """Let no time pass."""


def test_all_ranks_of_a_host_meet_in_one_private_folder_and_other_runs_in_others(tmp_path: Path) -> None:
    assert team(tmp_path, 0).folder == team(tmp_path, 3).folder
    others = (
        msgspec.structs.replace(PLACE, port=5556),
        msgspec.structs.replace(PLACE, host="b"),
        msgspec.structs.replace(PLACE, local_size=3),
    )
    assert len({HostTeam.of(place, tmp_path).folder for place in (PLACE, *others)}) == 4
    with team(tmp_path).led():
        assert stat.S_IMODE(team(tmp_path).folder.stat().st_mode) == 0o700
        assert [path.name for path in tmp_path.iterdir()] == [team(tmp_path).folder.name]


def test_the_others_wait_for_the_first_and_not_for_ever(tmp_path: Path) -> None:
    waited: list[float] = []
    assert not team(tmp_path, 1).is_made(waited.append)
    assert sum(waited) == pytest.approx(FIRST_S)
    first = team(tmp_path)

    def come(seconds: float) -> None:
        first.folder.mkdir(mode=0o700)

    assert team(tmp_path, 1).is_made(come)


def test_while_the_first_leads_nobody_else_does_and_its_end_is_everybodys(tmp_path: Path) -> None:
    first, second = team(tmp_path), team(tmp_path, 1)
    with first.led():
        assert first.leads
        assert second.is_made(no_pause)
        assert not second.is_left()
    assert second.is_left()
    assert (first.leads, second.leads) == (False, False)
    assert not list(tmp_path.iterdir())


def test_one_of_the_others_leads_in_the_place_of_a_first_one_that_was_killed(tmp_path: Path) -> None:
    first, second, third = (team(tmp_path, local_rank) for local_rank in range(3))
    with first.led():
        # What the system does for a process that is killed, and nobody removes the folder.
        first.let_go()
        assert second.is_left()
        assert second.leads
        assert not third.is_left()
        with second.led():
            assert not third.is_left()
        assert third.is_left()
        assert not third.leads


def test_a_folder_that_is_left_of_a_killed_run_will_do(tmp_path: Path) -> None:
    with team(tmp_path).led():
        kept = {path.name for path in team(tmp_path).folder.iterdir()}
        (tmp_path / "kept").mkdir()
        team(tmp_path).folder.rename(tmp_path / "kept")
    (tmp_path / "kept").rename(team(tmp_path).folder)
    with team(tmp_path).led():
        assert {path.name for path in team(tmp_path).folder.iterdir()} >= kept


def test_two_runs_cannot_lead_one_team(tmp_path: Path) -> None:
    with (
        team(tmp_path).led(),
        pytest.raises(UsageError, match="another run of this address"),
        team(tmp_path).led(),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = team(tmp_path).folder
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="not a private folder"):
        team(tmp_path, 1).is_made(no_pause)
    with pytest.raises(UsageError, match="not a private folder"), team(tmp_path).led():
        raise AssertionError


def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    with team(tmp_path).led():
        other = replace(team(tmp_path, 1), user=os.getuid() + 1)
        with pytest.raises(UsageError, match="not a private folder of this user"):
            other.is_made(no_pause)
        with pytest.raises(UsageError, match="not a private folder of this user"), other.led():
            raise AssertionError


def test_who_gets_the_lock_of_a_folder_that_was_removed_meanwhile_leads_nobody(tmp_path: Path) -> None:
    first = team(tmp_path)

    def lock_at_last(descriptor: int, how: int) -> None:
        ending.close()
        fcntl.flock(descriptor, how)

    with ExitStack() as ending:
        ending.enter_context(first.led())
        second = replace(team(tmp_path, 1), lock_file=lock_at_last)
        before = len(os.listdir("/proc/self/fd"))
        assert not second.take_lead()
        # Neither the lock of the first is open any more, nor one of ours.
        assert len(os.listdir("/proc/self/fd")) == before - 1
    assert not second.leads
    assert second.is_left()
    assert not list(tmp_path.iterdir())


def test_a_leader_that_ends_while_another_process_asks_for_its_lock_has_left(tmp_path: Path) -> None:
    def refuse_and_end(descriptor: int, how: int) -> None:
        ending.close()
        raise BlockingIOError

    with ExitStack() as ending:
        ending.enter_context(team(tmp_path).led())
        second = replace(team(tmp_path, 1), lock_file=refuse_and_end)
        assert second.is_left()
        assert not second.leads


def test_who_finds_a_leader_keeps_no_file_open(tmp_path: Path) -> None:
    with team(tmp_path).led():
        before = len(os.listdir("/proc/self/fd"))
        assert not team(tmp_path, 1).take_lead()
        assert len(os.listdir("/proc/self/fd")) == before


class Watched(HostTeam):
    """Notes whether its folder is there when it lets others lead."""

    was_there: bool | None = None

    def let_go(self) -> None:
        self.was_there = self.folder.exists()
        super().let_go()


def test_the_folder_is_gone_before_another_process_can_lead_in_it(tmp_path: Path) -> None:
    watched = Watched(PLACE, team(tmp_path).folder)
    with watched.led():
        pass
    assert watched.was_there is False


def test_of_two_that_make_the_folder_at_once_the_first_counts_and_the_other_leaves_nothing(tmp_path: Path) -> None:
    first, second = team(tmp_path), team(tmp_path)
    with first.led():
        made = first.folder.stat()
        second._make()
        assert os.path.samestat(first.folder.stat(), made)
        assert list(tmp_path.iterdir()) == [first.folder]


def test_a_lock_that_leads_elsewhere_is_not_taken(tmp_path: Path) -> None:
    first = team(tmp_path)
    first._make()
    (tmp_path / "elsewhere").touch()
    (first.folder / LEADER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        first.take_lead()


def test_a_file_in_the_place_of_the_folder_is_not_used(tmp_path: Path) -> None:
    team(tmp_path).folder.touch()
    team(tmp_path).folder.chmod(0o700)
    with pytest.raises(UsageError, match="not a private folder"):
        team(tmp_path, 1).is_made(no_pause)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_folder_is_not_used_wherever_it_leads(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
    team(tmp_path).folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a private folder"):
        team(tmp_path, 1).is_made(no_pause)
    with pytest.raises(UsageError, match="not a private folder"), team(tmp_path).led():
        raise AssertionError


def test_a_folder_that_cannot_be_made_is_reported_with_its_reason(tmp_path: Path) -> None:
    nowhere = team(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError), nowhere.led():
        raise AssertionError
