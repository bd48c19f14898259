"""A run whose folder has a file damaged, removed or replaced by a link: each command ends with one line, or works."""

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.ps.records.run_folder import RESULT
from tests.lockstep.small_runs import small_run

NET = "from lockstep import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
FILES = (
    *("job.toml", "ledger.jsonl", "metrics.jsonl", "receipt.json", "result.json", "terms.json", "weights.safetensors"),
    *("model", "model/net.py"),
)
CALLS = (["evaluate", "R"], ["ledger", "R"], ["export", "R", "new.npz"], ["train", "--resume", "U", "--workers", "0"])


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mutated")
    (root / "net.py").write_text(NET)
    with chdir(root):
        small_run(root, "net.py:build", "good", epochs=1)
    return root


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_command_ends_with_one_line(
    file: str, mutation: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "good", tmp_path / "R")
    (tmp_path / "secret").write_text("a secret\n")
    MUTATIONS[mutation](tmp_path / "R" / file)
    with chdir(tmp_path):
        for call in CALLS:
            if call[1] == "--resume":
                shutil.copytree("R", "U", symlinks=True)
                if (tmp_path / "U" / RESULT).is_file():
                    (tmp_path / "U" / RESULT).unlink()
            code, told = run(call), capfd.readouterr()
            lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
            assert (code, len(lines)) in ((0, 0), (2, 1)), f"{call}: {code} {told}"
            assert "a secret" not in told.out + told.err
            assert "Traceback" not in told.out + told.err
    assert (tmp_path / "secret").read_text() == "a secret\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"R", "U", "secret", "new.npz", "runs"}
