"""A job whose processes the user did not choose is trained here if workers would not be done sooner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lockstep import fit, nn
from lockstep.cli.main import run
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.placement import OF_PROCESSES, chosen_processes, quickest
from lockstep.ps.setup import open_run
from tests.lockstep.tiny_data import tiny_arrays, write_tiny

#: Of all jobs here.
VALUES: dict[str, Any] = {"model": "linear", "global_batch": 32, "micro_batches": 4}

TWO = RunOptions(workers=2)


@dataclass
class SlowClock:
    """A clock by which each look takes a while."""

    look_s: float
    now_s: float = 0.0

    def now(self) -> float:
        self.now_s += self.look_s
        return self.now_s


def job(folder: Path, **values: Any) -> Job:
    return Job(**{**VALUES, "data": str(write_tiny(folder)), "steps": 1000, **values})


@pytest.mark.parametrize(
    ("step_s", "steps", "most", "cores", "expected"),
    [
        (0.001, 1000, 4, 4, 0),  # a second is not worth a start
        (0.005, 1000, 4, 4, 4),  # 2.8 of 5 seconds
        (0.1, 1000, 4, 4, 4),
        (0.1, 1000, 2, 4, 2),
        (0.1, 1000, 9, 3, 2),  # of four micro-batches the slowest of three workers has two, as of two
        (0.1, 1000, 4, 1, 0),
        (0.1, 10, 4, 4, 0),
        (0.0005, 10**6, 4, 4, 0),  # the exchange takes longer
        (0.01, 1000, 2, 2, 2),  # 6.2 of 10 seconds
        (0.003, 1000, 2, 2, 0),  # 2.8 of 3 seconds, if two cores were twice as fast as one
        (0.004, 1000, 2, 2, 2),  # 3.2 of 4
    ],
)
def test_workers_train_if_they_are_done_sooner(
    tmp_path: Path, step_s: float, steps: int, most: int, cores: int, expected: int
) -> None:
    setup = open_run("run", job(tmp_path, steps=steps), load(str(write_tiny(tmp_path))), RunOptions())
    assert quickest(step_s, setup, most, cores) == expected


def test_workers_that_import_a_library_to_compute_begin_later(tmp_path: Path) -> None:
    setup = open_run("run", job(tmp_path), load(str(write_tiny(tmp_path))), RunOptions())
    fingerprint = msgspec.structs.replace(setup.info.fingerprint, engine="torch 2.9")
    computed = msgspec.structs.replace(setup, info=msgspec.structs.replace(setup.info, fingerprint=fingerprint))
    assert [quickest(step_s, setup, 2, 2) for step_s in (0.008, 0.02)] == [2, 2]
    assert [quickest(step_s, computed, 2, 2) for step_s in (0.008, 0.02)] == [0, 2]


def test_little_work_stays_in_this_process_with_the_reason(tmp_path: Path) -> None:
    options, why = chosen_processes(job(tmp_path), TWO, {"lr": 0.1}, SlowClock(0.0005))
    assert options == msgspec.structs.replace(TWO, workers=0)
    assert why == "1,000 steps take about 0.5 s, and workers would not be done sooner"
    # By the measured time alone.
    assert chosen_processes(job(tmp_path), TWO, {}, SlowClock(0.5)) == (TWO, "")


@pytest.mark.parametrize("name", OF_PROCESSES)
def test_processes_that_the_user_chose_are_started(tmp_path: Path, name: str) -> None:
    assert chosen_processes(job(tmp_path), TWO, {name: 1}, SlowClock(0.0005)) == (TWO, "")


def test_what_cannot_be_tried_is_left_to_the_run(tmp_path: Path) -> None:
    wrong = job(tmp_path, global_batch=1000)
    assert chosen_processes(wrong, TWO, {}, SystemClock()) == (TWO, "")


def test_train_and_fit_say_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    flags = ["--model", "linear", "--data", "tiny.npz", "--global-batch", "32", "--steps", "9", "--no-picture"]
    assert run(["train", *flags, "--run-dir", "ours"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("training "))
    assert "9 steps, in this process alone: 9 steps take about 0." in line
    assert line.endswith(" s, and workers would not be done sooner")
    theirs = fit("linear", "tiny.npz", global_batch=32, steps=9)
    assert "notice: in this process alone: 9 steps take about 0." in capfd.readouterr().out
    assert theirs.result.workers == 0
    assert run(["train", *flags, "--workers", "1", "--run-dir", "theirs"]) == 0
    told = capfd.readouterr().out
    assert "with a server and 1 worker on this machine" in told
    assert theirs.weights_sha256 in told


def test_callbacks_are_called_in_this_process_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    run = fit(model, tiny_arrays(), run_dir=tmp_path / "run", epochs=3, global_batch=32, verbose=False)
    assert (run.result.workers, len(run.history)) == (0, 3)
