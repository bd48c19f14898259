"""What is done with a run on a dataset folder, and the commands that pack and check one."""

import json
from pathlib import Path
from typing import Any

import pytest

from lockstep import Run, fit
from lockstep.cli.main import run
from lockstep.common.data.npy import DATA_OFFSET
from tests.lockstep.tiny_data import write_tiny

BRIEF: dict[str, Any] = {"global_batch": 40, "micro_batches": 4, "epochs": 3, "workers": 0, "verbose": False}


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["pack", str(write_tiny(tmp_path)), str(tmp_path / "tiny.data")]) == 0
    assert capsys.readouterr().out == (
        f"packed 160 samples to train on and 40 to test with into {tmp_path / 'tiny.data'}\n"
        "each is 1 x 28 x 28 of uint8; 10 classes\n"
    )
    return tmp_path / "tiny.data"


def trained(folder: Path, name: str = "run") -> Run:
    return fit("linear", folder, run_dir=folder.parent / name, **BRIEF)


def test_it_is_the_run_on_the_arrays(folder: Path) -> None:
    in_memory = fit("linear", folder.parent / "tiny.npz", run_dir=folder.parent / "other", **BRIEF)
    assert trained(folder).weights_sha256 == in_memory.weights_sha256


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(folder)
    job = ["--model", "linear", "--data", str(folder), "--global-batch", "40", "--micro-batches", "4", "--workers", "0"]
    stopped = folder.parent / "stopped"
    flags = ["--epochs", "3", "--set", "checkpoint_every_steps=1", "--run-dir", str(stopped)]
    assert run(["train", *job, *flags]) == 0
    # As if it had been killed in its second epoch: what came later is gone.
    for name in ("result.json", "weights.safetensors", "receipt.json"):
        (stopped / name).unlink(missing_ok=True)
    for path in (stopped / "checkpoints").iterdir():
        if path.name.endswith("12") or "12" in path.name:
            path.unlink()
    assert run(["train", "--resume", str(stopped)]) == 0
    assert "resumes after step 11 of 12" in capsys.readouterr().out
    assert json.loads((stopped / "result.json").read_text())["weights_sha256"] == whole.weights_sha256


def change(folder: Path, at: int) -> Path:
    path = folder / "train-samples.npy"
    data = bytearray(path.read_bytes())
    data[DATA_OFFSET + at] ^= 1
    path.write_bytes(data)
    return path


def test_verify_names_a_block_that_has_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained(folder).folder
    assert run(["verify", str(path)]) == 0
    changed = change(folder, 5000)
    capsys.readouterr()
    assert run(["verify", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {changed}: block 0 (bytes 0 to 125,439 of the data) has changed")


def test_a_command_checks_every_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: all 158,400 bytes are as they were packed; dataset sha256 ")
    changed = change(folder, 7)
    assert run(["verify", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {changed}: block 0 ")


def test_other_data_to_evaluate_on_may_be_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_memory = fit("linear", folder.parent / "tiny.npz", run_dir=folder.parent / "other", **BRIEF)
    assert run(["evaluate", str(in_memory.folder), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert run(["evaluate", str(in_memory.folder), "--data", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confusion"] == expected["confusion"]


MISTAKES = {
    "there already": (["pack", "tiny.npz", "tiny.data"], "error: '{place}/tiny.data' exists: expected a new folder"),
    "no source": (["pack", "gone", "new"], "error: no source 'gone': expected a file or a folder"),
    "no labels": (["pack", "x.npy", "new"], "error: x.npy: has samples alone: expected --labels FILE.npy"),
    "packed": (["pack", "tiny.data", "new"], "error: 'tiny.data' is packed already: train on it with --data tiny.data"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    before = set(folder.parent.rglob("*"))
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(text.format(place=folder.parent))
    assert error.count("\n") == 1
    assert set(folder.parent.rglob("*")) == before
