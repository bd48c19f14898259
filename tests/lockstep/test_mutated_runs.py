"""A run whose folder has a file damaged, removed or replaced by a link: each command ends with one line, or works."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit
from lockstep.cli.main import run
from lockstep.ps.records.run_folder import RESULT
from tests.lockstep.tiny_data import write_tiny

NET = "from lockstep import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
FILES = (
    *("job.toml", "ledger.jsonl", "metrics.jsonl", "receipt.json", "result.json", "weights.safetensors"),
    *("model", "model/net.py"),
)
CALLS = (
    *(["evaluate", "R"], ["ledger", "R"], ["export", "R", "new.npz"], ["train", "--resume", "U", "--workers", "0"]),
    ["export", "R", "new.zip"],
)

#: Files that a run of more values has, and the other commands that open its folder.
MORE_FILES = ("checkpoints", "checkpoints/step-00000005.safetensors", "weights-ema.safetensors", "examples.npz")
MORE_CALLS = (
    *(["evaluate", "R", "--json"], ["evaluate", "R", "--data", "tiny.npz"], ["evaluate", "R", "--checkpoint", "ema"]),
    *(
        ["predict", "R", "new.npy"],
        ["export", "R", "new.onnx"],
        ["compare", "R", "good"],
        ["verify", "R", "--steps", "0"],
    ),
    *(["verify", "R"], ["verify", "R", "--against", "good"], ["replay", "R", "--step", "0", "--micro-batch", "0"]),
    ["train", "R/job.toml", "--workers", "0", "--steps", "1", "--run-dir", "new", "--no-picture"],
    *(["find-lr", "R/job.toml", "--tries", "30"], ["doctor", "R/job.toml"], ["plot", "R", "--to", "plots"]),
)


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def linked(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        removed(path)
        path.symlink_to(target)

    return link


def written(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        removed(path)
        path.write_bytes(content)

    return write


def halved(path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b"a file"
    written(content[: len(content) // 2])(path)


def a_folder(path: Path) -> None:
    removed(path)
    path.mkdir()


def piped(path: Path) -> None:
    removed(path)
    os.mkfifo(path)


def doubled(path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b"a file"
    written(content * 2)(path)


MUTATIONS: dict[str, Callable[[Path], None]] = {
    "removed": removed,
    "empty": written(b""),
    "half": halved,
    "bytes": written(b"\xff\x00" * 50),
    "deep": written(b"[" * 5000),
    "null": written(b"null\n"),
    "a folder": a_folder,
    "a link to nothing": linked("nothing"),
    "a link to itself": linked("job.toml"),
    "a link to a secret": linked("../secret"),
}


MORE_MUTATIONS: dict[str, Callable[[Path], None]] = {
    "a pipe": piped,
    "twice": doubled,
    "another record": written(b'{"kind": "step", "run": 7}\n'),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mutated")
    (root / "net.py").write_text(NET)
    with chdir(root):
        data = write_tiny(root)
        values: dict[str, Any] = {
            "epochs": 2,
            "lr": 0.05,
            "global_batch": 32,
            "micro_batches": 4,
            "workers": 0,
            "verbose": False,
        }
        fit("net.py:build", data, run_dir="good", with_examples=True, ema_decay=0.9, **values)
        with np.load(data) as arrays:
            np.save("new.npy", arrays["x_test"][:3])
    return root


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_command_ends_with_one_line(
    file: str, mutation: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(trained, tmp_path, file, MUTATIONS[mutation])
    check_calls(CALLS, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES + MORE_FILES)
@pytest.mark.parametrize("mutation", MUTATIONS | MORE_MUTATIONS)
def test_all_other_commands_do_too(
    file: str, mutation: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(trained, tmp_path, file, (MUTATIONS | MORE_MUTATIONS)[mutation])
    check_calls(CALLS + MORE_CALLS, tmp_path, capfd)


def damage(trained: Path, folder: Path, file: str, mutation: Callable[[Path], None]) -> None:
    """Put a damaged run into a folder, and the same unfinished, next to a secret and what commands need."""
    for name in ("R", "U"):
        shutil.copytree(trained / "good", folder / name)
        mutation(folder / name / file)
    if (folder / "U" / RESULT).exists() or (folder / "U" / RESULT).is_symlink():
        removed(folder / "U" / RESULT)
    for name in ("tiny.npz", "new.npy"):
        shutil.copy(trained / name, folder)
    (folder / "good").symlink_to(trained / "good")
    (folder / "secret").write_text("a secret\n")


def check_calls(calls: Sequence[list[str]], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in folder.iterdir()}
    with chdir(folder):
        for call in calls:
            code, told = run(call), capfd.readouterr()
            lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
            # The commands that check a run exit with 1 if it is not what it says.
            failed = [(1, 1)] * (call[0] in ("ledger", "verify"))
            assert (code, len(lines)) in ((0, 0), (2, 1), *failed), f"{call}: {code} {told}"
            assert "a secret" not in told.out + told.err
            assert "Traceback" not in told.out + told.err
    assert (folder / "secret").read_text() == "a secret\n"
    made = {"new.npz", "new.zip", "new.onnx", "new", "plots", "runs"}
    assert {path.name for path in folder.iterdir()} - before <= made
