"""Teams of real processes, by hand and with `train`: deaths cost no bits, and nothing is left."""

import os
import signal

import numpy as np
import pytest

from lockstep.cli.main import run
from lockstep.ps.records.ledger import StepDone
from lockstep.ps.records.run_folder import read_ledger
from tests.lockstep.tiny_data import tiny_arrays
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import GONE_S, Place, is_gone

#: A model with statistics, which draws numbers; and its vector, in several slices.
NOISY = """
from lockstep import nn


def build():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.25), nn.Linear(64, {outputs})
    )
"""

#: Some epochs: after the first steps, a team makes all but the last of each by itself.
LONG = ("--micro-batches", "4", "--steps", "200")

#: Jobs that differ in all that an update depends on: those of simulated runs, once as they are.
REAL = {
    "adam, clipped": (
        *("--model", "classes.py:build", "--data", "tiny.npz", "--global-batch", "9", "--optimizer", "adam"),
        *(
            "--lr",
            "0.001",
            "--set",
            "clip_norm=0.5",
            "--schedule",
            "step",
            "--set",
            "class_weights=1,2.5,1,1,1,0.3,1,1,1,1",
        ),
    ),
    "rounded": (
        *("--model", "mlp", "--data", "tiny.npz", "--global-batch", "4", "--set", "wire=int8"),
        *("--set", "wire_weights=bfloat16", "--lr", "0.002", "--schedule", "one-cycle"),
    ),
    "several targets": (
        *("--model", "numbers.py:build", "--data", "numbers.npz", "--loss", "mse", "--global-batch", "9"),
        *("--optimizer", "rmsprop", "--lr", "0.001", "--schedule", "polynomial", "--set", "validation_split=0.2"),
    ),
    "averaged": (
        *("--model", "classes.py:build", "--data", "tiny.npz", "--global-batch", "7", "--set", "nesterov=true"),
        *("--set", "ema_decay=0.9", "--set", "clip_value=0.01", "--set", "wire=float16", "--schedule", "exponential"),
    ),
    "local steps": (
        *("--model", "classes.py:build", "--data", "tiny.npz", "--global-batch", "16", "--set", "local_steps=2"),
        *("--optimizer", "adamw", "--lr", "0.001", "--schedule", "cosine", "--set", "local_clip_norm=1"),
    ),
}


def write_jobs(place: Place) -> None:
    """Write what these jobs name."""
    for name, outputs in (("classes", 10), ("numbers", 3)):
        (place.folder / f"{name}.py").write_text(NOISY.format(outputs=outputs))
    (x_train, _), (x_test, _) = tiny_arrays()
    targets = [images[:, :3, 0].astype(np.float32) for images in (x_train, x_test)]
    np.savez(place.folder / "numbers.npz", x_train=x_train, y_train=targets[0], x_test=x_test, y_test=targets[1])


def made_without_the_server(place: Place, name: str) -> int:
    """Return how many steps of a run a team has made by itself: of these it is known which process computed what."""
    lines = read_ledger(place.folder / name)
    return sum(isinstance(line, StepDone) and bool(line.processes) for line in lines)


def kill(place: Place, process: int) -> None:
    """Kill a process of the only team."""
    (pid,) = place.pids(f"--process {process} ")
    os.kill(pid, signal.SIGKILL)


def test_a_team_has_the_bits_of_one_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    server, address = place.serve(*BRIEF, "--transport", "tcp", bind="tcp://127.0.0.1:0")
    worker = place.start("worker", address, "--workers", "3").end()
    assert worker[0::2] == (0, f"connecting to {address}\njoined run run as worker 0\nthe run is done\n")
    assert server.end()[0] == 0
    assert run(["train", *BRIEF, "--workers", "0", "--run-dir", "alone"]) == 0
    assert place.digest() == place.digest("alone")
    result = place.result()
    assert (result["workers"], result["teams"]) == (3, 1)
    assert place.is_empty(0.0)


