"""What one process alone comes to, computed in the test's own: what all that real processes do is compared with."""

import json
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lockstep.cli.main import run
from tests.lockstep.tiny_data import write_tiny


def train_alone(folder: Path, *job: str) -> Path:
    """Train with the small dataset in a folder; return the run's folder, `calm` there."""
    write_tiny(folder)
    with chdir(folder):
        assert run(["train", *job, "--workers", "0", "--run-dir", "calm"]) == 0
    return folder / "calm"


@cache
def digest_alone(*job: str) -> str:
    """Return the digest of the weights that a job comes to."""
    with TemporaryDirectory() as folder:
        result = json.loads((train_alone(Path(folder), *job) / "result.json").read_text())
    return str(result["weights_sha256"])
