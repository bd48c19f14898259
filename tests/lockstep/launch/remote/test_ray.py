"""`lockstep train --on ray`, on a cluster of one-core nodes that are all on this machine."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import child_environment
from tests.system.alone import digest_alone
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import GONE_S, Place, is_gone

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: .venv/bin/pip install -e '.[ray]'"
    ),
    # On a busy machine the cluster alone takes minutes to start, which counts for the first test.
    pytest.mark.timeout(900),
]

#: Seconds for what Ray does with a node that comes or goes, and a run on it.
RAY_S = 600.0

#: Seconds within which Ray has given back what a run held.
SETTLED_S = 30.0

#: A job that lasts until Ray has noticed that a node is gone, and one of some seconds.
LENET = ("--model", "lenet", "--epochs", "2")
SHORT = ("--model", "lenet", "--global-batch", "32", "--steps", "300")


@dataclass
class Ray:
    """The program that holds the cluster."""

    process: "subprocess.Popen[str]"
    folder: Path
    clients: int
    address: str = ""
    nodes: int = 0
    place: Place = field(init=False)

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def ours(self, command: str) -> list[int]:
        """Return the processes of runs on the nodes, whose command is this one."""
        return self.place.pids(f"lockstep {command} ")

    def workers(self, count: int) -> list[int]:
        """Wait until a run has so many workers; return them."""
        deadline = SystemClock().now() + RAY_S
        while len(found := self.ours("worker")) != count:
            assert SystemClock().now() < deadline, f"{len(found)} workers, not {count}"
        return found

    def left(self, *, but_folders: bool = False) -> list[str]:
        """Return what of ours is left on the nodes a while after a run, in words."""
        pids = [pid for command in ("server", "worker", "shard") for pid in self.ours(command)]
        lasting = [f"process {pid}" for pid in pids if not is_gone(pid, GONE_S)]
        deadline = SystemClock().now() + SETTLED_S
        # Ray tells of cores that were given back a moment later, and hears of a driver's death by its own means.
        while (held := self.ask("held")) != "0 cores, 0 groups" and SystemClock().now() < deadline:
            continue
        held_too = [] if held == "0 cores, 0 groups" else [held]
        folders = [] if but_folders else [str(path) for path in self.folder.glob("lockstep-*")]
        return lasting + held_too + folders


@pytest.fixture(scope="module")
def three() -> Iterator[Ray]:
    """A cluster of three one-core nodes, and a head without a core."""
    # Short, for the paths of Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        clients = bound.getsockname()[1]
    place = Place(folder, folder)
    environ = {
        **child_environment(),
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "LOCKSTEP_TEST": place.mark,
    }
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ray_nodes.py")), "3", str(clients)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environ,
        )
    ray = Ray(process, folder, clients)
    ray.place = place
    assert process.stdout is not None
    try:
        ray.address = process.stdout.readline().strip()
        assert ray.address, (folder / "errors").read_text()
        yield ray
    finally:
        process.communicate(timeout=RAY_S)
        for pid in place.pids():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


def test_three_nodes_come_to_the_bits_of_one_process_and_are_left_as_they_were(place: Place, three: Ray) -> None:
    train = place.start(
        "train", "--on", "ray", "--workers", "3", *BRIEF, "--run-dir", "run", environ={"RAY_ADDRESS": three.address}
    )
    code, out, error = train.end(RAY_S)
    assert (code, error) == (0, ""), (out, error)
    assert place.digest() == digest_alone(*BRIEF)
    assert "throughput" in out
    assert {"server.log", "worker-0.log", "worker-2.log"} <= {path.name for path in (place.folder / "run").iterdir()}
    assert three.left() == []


def test_an_interrupt_leaves_nothing_running(place: Place, three: Ray) -> None:
    train = place.start(
        "train", "--on", "ray", "--workers", "2", *ENDLESS, "--run-dir", "run", environ={"RAY_ADDRESS": three.address}
    )
    train.line_with("epoch 2/")
    assert len(three.ours("worker")) == 2
    train.send(signal.SIGINT)
    code, out, error = train.end(4 * GONE_S)
    assert (code, error.strip()) == (130, "error: interrupted")
    assert "lockstep train --resume run" in out
    assert three.left() == []
    assert place.is_empty(0.0)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_running(place: Place, three: Ray) -> None:
    train = place.start(
        "train", "--on", "ray", "--workers", "2", *ENDLESS, "--run-dir", "run", environ={"RAY_ADDRESS": three.address}
    )
    train.line_with("epoch 2/")
    train.send(signal.SIGKILL)
    train.end(RAY_S)
    assert three.left(but_folders=True) == []
    # Of processes that Ray killed; the next run removes them.
    again = place.start(
        "train", "--on", "ray", "--workers", "3", *BRIEF, "--run-dir", "again", environ={"RAY_ADDRESS": three.address}
    )
    assert again.end(RAY_S)[0] == 0
    assert three.left() == []


@pytest.mark.slow
def test_a_wrong_job_is_told_as_on_one_machine(place: Place, three: Ray) -> None:
    flags = ("--on", "ray", "--workers", "1", "--model", "gone.py:build")
    code, _, error = place.start("train", *flags, "--run-dir", "run", environ={"RAY_ADDRESS": three.address}).end(RAY_S)
    assert (code, error.count("\n")) == (2, 1)
    assert "model file 'gone.py' cannot be read" in error
    assert three.left() == []


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(place: Place, three: Ray) -> None:
    """With all cores in use: its own has to be free for the next one."""
    flags = ("--on", "ray", "--workers", "3")
    train = place.start("train", *flags, *ENDLESS, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    train.line_with("epoch 2/")
    victim, *others = three.ours("worker")
    os.kill(victim, signal.SIGKILL)
    assert is_gone(victim, GONE_S)
    assert set(others) < set(three.workers(3))
    train.send(signal.SIGINT)
    assert train.end(4 * GONE_S)[0] == 130
    assert three.left() == []


@pytest.mark.slow
def test_a_run_grows_and_shrinks_with_the_cluster(place: Place, three: Ray) -> None:
    flags = ("--on", "ray", "--workers", "2..16")
    train = place.start("train", *flags, *ENDLESS, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    train.line_with("epoch 2/")
    three.workers(3)
    added = three.ask("add 1")
    three.workers(4)
    assert three.ask(f"remove {added}") == "done"
    three.workers(3)
    train.line_with("is gone with its node")
    train.send(signal.SIGINT)
    assert train.end(4 * GONE_S)[0] == 130
    assert three.left(but_folders=True) == []
    # What a node left that was killed, the next run there removes.
    flags = ("--on", "ray", "--workers", "3")
    train = place.start("train", *flags, *BRIEF, "--run-dir", "next", environ={"RAY_ADDRESS": three.address})
    assert train.end(RAY_S)[0] == 0
    assert three.left() == []


@pytest.mark.slow
def test_a_run_for_which_there_is_no_room_says_so_and_can_be_interrupted(place: Place, three: Ray) -> None:
    flags = ("--on", "ray", "--workers", "9")
    train = place.start("train", *flags, *BRIEF, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    train.line_with("waiting for room for 9 workers: Ray has 3 cores in all")
    train.send(signal.SIGTERM)
    assert train.end(4 * GONE_S)[0] == 130
    assert three.left() == []


@pytest.mark.slow
def test_a_node_that_goes_and_one_that_comes_change_nothing(place: Place, three: Ray) -> None:
    flags = ("--on", "ray", "--workers", "2..4")
    train = place.start("train", *flags, *LENET, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    train.line_with("epoch 1/")
    victim = three.ask(f"holder {three.ours('worker')[0]}")
    assert three.ask(f"remove {victim}") == "done"
    three.ask("add 1")
    code, out, error = train.end(RAY_S)
    assert (code, error) == (0, ""), (out, error)
    assert "is gone with its node; its micro-batches go to the others" in out
    assert place.digest() == digest_alone(*LENET)
    assert three.left(but_folders=True) == []


@pytest.mark.slow
def test_the_server_is_here_and_one_that_is_killed_is_back_from_the_checkpoint(place: Place, three: Ray) -> None:
    flags = ("--on", "ray", "--workers", "2", "--set", "checkpoint_every_steps=10")
    train = place.start("train", *flags, *SHORT, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    deadline = SystemClock().now() + RAY_S
    while not list((place.folder / "run").glob("checkpoints/*.safetensors")):
        assert SystemClock().now() < deadline
    (server,) = place.pids("lockstep server ")
    os.kill(server, signal.SIGKILL)
    train.line_with("the server (pid")
    train.line_with("resumes after step ")
    code, out, error = train.end(RAY_S)
    assert (code, error) == (0, ""), (out, error)
    assert place.digest() == digest_alone(*SHORT)
    assert three.left() == []


@pytest.mark.slow
def test_the_cores_of_a_node_are_a_team_whose_killed_process_is_back_without_the_run_noticing(
    place: Place, three: Ray
) -> None:
    flags = ("--on", "ray", "--workers", "3..5", "--run-dir", "run")
    train = place.start("train", *flags, *ENDLESS, environ={"RAY_ADDRESS": three.address})
    train.line_with("epoch 2/")
    three.workers(3)
    added = three.ask("add 2")
    # Two processes that compute, and the one that starts them.
    team = set(three.workers(6)) - {pid for pid in three.ours("worker") if three.ask(f"holder {pid}") != added}
    assert len(team) == 3
    victim = max(team)
    os.kill(victim, signal.SIGKILL)
    assert is_gone(victim, GONE_S)
    back = set(three.workers(6)) - {victim}
    assert team - {victim} < back
    train.send(signal.SIGINT)
    assert train.end(4 * GONE_S)[0] == 130
    assert three.ask(f"remove {added}") == "done"
    logs = "".join(path.read_text() for path in (place.folder / "run").glob("worker-*.log"))
    assert f"a process of the team (pid {victim}) was killed by SIGKILL; it is restarted" in logs
    assert three.left() == []


@pytest.mark.slow
def test_faults_on_purpose_are_done_to_whole_teams_and_change_nothing(place: Place, three: Ray) -> None:
    added = three.ask("add 2")
    flags = ("--on", "ray", "--workers", "5", "--chaos", "kill-worker=2 stop-worker=1 slow-worker=1 kill-server=1")
    train = place.start("train", *flags, *SHORT, "--run-dir", "run", environ={"RAY_ADDRESS": three.address})
    code, out, error = train.end(RAY_S)
    assert (code, error) == (0, ""), (out, error)
    assert "chaos: injected 5 of 5 faults" in out
    assert place.digest() == digest_alone(*SHORT)
    assert three.ask(f"remove {added}") == "done"
    assert three.left(but_folders=True) == []


@pytest.mark.slow
def test_a_client_from_outside_trains_with_two_servers(place: Place, three: Ray) -> None:
    where = f"ray://127.0.0.1:{three.clients}"
    train = place.start("train", "--on", where, "--workers", "2", "--servers", "2", *BRIEF, "--run-dir", "run")
    code, out, error = train.end(RAY_S)
    assert (code, error) == (0, ""), (out, error)
    assert place.digest() == digest_alone(*BRIEF)
    assert three.left() == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--on", "spark"), "--on 'spark' is not a cluster: expected ray, or ray://HOST:10001"),
        (("--on", "ray://head"), "--on 'ray://head' is not a cluster: expected ray, or ray://HOST:10001"),
        (
            ("--on", "ray", "--workers", "0"),
            "workers = 0, which trains in this process alone, has no use for a cluster",
        ),
        (("--on", "ray", "--transport", "ipc"), "transport = 'ipc' cannot reach other machines: expected auto or tcp"),
        (
            ("--workers", "4..2"),
            "invalid value for '--workers': '4..2' is not a number of workers: expected one as 4, or",
        ),
        (
            ("--workers", "two"),
            "invalid value for '--workers': 'two' is not a number of workers: expected one as 4, or F",
        ),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_asked_of_ray(
    place: Place, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str
) -> None:
    assert run(["train", *flags, *BRIEF]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert sorted(path.name for path in place.folder.iterdir()) == ["tiny.npz"]


@pytest.mark.parametrize("on", ["ray", "ray://127.0.0.1:{port}"])
def test_no_cluster_is_told_in_a_line(place: Place, on: str) -> None:
    with socket.socket() as bound:
        # Bound and not listening: the port is ours, and connections are refused.
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        flags = ("--on", on.format(port=port), *BRIEF, "--run-dir", "run")
        code, _, error = place.start("train", *flags, environ={"RAY_ADDRESS": f"127.0.0.1:{port}"}).end(RAY_S)
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith("error: no Ray cluster at 'ray")
    assert f"127.0.0.1:{port} cannot be reached" in error
    assert not (place.folder / "run").exists()
