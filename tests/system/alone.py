"""What one process alone comes to, computed in the test's own: what all that real processes do is compared with."""

from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lockstep.cli.main import run
from tests.lockstep.tiny_data import write_tiny
from tests.system.jobs import UNHURRIED
from tests.system.processes import digest_in


def train_alone(folder: Path, *job: str) -> Path:
    """Train with the files of a `Place` in a folder; return the run's folder, `calm` there."""
    write_tiny(folder)
    (folder / "unhurried.py").write_text(UNHURRIED)
    with chdir(folder):
        assert run(["train", *job, "--workers", "0", "--run-dir", "calm"]) == 0
    return folder / "calm"


@cache
def digest_alone(*job: str) -> str:
    """Return the digest of the weights that a job comes to."""
    with TemporaryDirectory() as folder:
        return digest_in(train_alone(Path(folder), *job))


def run_here(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in the test's own process; return its exit code and what it printed, as `Process.end` does.

    For what is refused before any process is started: a process of its own would cost a second of imports.
    """
    capsys.readouterr()
    with chdir(folder):
        code = run(list(arguments))
    out, error = capsys.readouterr()
    return code, out, error
