"""A run that is killed or interrupted goes on, with any number of workers, to the bits it was on its way to."""

import json
import signal
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tests.system.alone import run_here, train_alone
from tests.system.processes import GONE_S, Place, result_in

#: Three steps an epoch, checkpoints within epochs. Over in seconds, many times the 0.2 s between two looks of `train`
#: at its server: a shorter run has come to its end by the time that its first epochs are printed.
EPOCHS = 30
STEPS = 3 * EPOCHS
JOB = ("--model", "unhurried.py:delicate", "--data", "tiny.npz", "--global-batch", "60", "--micro-batches", "4",
       "--epochs", str(EPOCHS))  # fmt: skip
OFTEN = ("--set", "checkpoint_every_steps=7")

#: What may differ between a run and one that stopped: times, and how it was carried out.
FREE = (
    "teams",
    "servers",
    "run",
    "wall_s",
    "train_s",
    "images_per_s",
    "compute_s",
    "update_s",
    "split",
    "workers",
    "moved",
    "transport",
)


def bits(folder: Path) -> dict[str, Any]:
    """Return the result without times."""
    result = {key: value for key, value in result_in(folder).items() if key not in FREE}
    for epoch in result["history"]:
        del epoch["wall_s"]
    return result


#: What a process writes into its log when it takes part in a run.
JOINED = {
    "server.log": " joined\n",
    "worker-0.log": "joined run run as worker",
    "worker-1.log": "process 1 of the team takes part",
}


@pytest.fixture(scope="module")
def calm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    return train_alone(tmp_path_factory.mktemp("calm"), *JOB)


@pytest.fixture(scope="module")
def calm(calm_run: Path) -> dict[str, Any]:
    """What it comes to."""
    return bits(calm_run)


def resumed(place: Place, workers: int) -> dict[str, Any]:
    """Go on with the run to its end; return its bits."""
    code, out, error = place.start("train", "--resume", "run", "--workers", str(workers)).end()
    assert (code, error) == (0, "")
    assert "resumes after step " in out
    return bits(place.folder / "run")


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_an_interrupt_loses_no_step_and_verify_follows(place: Place, calm: dict[str, Any], workers: int) -> None:
    process = place.start(
        "train", *JOB, "--set", "checkpoint_every_seconds=1e6", "--workers", str(workers), "--run-dir", "run"
    )
    process.line_with("epoch 3/")
    process.send(signal.SIGINT)
    code, out, error = process.end(GONE_S)
    assert (code, error.strip()) == (130, "error: interrupted")
    step = int(out.partition("resume after step ")[2].split()[0])
    ledger = (place.folder / "run" / "ledger.jsonl").read_text()
    assert ledger.count('"kind":"step"') == step
    assert resumed(place, 2 - workers) == calm
    assert '"lost_steps":0' in (place.folder / "run" / "ledger.jsonl").read_text().partition('"kind":"weights"')[2]
    code, out, error = place.start("verify", "run").end()
    assert (code, error) == (0, "")
    assert f"the same bits: steps 0 to {STEPS - 1}, the losses of {4 * STEPS:,} micro-batches" in out
    assert out.startswith("resumed after step ")


def test_a_finished_run_says_so(place: Place, capsys: pytest.CaptureFixture[str], calm_run: Path) -> None:
    copytree(calm_run, place.folder / "calm")
    code, out, error = run_here(place.folder, capsys, "train", "--resume", "calm")
    assert (code, error) == (0, "")
    assert out.startswith("the run in calm is already finished\n")
    code, out, error = run_here(place.folder, capsys, "server", "--resume", "calm", "--bind", place.address())
    assert (code, error) == (0, "")
    assert "the run in calm is already finished\n" in out


def test_what_cannot_go_on_is_told(place: Place, capsys: pytest.CaptureFixture[str], calm_run: Path) -> None:
    copytree(calm_run, place.folder / "calm")
    (place.folder / "calm" / "result.json").unlink()
    for flags, told in (
        (("--lr", "0.7"), "'calm' is a run of another job: lr = 0.05 in the run, 0.7 here"),
        (("--job", "calm/job.toml"), "--job 'calm/job.toml' with --resume: a run is resumed"),
        (("--run-dir", "new"), "--run-dir 'new' with --resume: a run is resumed in its own folder"),
    ):
        code, _, error = run_here(place.folder, capsys, "train", "--resume", "calm", *flags)
        assert code == 2
        assert told in error
        assert error.count("\n") == 1


def steps_in(place: Place) -> list[int]:
    """Return the steps of which there are figures, in order."""
    lines = map(json.loads, (place.folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_logs_and_figures_of_all_parts_are_kept(place: Place, calm: dict[str, Any], number: signal.Signals) -> None:
    process = place.start("train", *JOB, *OFTEN, "--workers", "2", "--run-dir", "run")
    process.line_with("epoch 3/")
    process.send(number)
    assert process.end(GONE_S)[0] == (130 if number is signal.SIGINT else -number)
    assert place.is_empty(GONE_S)
    before = {path.name: path.read_text() for path in (place.folder / "run").glob("*.log")}
    assert before.keys() == {"server.log", "worker-0.log", "worker-1.log"}
    figures = (place.folder / "run" / "metrics.jsonl").read_text()
    assert resumed(place, 2) == calm
    for name, words in before.items():
        both = (place.folder / "run" / name).read_text()
        assert both.startswith(words)
        assert "--- the run was resumed, until " in both
        assert both.count(JOINED[name]) >= 2
    assert steps_in(place) == list(range(STEPS))
    # What was there stays as it was, but for the end and what came after the checkpoint.
    kept = (place.folder / "run" / "metrics.jsonl").read_text()
    assert kept[: len(figures) // 2] == figures[: len(figures) // 2]
