"""Servers that other machines can reach, with real processes: who takes part, who does not, and what each is told."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.transport.auth.keys import KeyFolder, read_key
from lockstep.common.transport.zeromq.ports import dial
from tests.lockstep.common.transport.zeromq import zmtp
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import Place, Process


@pytest.fixture
def keys(place: Place) -> Path:
    """A folder of keys for two workers."""
    return KeyFolder.create(place.folder / "keys", ["one", "two"]).path


def started(place: Place, *flags: str) -> tuple[Process, str]:
    """Return a server with keys that all machines can reach, and where this one does."""
    server = place.start("server", *flags, "--bind", "tcp://0.0.0.0:0", "--keys", "keys", "--run-dir", "run")
    port = server.line_with("listening").partition(";")[0].rpartition(":")[2]
    assert server.line_with("lockstep worker").endswith(f":{port} --key FILE")
    return server, f"tcp://127.0.0.1:{port}"


def test_a_worker_with_an_unknown_key_says_so_and_the_run_goes_on(place: Place, keys: Path) -> None:
    server, address = started(place, *ENDLESS)
    place.start("worker", address, "--key", "keys/one.key")
    server.line_with("epoch 1/")
    other = KeyFolder.create(place.folder / "others", ["three"]).path / "three.key"
    other.write_text(other.read_text().replace(read_key(other).server, read_key(keys / "server.key").pair.public))
    code, _, error = place.start("worker", address, "--key", str(other)).end()
    assert code == 2
    assert "does not admit the key" in error.splitlines()[-1]
    server.line_with("its key '")
    server.line_with("epoch ")
    with closing(dial(address, credential=read_key(keys / "two.key").client())):
        assert run(["status", address, "--key", str(keys / "two.key")]) == 0
    server.interrupt()


def test_a_status_tells_how_many_were_not_let_in(place: Place, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, address = started(place, *ENDLESS)
    assert run(["status", address, "--timeout", "0.5"]) == 1
    assert "requires a key" in capsys.readouterr().err
    refused = 0
    # By hand, since ZeroMQ's own client may break its connection off first, and is not counted then.
    with zmtp.connected(address) as stranger:
        stranger.sendall(zmtp.greeting(b"NULL"))
        assert zmtp.is_closed(stranger)
        while not refused:
            assert run(["status", address, "--json", "--key", str(keys / "one.key")]) == 0
            refused = json.loads(capsys.readouterr().out)["refused"]
    server.interrupt()


@pytest.mark.parametrize("arguments", [["worker", "tcp://127.0.0.1:1"], ["doctor", "--connect", "tcp://127.0.0.1:1"]])
def test_nobody_works_with_the_key_of_the_server(
    keys: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run([*arguments, "--key", str(keys / "server.key")]) == 2
    assert "is the key of the server" in capsys.readouterr().err


def test_each_key_is_made_with_who_needs_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(place.folder / "made")
    assert run(["keys", "create", folder, "--name", "worker-1"]) == 0
    assert run(["keys", "add", folder, "worker-2"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"move {folder}/worker-1.key to a worker, and start it with --key worker-1.key",
        f"made {folder}/worker-2.key; move it to a worker, and start it with --key worker-2.key",
    ]


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0"])
def test_without_keys_nothing_is_served_to_others(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bind: str
) -> None:
    monkeypatch.chdir(place.folder)
    assert run(["server", *BRIEF, "--bind", bind, "--run-dir", "run"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err
    assert run(["server", *BRIEF, "--bind", bind, "--insecure", "--keys", "keys"]) == 2
    assert "--keys and --insecure contradict each other" in capsys.readouterr().err
    assert not (place.folder / "run").exists()


def test_insecure_is_warned_of(place: Place) -> None:
    server = place.start("server", *BRIEF, "--bind", "tcp://0.0.0.0:0", "--insecure")
    assert server.line_with("warning").endswith("any process that reaches this address can take part in the run")
    server.interrupt()


def test_trains_own_tcp_is_for_its_own_processes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    train = place.start("train", *ENDLESS, "--workers", "1", "--transport", "tcp")
    train.line_with("epoch 1/")
    (pid,) = place.pids("lockstep worker tcp")
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    address = command[command.index("worker") + 1]
    assert address.startswith("tcp://127.0.0.1:")
    assert run(["status", address, "--timeout", "0.5"]) == 1
    assert "belongs to `lockstep train`: it admits only the workers that it started" in capsys.readouterr().err
    train.interrupt()
    assert place.is_empty(0.0)


def test_a_key_of_a_person_is_none_of_trains_own_workers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KEY", "absent.key")
    monkeypatch.setenv("LOCKSTEP_KEYS", "absent")
    assert "LOCKSTEP_KEY" in os.environ
    assert place.start("train", *BRIEF, "--workers", "1").end()[0] == 0
