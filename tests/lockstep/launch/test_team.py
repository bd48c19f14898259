"""A team's processes: the flags of each, and their supervisor, which restarts and ends them, and passes on reports."""

import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.interrupts import Terminated, interrupt
from lockstep.common.statemachine.client import Exit
from lockstep.launch.process_backend import LocalBackend
from lockstep.launch.supervision.channel import ChildReport, EndReport
from lockstep.launch.supervision.child import Crew, ProcessLog, WatchedProcess
from lockstep.launch.supervision.restarts import USAGE, ProcessPlace
from lockstep.launch.team import (
    FIRST_LOOKS,
    MOST_RESTARTS,
    MachineTeam,
    TeamSupervisor,
    TeamView,
    team_arguments,
)
from lockstep.worker.team.meeting import MeetingPlace, Session
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
            Crew(self._start), range(processes), self.clock, self.said.append, self.forwarded.append, self._pause
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

    def run(self, script: Iterator[None]) -> int | None:
        self.script = script
        return self.supervisor.run()


def test_an_interrupt_while_a_team_that_is_over_ends_its_processes_is_not_lost(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)

    class EndsMeanwhile(Pretended):
        def end(self, grace_s: float) -> None:
            signal.raise_signal(signal.SIGTERM)
            super().end(grace_s)

    def start(place: ProcessPlace) -> WatchedProcess:
        scene.running[place.number] = EndsMeanwhile("a process", ProcessLog.at_end_of(tmp_path / f"{place.number}"))
        return scene.running[place.number]

    scene.supervisor.crew.start = start
    scene.supervisor.is_over = lambda: True
    before = signal.signal(signal.SIGTERM, lambda *_: interrupt(is_terminated=True))
    try:
        with pytest.raises(Terminated):
            scene.run(iter(()))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [len(process.graces) for process in scene.running.values()] == [1, 1]


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


def test_processes_of_another_commands_leader_end_once_their_team_is_over(tmp_path: Path) -> None:
    scene, is_over = Scene(tmp_path, 2), [False]
    scene.supervisor.numbers, scene.supervisor.is_over = (1, 2), lambda: is_over[0]

    def script() -> Iterator[None]:
        scene.running[2].ended = -9
        while scene.started != [1, 2, 2]:
            yield
        # Dismissed by their leader, and not to be restarted.
        scene.running[1].ended, is_over[0] = 130, True
        yield

    assert scene.run(script()) is None
    assert scene.said == ["a process of the team (pid 4711) was killed by SIGKILL; it is restarted"]
    assert (scene.running[1].received, scene.running[2].received) == ([], [signal.SIGTERM])


#: Of a command that fills a team of two, and of one that adds so many: the processes, and up to which size.
PLAIN, ONE_MORE, TWO_MORE = (2, 2), (1, PROCESSES_LIMIT), (2, PROCESSES_LIMIT)


class Command:
    """One command of a machine, until it ends."""

    def __init__(
        self, root: Path, size: tuple[int, int], run: str = "tcp://h:1", *, expected: int = 1, lowest: int = 0
    ) -> None:
        self.said: list[str] = []
        self._stack = ExitStack()
        self.team = self._stack.enter_context(
            MachineTeam.of(run, *size, root, self.said.append, expected=expected, lowest=lowest)
        )

    def look(self) -> TeamView:
        """Look twice: a leader believes a size that it has seen twice."""
        self.team.look()
        return self.team.look()

    def end(self) -> None:
        """End, in whatever way: the system releases its locks."""
        self._stack.close()


def places_of(*commands: Command) -> list[tuple[int, ...]]:
    """Return the processes that each runs, after all have looked, the first of them first and last."""
    views = [command.look() for command in (*commands, *commands)][len(commands) :]
    assert len({(view.folder, view.size) for view in views}) == 1
    return [view.numbers for view in views]


def test_a_plain_second_command_waits_and_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = Command(tmp_path, PLAIN), Command(tmp_path, PLAIN)
    assert places_of(first, second) == [(0, 1), ()]
    before = first.look()
    assert (before.size, before.folder) == (2, second.look().folder)
    first.end()
    after = second.look()
    # Elsewhere: processes of the first may not have ended yet.
    assert (after.numbers, after.size) == ((0, 1), 2)
    assert after.folder not in (None, before.folder)
    second.end()
    assert not list(tmp_path.iterdir())


def test_commands_that_add_processes_are_one_team_and_the_lowest_leads(tmp_path: Path) -> None:
    first, second, third = (Command(tmp_path, size) for size in (PLAIN, TWO_MORE, ONE_MORE))
    assert places_of(first, second) == [(0, 1), (2, 3)]
    assert places_of(first, second, third) == [(0, 1), (2, 3), (4,)]
    assert sorted(path.name for path in third.team.folder.path.glob("team-*"))[-1].endswith("-5")
    second.end()
    assert places_of(first, third) == [(0, 1), (2,)]
    first.end()
    assert places_of(third) == [(0,)]
    second = Command(tmp_path, PLAIN)
    assert places_of(third, second) == [(0,), (1,)]
    third.end()
    # It has wanted two all the time.
    assert places_of(second) == [(0, 1)]
    second.end()


