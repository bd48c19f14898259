"""A server's machine may die: its run goes on at a standby, to the same bits; an old server counts for nothing."""

import os
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.lifetime import ENDING
from lockstep.ps.records.ledger import RunBegun
from lockstep.ps.records.run_folder import read_ledger
from lockstep.runs.run_dir import leads
from tests.system.hosts import hosts, seconds_pass, why_not
from tests.system.processes import GONE_S, Place, Process
from tests.system.test_faults import OFTEN, calm, job, kill

#: Seconds of silence after which workers go to the standby.
TAKEOVER_S = 1.0

#: Without it vectors would go through memory, which other hosts do not share.
OVER_SOCKETS = ("--transport", "tcp", "--takeover-seconds", str(TAKEOVER_S))


def start_all(place: Place, flags: tuple[str, ...], workers: int = 3) -> tuple[Process, Process, list[Process]]:
    """Start a server, its standby, and workers; return them once the standby has a checkpoint."""
    needed = ("--min-workers", str(workers), "--run-dir", "run")
    server = place.start("server", *flags, *OVER_SOCKETS, *needed, "--bind", "tcp://127.0.0.1:0")
    address = server.line_with("lockstep worker ").split()[2]
    bound = ("--bind", "tcp://127.0.0.1:0", "--run-dir", "mirror")
    standby = place.start("server", "--standby-of", address, *bound)
    standby.line_with("mirrors run run of")
    started = [place.start("worker", address, "--workers", "1", "--apart") for _ in range(workers)]
    until_mirrored(place, server)
    return server, standby, started


def until_mirrored(place: Place, server: Process) -> None:
    """Wait until the standby has a checkpoint: of a run whose epochs end one after the other."""
    for epoch in range(3, 1000):
        server.line_with(f"epoch {epoch}/")
        if any((place.folder / "mirror" / "checkpoints").glob("step-*.safetensors")):
            return


def ends(standby: Process, workers: list[Process]) -> None:
    code, out, error = standby.end()
    assert (code, error) == (0, ""), (out, error)
    assert [worker.end()[0] for worker in workers] == [0] * len(workers)


def test_a_run_whose_server_is_killed_goes_on_at_its_standby(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    flags = (*job(300), *OFTEN)
    expected = calm(300)
    server, standby, workers = start_all(place, flags)
    kill(server.popen.pid)
    # Its disk is lost as well.
    shutil.rmtree(place.folder / "run")
    standby.line_with("takes over, from step ")
    ends(standby, workers)
    assert place.digest("mirror") == expected
    assert run(["ledger", str(place.folder / "mirror")]) == 0
    assert place.is_empty(GONE_S)


def steps_recorded(place: Place) -> int:
    """Return how many steps the first server has recorded."""
    return (place.folder / "run" / "ledger.jsonl").read_bytes().count(b'"kind":"step"')


def counts_for_nothing(place: Place, server: Process, before: int) -> None:
    """Demand that a server that comes back makes no step, says why, and ends."""
    code, _, error = server.end()
    assert code == 1
    assert "another server leads run run in term 2, and this one in term 1" in error
    # Lines that waited are written at the end: of steps that were made before.
    assert steps_recorded(place) - before <= 20


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0, 60.0])
def test_a_server_counts_for_nothing_however_long_it_was_stopped(
    place: Place, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    flags, clock = (*job(300), *OFTEN), SystemClock()
    expected = calm(300)
    server, standby, workers = start_all(place, flags)
    began = clock.now()
    server.send(signal.SIGSTOP)
    is_succeeded = seconds > TAKEOVER_S
    if is_succeeded:
        standby.line_with("takes over, from step ")
        for worker in workers:
            # The run is not to be over before the old server is back.
            worker.send(signal.SIGSTOP)
    seconds_pass([standby.popen], max(0.0, began + seconds - clock.now()))
    before = steps_recorded(place)
    server.send(signal.SIGCONT)
    if is_succeeded:
        counts_for_nothing(place, server, before)
    for worker in workers:
        worker.send(signal.SIGCONT)
    ends(standby, workers)
    assert place.digest("mirror") == expected
    assert run(["ledger", str(place.folder / "mirror")]) == 0


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("drain", marks=pytest.mark.slow)])
def test_a_server_that_is_drained_loses_no_step(place: Place, how: str) -> None:
    flags = job(300)
    expected = calm(300)
    server, standby, workers = start_all(place, flags)
    if how == "drain":
        assert place.start("drain", server_address(place)).end()[0] == 0
    else:
        # As before a preemptible machine is stopped.
        server.send(signal.SIGTERM)
    assert server.end()[0] == 0
    ends(standby, workers)
    assert place.digest("mirror") == expected
    begun = [line for line in read_ledger(place.folder / "mirror") if isinstance(line, RunBegun)]
    assert [line.lost_steps for line in begun] == [0, 0]


