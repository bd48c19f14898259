"""What an agent does on its machine, asked as an engine would ask it."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.keys import SERVER, KeyFolder
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.launch.remote.agent import Core, LaunchAgent, TeamPlaces, children_of, signal_family
from lockstep.launch.supervision.channel import ChildReport, EndReport, NoticeReport, decode_report
from lockstep.launch.supervision.child import Child
from lockstep.launch.supervision.restarts import USAGE
from tests.system.processes import GONE_S, is_gone

#: Seconds within which a command ends that only says what is wrong, and a team has started.
SAID_S = 60.0

#: A worker whose server is never there.
ALONE = ["worker", "tcp://127.0.0.1:9", "--timeout", "600"]


def last_look(agent: LaunchAgent) -> tuple[int | None, str]:
    """Look until the process is gone; return its code and all its words."""
    deadline, told = SystemClock().now() + SAID_S, b""
    while SystemClock().now() < deadline:
        _, _, words, _, code = agent.news(len(told), 0)
        told += words
        if code is not None:
            return code, told.decode()
    return None, told.decode()


def own_folders() -> set[Path]:
    """Return the folders that agents of this process have now."""
    return set(Path(tempfile.gettempdir()).glob(f"lockstep-{os.geteuid()}-{os.getpid()}-*"))


def test_a_command_finds_its_key_in_a_folder_of_its_own_that_goes_with_it(tmp_path: Path) -> None:
    before = own_folders()
    agent = LaunchAgent("a worker", ["worker", "tcp://127.0.0.1:9", "--workers", "2"], "secret", str(tmp_path))
    (folder,) = own_folders() - before
    assert stat.S_IMODE((folder / SERVER).stat().st_mode) == 0o600
    pid, host, *_ = agent.news(0, 0)
    assert pid > 0
    assert host
    code, told = last_look(agent)
    assert code == USAGE, told
    assert f"{folder / SERVER}" in told
    assert agent.news(len(told), 0)[2:] == (b"", [], USAGE)
    assert agent.end(3) == told.encode()[3:]
    assert own_folders() == before


def test_a_signal_reaches_all_processes_of_a_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody is left who could remove the folder of the team: whatever ends next there does.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    key = KeyFolder.create(tmp_path / "keys", ["worker"]).path / "worker.key"
    agent = LaunchAgent("a worker", [*ALONE, "--workers", "3"], key.read_text(), str(tmp_path))
    pid, deadline = agent.news(0, 0)[0], SystemClock().now() + SAID_S
    # The three, and their template.
    while len(team := children_of(pid)) < 4 and SystemClock().now() < deadline:
        continue
    assert len(team) == 4
    agent.send(signal.SIGKILL)
    assert all(is_gone(one, GONE_S) for one in (pid, *team))
    agent.send(signal.SIGKILL)
    assert agent.news(0, 0)[4] == -signal.SIGKILL
    agent.end(0)


@dataclass
class Ending:
    """A process that writes its last words and ends when it is asked whether it has."""

    log: Path
    pid: int = 1
    code: int = 3

    def has_ended(self) -> bool:
        self.log.write_bytes(b"last words")
        return True

    def end(self, grace_s: float) -> None:
        """Do nothing."""

    def reports(self) -> list[ChildReport]:
        return [NoticeReport(text="one"), NoticeReport(text="two")]


def test_the_last_words_of_a_process_come_with_its_code(tmp_path: Path) -> None:
    agent = LaunchAgent("a worker", ["worker"], "secret", str(tmp_path / "elsewhere"))
    agent._child = cast(Child, Ending(agent._log))
    # The first report is that of the agent, which found no folder.
    assert agent.news(5, 2)[2:] == (b"words", [b'{"type":"notice","text":"two"}'], 3)
    agent.end(0)


@dataclass
class Gone(Ending):
    """One that ends just after it was asked whether it has."""

    def has_ended(self) -> bool:
        return False


def test_a_signal_to_a_process_that_has_just_ended_is_none(tmp_path: Path) -> None:
    agent = LaunchAgent("a worker", ["worker"], "secret", str(tmp_path / "elsewhere"))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    agent._child = cast(Child, Gone(agent._log, process.pid))
    agent.send(0)
    agent.end(0)


#: Starts processes without a pause, each of which ends with the pipe.
STARTS = """
import subprocess, sys
while True:
    subprocess.Popen([sys.executable, "-Sc", "import sys; sys.stdin.read()"], stdin=0)
    print(flush=True)
