"""What processes of a run use: of those that are ours and belong to it, and of nobody else's."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("psutil", reason="processes are looked at by psutil: .venv/bin/pip install -e '.[watch]'")

from lockstep.results.watch.processes import USE_S, ProcessWatch, WorkerView

HERE = socket.gethostname()


@pytest.fixture
def start() -> Iterator[object]:
    """Start processes that look like those of a run and wait until the test ends."""
    with ExitStack() as stack:

        def started(*words: str) -> int:
            code = "import sys; print(flush=True); sys.stdin.read()"
            command = [sys.executable, "-c", code, *words]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert process.stdout is not None
            process.stdout.readline()
            return process.pid

        yield started


def leader(pid: int, rank: int = 3, first: int = 4, host: str = HERE) -> WorkerView:
    return WorkerView(rank=rank, host=host, pid=pid, first=first, state="busy", is_gone=False, reason="", share=0.5)


def team(start, name: str, process: int) -> int:  # type: ignore[no-untyped-def]  # a fixture
    address = "ipc:///tmp/one/server.sock"
    return int(start("lockstep", "worker", address, "--process", f"{process}", "--team", f"/tmp/one/{name}"))


def test_a_team_and_its_server_are_found_by_its_leader(start) -> None:  # type: ignore[no-untyped-def]  # a fixture
    server = start("lockstep", "server", "--bind", "ipc:///tmp/one/server.sock")
    pids = [team(start, "a", 0), team(start, "a", 1)]
    start("lockstep", "server", "--bind", "ipc:///tmp/two/server.sock")
    team(start, "b", 1)
    watch = ProcessWatch()
    found = watch.look([leader(pids[0])], 1.0)
    assert {(one.name, one.number, one.pid) for one in found} == {
        ("server", None, server),
        ("worker 3.0", 4, pids[0]),
        ("worker 3.1", 5, pids[1]),
    }
    assert all(one.memory_bytes > 2**20 and one.cpu is None for one in found)
    assert watch.look([], 1.0 + USE_S / 2) == found
    later = watch.look([leader(pids[0])], 1.0 + USE_S)
    assert all(one.cpu is not None for one in later)


def test_the_processes_of_another_user_are_not_looked_at(start) -> None:  # type: ignore[no-untyped-def]  # a fixture
    start("lockstep", "server", "--bind", "ipc:///tmp/one/server.sock")
    one = leader(team(start, "a", 0))
    assert {one.name for one in ProcessWatch(user=os.getuid()).look([one], 1.0)} == {"server", "worker 3.0"}
    assert ProcessWatch(user=os.getuid() + 1).look([one], 1.0) == []


def test_a_number_that_is_none_of_ours_is_not_looked_at(start) -> None:  # type: ignore[no-untyped-def]  # a fixture
    pid = team(start, "a", 0)
    strangers = [leader(os.getpid()), leader(2**30), leader(pid, host="elsewhere")]
    assert [ProcessWatch().look([one], 1.0) for one in strangers] == [[], [], []]
