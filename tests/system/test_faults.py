"""Any process of a run may be killed or stopped at any moment: it ends with the bits of a run that nothing befell."""

import os
import re
import signal
from contextlib import suppress

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.supervision.restarts import FIRST_S
from tests.system.alone import digest_alone
from tests.system.jobs import gated_model
from tests.system.processes import GONE_S, Place, Process, is_gone

#: A model that ends every worker after two steps. The server tries a model with two samples.
BROKEN = """
import os

from lockstep import nn


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.calls = nn.Linear(784, 10), 0

    def forward(self, images):
        self.calls += self.training
        if self.calls > 8:
            os.abort()
        return self.scores(images.reshape(images.shape[0], 784))


def build():
    return Broken()
"""

DATA = ("--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4", "--momentum", "0.9")
OFTEN = ("--set", "checkpoint_every_steps=10")

#: Seconds between two looks at a run.
LOOK_S = 0.005


def job(steps: int, model: str = "delicate") -> tuple[str, ...]:
    return ("--model", f"unhurried.py:{model}", *DATA, "--steps", str(steps))


def calm(steps: int) -> str:
    """Return the digest of a run in which nothing fails."""
    return digest_alone(*job(steps, "delicate_without_pauses"))


def steps_done(place: Place) -> int:
    """Return how many steps are in the run's log of figures; it may lag behind."""
    try:
        lines = (place.folder / "run" / "metrics.jsonl").read_bytes()
    except OSError:
        return 0
    return lines.count(b'"kind":"step"')


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid, GONE_S)


def test_the_death_of_a_worker_is_noticed_within_a_second_whatever_it_does(place: Place) -> None:
    gate = place.folder / "gate"
    os.mkfifo(gate)
    server = place.start(
        "server", "--model", gated_model(place.folder, gate, is_training=True), *DATA, "--steps", "2",
        "--bind", "tcp://127.0.0.1:0", "--run-dir", "run",
    )  # fmt: skip
    address, took_s = server.line_with("lockstep worker").split()[-1], list[float]()
    # Three times: a machine that does other things as well may be late once. If it always does, it starts a worker no
    # quicker than it notices the death of one.
    clock, start_s = SystemClock(), list[float]()
    for _ in range(3):
        began = clock.now()
        worker = place.start("worker", address, "--workers", "1", "--apart")
        with gate.open("wb"):
            # It computes, and for as long as this stands open it will not say a word.
            start_s.append(clock.now() - began)
            began = clock.now()
            kill(worker.popen.pid)
            told = server.line_with(" left: ")
            assert "left: its connection is gone; micro-batches 0-3 of step 0 go to others" in told
            took_s.append(clock.now() - began)
    print("seconds until it was noticed:", *(f"{each_s:.3f}" for each_s in took_s))
    assert min(took_s) < max(1.0, min(start_s))
    server.interrupt()


