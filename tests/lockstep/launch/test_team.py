"""A team's processes: the flags of each, and their supervisor, which restarts and ends them, and passes on reports."""

import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.process_backend import LocalBackend
from lockstep.launch.supervision.channel import ChildReport, EndReport
from lockstep.launch.supervision.child import Crew, ProcessLog, WatchedProcess
from lockstep.launch.supervision.restarts import USAGE, ProcessPlace
from lockstep.launch.team import MOST_RESTARTS, TeamSupervisor, team_arguments
from tests.lockstep.launch.processes import Pretended


def flag(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_a_worker_of_one_process_meets_nobody(tmp_path: Path) -> None:
    assert team_arguments(tmp_path / "team", 0, 1) == ["--workers", "1"]
    assert not (tmp_path / "team").exists()


def test_the_processes_of_a_team_meet_in_one_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "team"
    found = [team_arguments(folder, process, 3) for process in range(3)]
    assert [flag(words, "--process") for words in found] == ["0", "1", "2"]
    assert {(flag(words, "--workers"), flag(words, "--team")) for words in found} == {("3", str(folder))}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir())


#: Workers and audit -> how many teams there are, and how many processes are in the last one.
TEAMS = {
    "one": (RunOptions(workers=1), 1, 1),
    "one team": (RunOptions(workers=4), 1, 4),
    "an audit needs another worker": (RunOptions(workers=4, audit=0.01), 4, 1),
    "more than a team may have": (RunOptions(workers=PROCESSES_LIMIT + 3), 2, 3),
}


@pytest.mark.parametrize(("launch", "teams", "last"), TEAMS.values(), ids=TEAMS)
def test_how_workers_are_divided_into_teams(launch: RunOptions, teams: int, last: int) -> None:
    backend = LocalBackend(launch)
    assert -(-backend.workers // backend.team_size) == teams
    assert backend.workers - (teams - 1) * backend.team_size == last


class Scene:
    """A team of processes that end when a test says so, which happens while the supervisor pauses."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.clock = folder, ManualClock()
        self.running: dict[int, Pretended] = {}
        self.started: list[int] = []
        self.said: list[str] = []
        self.forwarded: list[ChildReport] = []
        self.script: Iterator[None] = iter(())
        self.supervisor = TeamSupervisor(
            Crew(self._start), processes, self.clock, self.said.append, self.forwarded.append, self._pause
        )

    def _start(self, place: ProcessPlace) -> WatchedProcess:
        number = place.number
        self.started.append(number)
        name = "a process of the team" if number else "the leader"
        self.running[number] = Pretended(name, ProcessLog.at_end_of(self.folder / f"{number}"))
        return self.running[number]

    def _pause(self, seconds: float) -> None:
        self.clock.advance(seconds)
        next(self.script)

    def run(self, script: Iterator[None]) -> int:
        self.script = script
        return self.supervisor.run()


@pytest.mark.parametrize("code", [0, 1, USAGE, 130])
def test_the_leaders_end_is_everybodys(tmp_path: Path, code: int) -> None:
    scene = Scene(tmp_path, 3)

    def script() -> Iterator[None]:
        yield
        scene.running[0].fail("why")
        scene.running[0].ended, scene.running[1].ended = code, 0
        yield

    assert scene.run(script()) == code
    assert scene.said == []
    assert scene.forwarded == [EndReport(text="why")]
    assert scene.started == [0, 1, 2]
    assert [scene.running[number].received for number in range(3)] == [[], [], [signal.SIGTERM]]


def test_who_is_killed_is_started_again_and_the_others_stay(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)

    def script() -> Iterator[None]:
        scene.running[1].ended = -9
        while scene.started != [0, 1, 1]:
            yield
        scene.running[0].ended = -9
        while scene.started != [0, 1, 1, 0]:
            yield
        assert scene.running[1].ended is None
        scene.running[0].ended = 0
        yield

    assert scene.run(script()) == 0
    assert scene.said == [
        "a process of the team (pid 4711) was killed by SIGKILL; it is restarted",
        "the leader (pid 4711) was killed by SIGKILL; it is restarted",
    ]
    assert scene.clock.now() < 1.0


def test_who_ends_with_its_leader_is_not_missed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)

    def script() -> Iterator[None]:
        # The supervisor sees this end first, and waits for the other one.
        scene.running[1].ended, scene.running[0].ends_soon = 1, True
        yield
        yield

    assert scene.run(script()) == 1
    assert scene.said == []
    assert scene.started == [0, 1]


def test_a_process_that_cannot_take_part_is_left_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)

    def script() -> Iterator[None]:
        scene.running[1].fail("no data")
        scene.running[1].ended = USAGE
        for _ in range(1000):
            yield
        scene.running[0].ended = 0
        yield

    assert scene.run(script()) == 0
    assert scene.said == ["a process of the team (pid 4711) ended with exit code 2: no data; it is not restarted"]
    assert scene.started == [0, 1]


def test_a_leader_that_crashes_again_and_again_is_given_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)

    def script() -> Iterator[None]:
        while True:
            scene.running[0].ended = -4
            yield

    assert scene.run(script()) == 128 + 4
    assert scene.started.count(0) == 1 + MOST_RESTARTS
    assert scene.said[-1].endswith("was killed by SIGILL; it is not restarted")


def test_who_is_interrupted_ends_all_of_them(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 3)

    def script() -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.run(script())
    assert [scene.running[number].received for number in range(3)] == [[signal.SIGTERM]] * 3
