"""Whoever starts processes again knows two commands, and not who leads: any order of deaths ends with the same bits."""

import signal
from pathlib import Path

import pytest

from lockstep.cli.main import run
from tests.system.hosts import seconds_pass
from tests.system.processes import GONE_S, Place, Process
from tests.system.test_faults import OFTEN, calm, job, kill

#: Long enough for a standby to report to its server that it has all of the run.
REPORTED_S = 2.0


def send(number: signal.Signals, workers: list[Process]) -> None:
    """Send a signal to all workers: those that are stopped cannot end the run too early."""
    for worker in workers:
        worker.send(number)


def until_mirrored(follower: Process) -> None:
    """Wait until a standby can lead the run, and the server knows that; all workers are stopped."""
    follower.line_with("has the checkpoint of step ")
    seconds_pass([follower.popen], REPORTED_S)


@pytest.mark.slow
def test_two_servers_that_are_started_again_by_the_same_commands(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    flags = (*job(2000), *OFTEN)
    expected = calm(2000)
    one, two = (f"ipc://{place.temporary}/{name}" for name in ("one", "two"))
    how = ("--transport", "ipc", "--takeover-seconds", "1", "--min-workers", "2")
    first = ("server", *flags, *how, "--bind", one, "--run-dir", "first", "--standbys", two)
    second = ("server", "--standby-of", one, "--bind", two, "--run-dir", "second")
    server = place.start(*first)
    server.line_with("lockstep worker ")
    standby = place.start(*second)
    workers = [place.start("worker", f"{one},{two}", "--workers", "1", "--apart") for _ in range(2)]
    server.line_with("epoch 5/")
    send(signal.SIGSTOP, workers)
    until_mirrored(standby)

    kill(server.popen.pid)
    send(signal.SIGCONT, workers)
    standby.line_with("takes over, from step ")
    standby.line_with("epoch ")
    send(signal.SIGSTOP, workers)
    server = place.start(*first)
    assert server.line_with("the run goes on at ").endswith("kept in first-term-1")
    until_mirrored(server)

    # As a node that is drained: the run is handed over, and whoever starts processes again hears that it is not over.
    standby.send(signal.SIGTERM)
    send(signal.SIGCONT, workers)
    assert standby.end()[0] == 130
    server.line_with("takes over, from step ")
    server.line_with("epoch ")
    send(signal.SIGSTOP, workers)

    # Nobody is left who could lead the run but the one that led it last: it does so again.
    kill(server.popen.pid)
    server = place.start(*first)
    server.line_with("resumes after step ")
    standby = place.start(*second)
    assert standby.line_with("the run goes on at ").endswith("kept in second-term-2")
    until_mirrored(standby)
    send(signal.SIGCONT, workers)

    for process in (server, standby):
        code, out, error = process.end()
        assert (code, error) == (0, ""), (out, error)
    assert [worker.end()[0] for worker in workers] == [0, 0]
    assert place.digest("first") == place.digest("second") == expected
    assert run(["ledger", str(place.folder / "first")]) == 0
    code, out, _ = place.start(*first).end()
    assert code == 0
    assert "is already finished" in out
    assert place.is_empty(GONE_S)


@pytest.mark.slow
def test_a_server_whose_disk_is_lost_does_not_begin_the_run_again(place: Place) -> None:
    flags = (*job(1000), *OFTEN)
    expected = calm(1000)
    one, two = (f"ipc://{place.temporary}/{name}" for name in ("one", "two"))
    how = ("--transport", "ipc", "--takeover-seconds", "1")
    first = ("server", *flags, *how, "--bind", one, "--run-dir", "first", "--standbys", two)
    server = place.start(*first)
    server.line_with("lockstep worker ")
    standby = place.start("server", "--standby-of", one, "--bind", two, "--run-dir", "second")
    worker = place.start("worker", f"{one},{two}", "--workers", "1", "--apart")
    server.line_with("epoch 5/")
    worker.send(signal.SIGSTOP)
    until_mirrored(standby)
    kill(server.popen.pid)
    Path(place.folder / "first").rename(place.folder / "lost")
    # Before the standby leads the run.
    server = place.start(*first)
    server.line_with("standby of ")
    worker.send(signal.SIGCONT)
    standby.line_with("takes over, from step ")
    for process in (standby, server):
        assert process.end()[0] == 0
    assert worker.end()[0] == 0
    assert place.digest("first") == place.digest("second") == expected
