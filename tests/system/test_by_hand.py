"""A server and workers that a person starts, in any order."""

import json
import os
import signal

import pytest

from lockstep.cli.main import run
from tests.system.jobs import BRIEF, ENDLESS, gated_model, hold
from tests.system.processes import GONE_S, Place


def test_the_server_first(place: Place) -> None:
    address = place.address()
    server = place.start("server", *BRIEF, "--bind", address, "--run-dir", "run")
    assert server.line_with("listening") == f"listening on {address}; start workers with:"
    assert server.line_with("lockstep worker") == f"  lockstep worker {address}"
    assert server.line_with("waiting") == f"waiting for workers: 0 of 1 are ready, at {address}"
    worker = place.start("worker", address)
    assert worker.end()[0::2] == (0, f"connecting to {address}\njoined run run as worker 0\nthe run is done\n")
    code, out, error = server.end()
    assert (code, error) == (0, "")
    assert "test accuracy" in out
    assert place.is_empty(0.0)


def test_a_worker_may_join_later_and_a_status_tells_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    server, address = place.serve(*ENDLESS)
    assert run(["status", address]) == 0
    assert "waiting for workers: 0 of 1 are ready" in capsys.readouterr().out
    first = place.start("worker", address, "--workers", "1", "--apart")
    server.line_with("epoch 1/")
    second = place.start("worker", address, "--workers", "1", "--apart")
    assert "worker 1 (host" in server.line_with("joined")
    assert run(["status", address, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [worker["pid"] for worker in status["workers"]] == [first.popen.pid, second.popen.pid]
    assert status["run"] == "run"
    second.send(signal.SIGTERM)
    assert second.end(GONE_S)[0] == 130
    server.line_with("worker 1 (host")  # left, interrupted, and perhaps in the middle of a message
    server.interrupt()
    assert first.end(GONE_S)[0::2] == (
        1,
        f"connecting to {address}\njoined run run as worker 0\nerror: the run failed: interrupted\n",
    )
    assert place.is_empty(0.0)


@pytest.mark.parametrize("transport", ["shm", pytest.param("ipc", marks=pytest.mark.slow)])
def test_who_computes_while_the_server_ends_is_told_why_it_did(place: Place, transport: str) -> None:
    gate = place.folder / "gate"
    os.mkfifo(gate)
    model = gated_model(place.folder, gate, is_training=True)
    flags = ("--model", model, "--micro-batches", "1", "--transport", transport, "--run-dir", "run")
    server, address = place.serve(*BRIEF, *flags)
    worker = place.start("worker", address)
    held = hold(gate, worker.popen)  # as soon as the worker stands there, in its only piece
    server.interrupt()
    # Its result meets nobody; what it was told before waits for it.
    os.close(held)
    code, _, error = worker.end(GONE_S)
    assert (code, error.splitlines()[-1]) == (1, "error: the run failed: interrupted")


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "ipc"])
def test_an_address_in_use_is_told_and_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bind: str
) -> None:
    monkeypatch.chdir(place.folder)
    server = place.start("server", *BRIEF, "--bind", place.address() if bind == "ipc" else bind)
    address = server.line_with("lockstep worker").split()[-1]
    server.line_with("waiting for workers")
    before = sorted(place.folder.rglob("*"))
    assert run(["server", *BRIEF, "--bind", address]) == 2
    assert capsys.readouterr().err.startswith(f"error: address '{address}' is in use")
    assert sorted(place.folder.rglob("*")) == before
    server.send(signal.SIGTERM)
    assert server.end(GONE_S)[0] == 130
    assert place.is_empty(0.0)


def test_a_worker_with_other_data_is_sent_away_and_says_why(place: Place) -> None:
    server, address = place.serve(*BRIEF)
    server.line_with("waiting for workers")
    # The server has loaded it; the worker will find another, or none.
    (place.folder / "tiny.npz").unlink()
    code, _, error = place.start("worker", address).end()
    assert code == 2
    assert error.splitlines()[-1].startswith("error: tiny.npz: cannot be read")
    server.line_with("left: tiny.npz: cannot be read")
    server.interrupt()


def test_a_worker_without_the_data_is_sent_its_samples_and_keeps_them(place: Place) -> None:
    keys = ("--bind", place.address(), "--run-dir")
    there = place.start("server", *BRIEF, *keys, "with")
    there.line_with("waiting for workers")
    assert place.start("worker", keys[1]).end()[0] == there.end()[0] == 0
    for number in range(2):
        keys = ("--bind", place.address(), "--run-dir")
        server = place.start("server", *BRIEF, "--set", "ship_data=true", *keys, f"without-{number}")
        server.line_with("waiting for workers")
        data = (place.folder / "tiny.npz").rename(place.folder / "elsewhere.npz")
        worker = place.start("worker", keys[1], "--cache", "cache").end()
        assert worker[0] == 0, worker
        assert server.end()[0] == 0
        data.rename(place.folder / "tiny.npz")
    runs = [place.result(run) for run in ("with", "without-0", "without-1")]
    assert len({run["weights_sha256"] for run in runs}) == 1
    (kept,) = (place.folder / "cache").iterdir()
    assert {path.name for path in kept.iterdir()} >= {"train.images", "train.labels", "train.marks", "test.images"}
