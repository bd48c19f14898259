"""Shared memory between real processes: one digest, a way out where there is no room, and nothing left behind."""

import os
import signal
from pathlib import Path

import pytest

from lockstep.common.transport.shared_memory.folder import shared_root
from tests.system.alone import digest_alone
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import GONE_S, Place, is_gone

#: Less than two slots of the linear model's weights or sums, and more than the values of any file of its run.
TOO_SHORT = 64_000


def folders(pids: list[int]) -> list[Path]:
    """Return what these processes left, or have, in shared memory."""
    return [path for pid in pids for path in shared_root().glob(f"lockstep-{os.geteuid()}-{pid}-*")]


@pytest.mark.parametrize("bind", ["tcp", pytest.param("ipc", marks=pytest.mark.slow)])
def test_workers_started_by_hand_share_whatever_the_address(place: Place, bind: str) -> None:
    address = place.address() if bind == "ipc" else "tcp://127.0.0.1:0"
    server = place.start("server", *BRIEF, "--min-workers", "2", "--bind", address, "--run-dir", "run")
    address = server.line_with("lockstep worker").split()[-1]
    workers = [place.start("worker", address, "--workers", "1", "--apart") for _ in range(2)]
    assert [worker.end()[0] for worker in workers] == [0, 0]
    assert server.end()[0] == 0
    assert place.result()["transport"] == "shm"
    assert folders([server.popen.pid]) == []


def test_without_room_for_the_weights_auto_uses_sockets_and_says_why(place: Place) -> None:
    flags = ("--workers", "2", "--run-dir", "run")
    code, out, error = place.start("train", *BRIEF, *flags, file_bytes=TOO_SHORT).end()
    assert (code, error) == (0, "")
    assert out.count("note: gradients and weights went through sockets: ") == 1
    # Nor is there room for a team, anywhere.
    assert out.count(f"warning: only one of 2 processes computes: {shared_root()} has no room for ") == 1
    assert f"{shared_root()} has no room for 0.1 MiB" in out
    assert "gradients and weights go through sockets: " in (place.folder / "run" / "server.log").read_text()
    result = place.result()
    assert result["transport"] == "ipc"
    assert result["weights_sha256"] == digest_alone(*BRIEF)


def test_without_room_for_the_weights_shm_is_an_error_of_one_line(place: Place) -> None:
    before = sorted(place.folder.rglob("*"))
    flags = ("--workers", "2", "--transport", "shm", "--run-dir", "run")
    code, out, error = place.start("train", *BRIEF, *flags, file_bytes=TOO_SHORT).end()
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {shared_root()} has no room for 0.1 MiB (")
    assert error.count("\n") == 1
    assert sorted(place.folder.rglob("*")) == before
    assert place.is_empty(0.0)


@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=pytest.mark.slow)])
def test_sockets_leave_the_memory_alone(place: Place, transport: str) -> None:
    process = place.start("train", *ENDLESS, "--workers", "1", "--transport", transport, "--run-dir", "run")
    process.line_with("epoch 1/")
    assert folders(place.pids("lockstep server")) == []
    process.interrupt()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_whatever_ends_the_command_leaves_nothing(place: Place, number: signal.Signals) -> None:
    process = place.start("train", *ENDLESS, "--workers", "2", "--transport", "shm", "--run-dir", "run")
    process.line_with("epoch 2/")
    servers = place.pids("lockstep server")
    (folder,) = folders(servers)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    process.send(number)
    process.end(GONE_S)
    assert place.is_empty(GONE_S)
    assert folders(servers) == []


def test_a_server_that_is_killed_leaves_nothing_once_its_command_has_ended(place: Place) -> None:
    shared = ["--workers", "2", "--transport", "shm", "--set", "max_restarts=0"]
    process = place.start("train", *ENDLESS, *shared, "--run-dir", "run")
    process.line_with("epoch 2/")
    servers = place.pids("lockstep server")
    os.kill(servers[0], signal.SIGKILL)
    assert process.end()[0::2] == (1, f"error: the server (pid {servers[0]}) was killed by SIGKILL\n")
    assert folders(servers) == []
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize(
    "following",
    [
        ("server", *BRIEF, "--bind", "tcp://127.0.0.1:0", "--run-dir", "next"),
        ("worker", "ipc://nobody.sock", "--timeout", "0.1"),
    ],
    ids=lambda following: following[0],
)
def test_the_memory_of_a_server_that_was_killed_is_swept_at_the_next_start_and_that_of_another_is_not(
    place: Place, following: tuple[str, ...]
) -> None:
    serving = ("server", *BRIEF, "--bind", "tcp://127.0.0.1:0", "--run-dir")
    killed, living = (place.start(*serving, name) for name in ("killed", "living"))
    for server in (killed, living):
        server.line_with("waiting for workers")
    killed.send(signal.SIGKILL)
    killed.end(GONE_S)
    started = place.start(*following)
    if following[0] == "server":
        started.line_with("waiting for workers")
    else:
        assert started.end(GONE_S)[0] == 1
    assert folders([killed.popen.pid]) == []
    assert len(folders([living.popen.pid])) == 1


@pytest.mark.slow
def test_whatever_is_killed_all_at_once_is_swept_at_the_next_start(place: Place) -> None:
    left: list[Path] = []  # not pids: in so many cycles, a process elsewhere may have one of them, and a folder
    for cycle in range(200):
        process = place.start("train", *ENDLESS, "--workers", "2", "--transport", "shm", "--run-dir", f"run{cycle}")
        process.line_with("epoch 1/")
        assert [path for path in left if path.exists()] == []
        (server,), pids = place.pids("lockstep server"), place.pids()
        (folder,) = folders([server])
        left.append(folder)
        # Stopped first, so that none sees another's end and tidies up.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        process.end(GONE_S)
        assert is_gone(server, GONE_S)  # until then, it has its folder locked
    assert place.start("train", *BRIEF, "--workers", "1", "--run-dir", "last").end()[0] == 0
    assert [path for path in left if path.exists()] == []