"""


def test_a_signal_misses_no_process_that_starts_meanwhile() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        signal_family(parent.pid, signal.SIGSTOP)
        stopped = children_of(parent.pid)
        assert stopped
        signal_family(parent.pid, signal.SIGKILL)
        # The pipe is closed once none is left that could write to it.
        parent.stdout.read()


def test_what_an_agent_that_was_killed_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = SharedFolder.create(Path(tempfile.gettempdir()))
    left.close()
    LaunchAgent("a worker", ["worker"], "secret", str(tmp_path / "elsewhere")).end(0)
    assert not left.path.exists()


def test_a_working_folder_that_is_not_there_is_told_by_a_look(tmp_path: Path) -> None:
    agent = LaunchAgent("a worker", ["worker"], "secret", str(tmp_path / "elsewhere"))
    pid, host, words, (line,), code = agent.news(0, 0)
    assert (pid, code) == (0, USAGE)
    report = decode_report(line)
    assert isinstance(report, EndReport)
    assert report.text.startswith(f"{host}: no folder '{tmp_path}/elsewhere' here")
    assert words.decode() == f"error: {report.text}\n"
    agent.send(signal.SIGTERM)
    assert agent.end(len(words)) == b""


def cores(*numbers: int) -> set[Core]:
    return {(0, number) for number in numbers}


def taken(places: TeamPlaces) -> list[tuple[str, list[Core]]]:
    """Take all places that there are."""
    found = []
    while (place := places.take()) is not None:
        found.append(place)
    return found


def test_a_node_is_one_team_of_all_cores_there() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(3, 1), "b": cores(2)}
    places.look(nodes, set())
    places.look(nodes, set())
    assert not places.is_empty
    assert taken(places) == [("a", [(0, 1), (0, 3)]), ("b", [(0, 2)])]
    assert places.is_empty


def test_a_node_that_still_gets_cores_has_to_wait_and_no_other() -> None:
    places = TeamPlaces(256)
    places.look({"a": cores(1), "b": cores(2)}, set())
    places.look({"a": cores(1, 3), "b": cores(2)}, set())
    assert taken(places) == [("b", [(0, 2)])]
    places.look({"a": cores(1, 3), "b": cores(2)}, cores(2))
    assert taken(places) == [("a", [(0, 1), (0, 3)])]


def test_cores_of_a_team_are_free_at_once_when_it_has_ended() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(1, 2)}
    places.look(nodes, set())
    places.look(nodes, cores(1, 2))
    assert taken(places) == []
    places.look(nodes, set())
    assert taken(places) == [("a", [(0, 1), (0, 2)])]


def test_cores_that_come_later_are_a_team_of_their_own() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(1, 2, 3)}
    for _ in range(2):
        places.look(nodes, cores(1, 2))
    assert taken(places) == [("a", [(0, 3)])]


def test_a_node_that_is_gone_has_no_place() -> None:
    places = TeamPlaces(256)
    for nodes in ({"a": cores(1)}, {"a": cores(1)}, {"b": cores(1)}):
        places.look(nodes, set())
    assert taken(places) == []


def test_no_team_has_more_processes_than_it_may_have() -> None:
    places, nodes = TeamPlaces(2), {"a": cores(1, 2, 3, 4, 5)}
    for _ in range(2):
        places.look(nodes, set())
    assert [[number for _, number in held] for _, held in taken(places)] == [[1, 2], [3, 4], [5]]