@pytest.mark.parametrize(
    ("job", "workers"),
    [
        ("adam, clipped", "3"),
        *(pytest.param(job, workers, marks=pytest.mark.slow) for job in REAL for workers in ("2", "3")),
    ],
)
def test_a_team_that_is_alone_makes_most_steps_without_the_server(
    place: Place, monkeypatch: pytest.MonkeyPatch, job: str, workers: str
) -> None:
    write_jobs(place)
    monkeypatch.chdir(place.folder)
    flags = (*LONG, *REAL[job], "--run-dir")
    out = place.train(*flags, "run", "--workers", workers)
    assert "over shm" in out
    assert run(["train", *flags, "alone", "--workers", "0"]) == 0
    assert place.digest() == place.digest("alone")
    assert made_without_the_server(place, "run") >= 50
    assert run(["verify", "run"]) == 0
    assert run(["ledger", "run"]) == 0


def test_who_is_killed_is_back_in_the_team_and_the_others_stay(place: Place) -> None:
    server, address = place.serve(*ENDLESS)
    worker = place.start("worker", address, "--workers", "3")
    worker.error_with("joined run run as worker 0")
    server.line_with("epoch 1/")
    (kept,) = place.pids("--process 2 ")
    kill(place, 1)
    assert worker.error_with("a process of the team").endswith("was killed by SIGKILL; it is restarted")
    kill(place, 0)
    assert worker.error_with("the leader (pid").endswith("was killed by SIGKILL; it is restarted")
    worker.error_with("joined run run as worker 1")
    assert place.pids("--process 2 ") == [kept]
    server.interrupt()
    code, _, error = worker.end(GONE_S)
    assert (code, error.splitlines()[-1]) == (1, "error: the run failed: interrupted")
    assert place.is_empty(0.0)


def test_an_interrupt_ends_all_of_a_team(place: Place) -> None:
    server, address = place.serve(*ENDLESS)
    worker = place.start("worker", address, "--workers", "2")
    server.line_with("epoch 1/")
    worker.send(signal.SIGINT)
    code, _, error = worker.end(GONE_S)
    assert (code, error.splitlines()[-1]) == (130, "error: interrupted")
    server.line_with("left: interrupted")
    server.interrupt()
    assert place.is_empty(0.0)


def test_nothing_of_a_team_outlives_who_started_it(place: Place) -> None:
    server, address = place.serve(*ENDLESS)
    worker = place.start("worker", address, "--workers", "2")
    server.line_with("epoch 1/")
    team = place.pids("--process")
    assert len(team) == 2
    worker.send(signal.SIGKILL)
    assert all(is_gone(pid, GONE_S) for pid in team)
    server.interrupt()
    assert place.is_empty(0.0)


#: A job that lasts some seconds, with the bits of one that takes no time.
LASTING = ("--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--epochs", "12", "--model")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_plain_command_replaces_the_first_one(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.chdir(place.folder)
    address = place.address()
    first = place.start("worker", address)
    first.error_with("connecting to")
    second = place.start("worker", address)
    second.error_with("waiting: other commands have started the processes of this machine")
    server = place.start("server", *LASTING, "unhurried.py:Unhurried", "--bind", address, "--run-dir", "run")
    server.line_with("epoch 1/")
    first.send(number)
    assert first.end(GONE_S)[0] == (130 if number == signal.SIGTERM else -number)
    assert second.end()[0] == server.end()[0] == 0
    assert run(["train", *LASTING, "unhurried.py:without_pauses", "--workers", "0", "--run-dir", "alone"]) == 0
    assert place.digest() == place.digest("alone")
    assert place.is_empty(0.0)


def test_commands_that_add_processes_are_one_team_and_end_alike(place: Place) -> None:
    server, address = place.serve(*ENDLESS)
    first, second, third = (place.start("worker", address, "--workers", "1") for _ in range(3))
    server.line_with(", 3 workers) joined")
    server.line_with("epoch ")
    second.interrupt()
    server.line_with(", 2 workers) joined")
    server.line_with("epoch ")
    first.send(signal.SIGKILL)
    third.error_with("1 of the 1 processes of this machine, and leads them")
    fourth = place.start("worker", address, "--workers", "1")
    server.line_with(", 2 workers) joined")
    server.line_with("epoch ")
    server.interrupt()
    ends = [command.end(GONE_S) for command in (third, fourth)]
    told = [(code, error.splitlines()[-1]) for code, _, error in ends]
    assert told == [(1, "error: the run failed: interrupted")] * 2
    assert place.is_empty(0.0)