def server_address(place: Place) -> str:
    """Return where the server is, as its standby was told."""
    pid = place.pids("--standby-of")[0]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return words[words.index("--standby-of") + 1]


def test_train_restarts_its_standby_and_shows_a_takeover(place: Place) -> None:
    flags = (*job(300), *OFTEN)
    expected = calm(300)
    process = place.start("train", *flags, "--workers", "2", "--standby", "--takeover-seconds", "1", "--run-dir", "run")
    process.line_with("epoch 3/")
    (server,), (standby,) = place.pids("server --job"), place.pids("--standby-of")
    os.kill(standby, signal.SIGKILL)
    process.line_with(f"a standby (pid {standby}) was killed by SIGKILL; restarting in ")
    mirrored = place.folder / "run" / "standby" / "checkpoints"
    while not (place.pids("--standby-of") and any(mirrored.glob("step-*.safetensors"))):
        process.line_with("epoch ")
    os.kill(server, signal.SIGKILL)
    process.line_with("its workers go to the standby")
    code, out, error = process.end()
    assert (code, error) == (0, ""), (out, error)
    assert place.digest() == expected
    assert place.is_empty(GONE_S)


@pytest.mark.slow
def test_train_restarts_a_standby_that_leads_and_dies_while_the_old_server_still_runs(place: Place) -> None:
    flags = (*job(450), *OFTEN)
    expected = calm(450)
    shape = ("--workers", "2", "--standby", "--takeover-seconds", "1", "--transport", "tcp", "--run-dir", "run")
    process = place.start("train", *flags, *shape)
    process.line_with("epoch 3/")
    (server,), (standby,) = place.pids("server --job"), place.pids("--standby-of")
    mirror = place.folder / "run" / "standby"
    while not any((mirror / "checkpoints").glob("step-*.safetensors")):
        process.line_with("epoch ")
    os.kill(server, signal.SIGSTOP)
    while not leads(mirror):
        process.ends_within(0.1)
    os.kill(standby, signal.SIGKILL)
    process.line_with(f"(pid {standby}) was killed by SIGKILL; restarting in ")
    code, out, error = process.end()
    assert (code, error) == (0, ""), (out, error)
    assert place.digest() == expected
    assert place.is_empty(GONE_S)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_a_signal_at_any_moment_of_a_takeover_leaves_a_run_that_ends_well_or_can_be_resumed(
    place: Place, seed: int
) -> None:
    flags, draw = (*job(150), *OFTEN), random.Random(seed)
    expected = calm(150)
    servers = ("--servers", draw.choice("112"), "--standby", "--takeover-seconds", "1")
    process = place.start("train", *flags, "--workers", "2", *servers, "--run-dir", "run")
    process.line_with("epoch 3/")
    (server,) = place.pids("server --job")
    os.kill(server, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    process.ends_within(3.0 * draw.random() ** 2)  # it may be over by then
    role, number = draw.choice(["train", "--standby-of", "lockstep worker"]), draw.choice([*ENDING, signal.SIGKILL])
    for pid in [process.popen.pid] if role == "train" else place.pids(role):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    code, out, error = process.end()
    assert code in ((0, 130, -signal.SIGKILL) if role == "train" else (0,)), (out, error)
    assert error.strip() == ("error: interrupted" if code == 130 else "")
    assert place.is_empty(GONE_S) or code == -signal.SIGKILL
    if code:
        assert place.start("train", "--resume", "run").end()[0] == 0
    assert place.digest() == expected
    # What was left of a run all of whose processes were gone has gone with the next one.
    assert place.is_empty(GONE_S)


def test_a_key_of_a_worker_mirrors_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    assert run(["keys", "create", "keys", "--name", "worker-1", "--name", "standby-1"]) == 0
    bound = ("--bind", "tcp://127.0.0.1:0", "--run-dir", "mirror", "--standby-of", "tcp://127.0.0.1:1")
    stranger = place.start("server", *bound, "--key", "keys/worker-1.key")
    code, _, error = stranger.end()
    assert code == 2
    assert "is that of 'worker-1': expected a standby's" in error
    assert not (place.folder / "mirror").exists()


@pytest.mark.slow
def test_a_worker_that_is_started_again_finds_a_standby_with_a_key_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    flags = (*job(60), *OFTEN)
    expected = calm(60)
    assert run(["keys", "create", "keys", "--name", "worker-1", "--name", "standby-1"]) == 0
    bound = ("--bind", "tcp://127.0.0.1:0")
    server = place.start("server", *flags, *OVER_SOCKETS, "--run-dir", "run", *bound, "--keys", "keys")
    first = server.line_with("lockstep worker ").split()[2]
    shown = ("--key", "keys/standby-1.key", "--run-dir", "mirror")
    standby = place.start("server", "--standby-of", first, *bound, *shown)
    second = standby.line_with("lockstep promote ").split()[2]
    standby.line_with("has all that there is")
    kill(server.popen.pid)
    assert run(["promote", second, "--key", "keys/standby-1.key"]) == 0
    worker = place.start("worker", f"{first},{second}", "--workers", "1", "--apart", "--key", "keys/worker-1.key")
    ends(standby, [worker])
    assert place.digest("mirror") == expected


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason="network namespaces may not be made here")
@pytest.mark.parametrize("seed", range(20))
def test_a_host_that_is_cut_off_at_any_moment_is_replaced(
    place: Place, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    flags, draw = (*job(300), *OFTEN), random.Random(seed)
    expected = calm(300)
    assert run(["keys", "create", "keys", "--name", "worker-1", "--name", "standby-1"]) == 0
    with hosts(5, "1gbit") as net:
        first, second = (f"tcp://{net.address(number)}:5555" for number in (0, 1))
        needed = (*OVER_SOCKETS, "--min-workers", "3", "--run-dir", "run", "--keys", "keys")
        server = place.start("server", *flags, *needed, "--bind", first, within=net.within(0))
        server.line_with("lockstep worker ")
        shown = ("--key", "keys/standby-1.key", "--run-dir", "mirror")
        standby = place.start("server", "--standby-of", first, "--bind", second, *shown, within=net.within(1))
        standby.line_with("mirrors run run of")
        key = ("--workers", "1", "--key", "keys/worker-1.key")
        workers = [place.start("worker", first, *key, within=net.within(number)) for number in (2, 3, 4)]
        until_mirrored(place, server)
        for _ in range(draw.randint(0, 40)):
            server.line_with("epoch ")
        if draw.random() < 0.5:
            net.pull(0)
        else:
            kill(server.popen.pid)
        standby.line_with("takes over, from step ")
        ends(standby, workers)
        assert place.digest("mirror") == expected
        # Each sample of each epoch once, and a record that can be computed again.
        assert run(["ledger", str(place.folder / "mirror")]) == 0
        code, _, error = place.start("verify", "mirror").end()
        assert (code, error) == (0, "")
        place.clear()