@pytest.mark.parametrize("steps", [10**6, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_worker_that_is_stopped_is_told_of_loses_its_place_and_joins_anew(place: Place, steps: int) -> None:
    flags = job(steps)
    server, address = place.serve(*flags, "--min-workers", "2")
    first, second = (place.start("worker", address, "--workers", "1", "--apart") for _ in range(2))
    server.line_with("epoch 8/")
    first.send(signal.SIGSTOP)
    # The stop may fall on a step as well as on the evaluation that ends an epoch.
    held = r"held (micro-batches .* of|evaluation chunks .* after) step \d+ for [2-9]\.\d s \(median "
    # Where there is a core for each, the other one has computed the same meanwhile.
    done = r"sent nothing for [2-9]\.\d s: others have computed its micro-batches"
    late = re.compile(rf"worker \d \(host .*, pid \d+\) has ({held}|{done})")
    told = server.line_with(f"pid {first.popen.pid}) has ")
    assert late.match(told), told
    assert f"pid {first.popen.pid}" in told
    server.line_with("was evicted")
    first.send(signal.SIGCONT)
    assert "rejoining" in first.error_with("rejoining")
    assert f"worker 2 (host {os.uname().nodename}, pid {first.popen.pid}) joined" in server.line_with(" joined")
    server.line_with("epoch ")
    if steps == 10**6:
        server.interrupt()
        return
    assert server.end()[0] == 0
    assert (first.end()[0], second.end()[0]) == (0, 0)
    assert place.digest() == calm(steps)


@pytest.mark.slow
def test_a_server_that_is_stopped_holds_it_against_nobody(place: Place) -> None:
    flags = job(150)
    expected = calm(150)
    process = place.start("train", *flags, "--workers", "2", "--run-dir", "run")
    process.line_with("epoch 2/")
    (server,) = place.pids("lockstep server")
    os.kill(server, signal.SIGSTOP)
    assert not process.ends_within(5.0)
    os.kill(server, signal.SIGCONT)
    assert process.end()[0] == 0
    assert place.digest() == expected
    assert "leased again" not in (place.folder / "run" / "server.log").read_text()


def joined(place: Place) -> int:
    """Return how often a worker has joined one of the run's servers."""
    path = place.folder / "run" / "server.log"
    return path.read_text().count(") joined\n") if path.exists() else 0


def until_back(place: Place, process: Process, servers: list[int]) -> None:
    """Kill the server; wait until both workers are back, or all is done.

    How soon they ask for their server is a matter of the client's retries, which its tests follow in virtual time.
    """
    before = joined(place)
    for server in servers:
        with suppress(ProcessLookupError):  # it has just come to its end
            kill(server)
    while joined(place) < before + 2 and not process.ends_within(LOOK_S):
        pass


@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_whose_server_is_killed_goes_on_to_the_same_bits(place: Place, times: int) -> None:
    """In the middle of a checkpoint: tests/simulation kills it at every other event."""
    flags, delays_s = (*job(200), *OFTEN), list[float]()
    expected = calm(200)
    for attempt in range(3 * times):
        process = place.start("train", *flags, "--workers", "2", "--run-dir", "run")
        while not any((place.folder / "run" / "checkpoints").glob(".*.partial")) and not process.ends_within(LOOK_S):
            pass
        until_back(place, process, place.pids("lockstep server"))
        code, out, error = process.end()
        assert (code, error) == (0, ""), (out, error)
        assert place.digest() == expected
        assert place.is_empty(GONE_S)
        # It may have been over first.
        delays_s += map(float, re.findall(r"was killed by SIGKILL; restarting in ([\d.]+) s", out))
        if len(delays_s) == times:
            break
        (place.folder / "run").rename(place.folder / f"run-{attempt}")
    assert len(delays_s) == times
    assert max(delays_s) <= FIRST_S


def test_a_shard_that_is_killed_costs_the_steps_since_the_checkpoint(place: Place) -> None:
    flags = (*job(100), *OFTEN)
    expected = calm(100)
    process = place.start("train", *flags, "--workers", "2", "--servers", "2", "--run-dir", "run")
    process.line_with("epoch 2/")
    (shard,) = place.pids("lockstep shard")
    os.kill(shard, signal.SIGKILL)
    code, out, error = process.end()
    assert (code, error) == (0, "")
    told = out.partition(f"a shard (pid {shard}) was killed by SIGKILL; restarting in ")[2]
    assert float(told.partition(" s")[0]) <= FIRST_S
    # By the server, which may notice it before its supervisor does.
    assert "resumes after step " in out
    assert place.digest() == expected
    assert place.is_empty(GONE_S)


def test_a_run_that_is_hopeless_ends_with_the_root_cause(place: Place) -> None:
    (place.folder / "broken.py").write_text(BROKEN)
    flags = ("--model", "broken.py:build", *DATA, "--steps", "1000", "--workers", "1", "--run-dir", "run")
    process = place.start("train", *flags, "--set", "max_restarts=2")
    code, out, error = process.end()
    assert code == 1
    assert error.count("\n") == 1
    assert error.startswith("error: no worker is left: a worker (pid ")
    assert error.endswith("was killed by SIGABRT\n")
    assert out.count("and it is restarted") == 2
    assert place.is_empty(GONE_S)