def test_a_size_counts_once_it_is_seen_twice(tmp_path: Path) -> None:
    first = Command(tmp_path, ONE_MORE)
    assert (first.team.look().folder, first.team.look().size) == (None, 1)
    second = Command(tmp_path, ONE_MORE)
    assert second.team.look().numbers == ()
    assert first.team.look().size == 1
    second.end()
    assert first.look().size == 1
    assert len(list(first.team.folder.path.glob("team-*"))) == 1
    first.end()


def ranks(root: Path, *local_ranks: int) -> list[Command]:
    """Return ranks of a launcher that has started three on this host."""
    return [Command(root, (1, 3), expected=3, lowest=int(rank > 0)) for rank in local_ranks]


def test_the_ranks_of_a_host_are_one_team_once_all_have_come_and_the_first_leads_it(tmp_path: Path) -> None:
    third, second = ranks(tmp_path, 2, 1)
    assert [command.look().numbers for command in (third, second)] == [(), ()]
    (first,) = ranks(tmp_path, 0)
    assert sorted(places_of(third, second, first)) == [(0,), (1,), (2,)]
    assert first.look().numbers == (0,)
    assert [path.name for path in first.team.folder.path.glob("team-*")] == ["team-1-3"]
    first.end()
    assert sorted(places_of(third, second)) == [(0,), (1,)]
    for command in (second, third):
        command.end()


def test_ranks_that_do_not_come_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    (second,) = ranks(tmp_path, 1)
    for _ in range(FIRST_LOOKS // 2):
        assert second.look().folder is None
    second.look()
    assert second.look().numbers == (0,)
    assert second.look().size == 1
    second.end()


def test_a_team_has_no_other_size_while_its_run_ends(tmp_path: Path) -> None:
    first, second = Command(tmp_path, PLAIN), Command(tmp_path, ONE_MORE)
    places_of(first, second)
    before = first.look()
    assert before.folder is not None
    MeetingPlace(before.folder, 0, 1).publish(Session(number=2, code=1, reason="the run failed"))
    second.end()
    assert first.look() == before
    first.end()


def test_another_run_has_a_team_of_its_own(tmp_path: Path) -> None:
    first, second = Command(tmp_path, PLAIN), Command(tmp_path, PLAIN, "tcp://h:2")
    assert first.look().numbers == second.look().numbers == (0, 1)
    second.end()
    assert [path == first.team.folder.path for path in tmp_path.iterdir()] == [True]
    first.end()


def test_a_team_that_was_left_by_commands_that_were_killed_is_swept(tmp_path: Path) -> None:
    killed = Command(tmp_path, PLAIN)
    left = killed.look().folder
    assert left is not None
    MeetingPlace(left, 0, 1).publish(Session(number=7, code=0))
    # As the system does it, with nothing removed.
    for lock in killed.team._locks.values():
        lock.close()
    killed.team.folder.close()
    assert left.exists()
    team = Command(tmp_path, PLAIN)
    assert not left.exists()
    assert team.look().ended is None
    team.end()


#: The leader's end -> how a command ends that has waited, None if it leads the team instead.
ENDS = {
    "well": (Session(number=2, code=0), Exit(code=0, reason="")),
    "failed": (Session(number=2, code=1, reason="the run failed"), Exit(code=1, reason="the run failed")),
    "interrupted": (Session(number=2, code=130, reason="interrupted"), None),
}


@pytest.mark.parametrize(("session", "ended"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("is_left", [False, True])
def test_a_command_ends_as_the_leader_of_another_one(
    tmp_path: Path, session: Session, ended: Exit | None, is_left: bool
) -> None:
    first, second = Command(tmp_path, PLAIN), Command(tmp_path, PLAIN)
    places_of(first, second)
    folder = first.look().folder
    assert folder is not None
    MeetingPlace(folder, 0, 1).publish(session)
    if is_left:
        first.end()
    seen = list[TeamView]()

    def supervise(view: TeamView, is_past: Callable[[], bool]) -> int | None:
        assert not is_past()
        seen.append(view)
        return 3

    second.team.pause = lambda seconds: None if is_left else first.end()
    assert second.team.run(supervise) == (ended or Exit(code=3, reason=""))
    assert [view.numbers for view in seen] == ([(0, 1)] if ended is None else [])
    first.end()
    second.end()


def test_a_command_says_what_it_does_unless_it_is_alone(tmp_path: Path) -> None:
    first = Command(tmp_path, PLAIN)

    def done(view: TeamView, is_past: Callable[[], bool]) -> int | None:
        return 0

    first.team.pause = lambda seconds: None
    assert first.team.run(done) == Exit(code=0, reason="")
    assert first.said == []
    second, third = Command(tmp_path, TWO_MORE), Command(tmp_path, PLAIN)
    places_of(first, second)
    for command in (first, second):
        assert command.team.run(done).code == 0
    lines = [f"this command has started 2 of the {size} processes of this machine" for size in (4, 2)]
    assert first.said == [f"{lines[0]}, and leads them"]
    assert second.said == [lines[0]]
    second.end()
    third.team.pause = lambda seconds: first.end()
    assert third.team.run(done).code == 0
    waiting = "waiting: other commands have started the processes of this machine, and this one replaces them"
    assert third.said == [waiting, f"{lines[1]}, and leads them"]
    third.end()
