"""The step bench for several models and batches: each in a process of its own, whose peak of memory is its own too."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import msgspec

from common.errors import RunError
from common.runtime.environment import child_environment
from lockstep.bench.reports.step_result import StepFigures
from lockstep.launch.child import ERROR_MARK


def figures_of(models: Sequence[str], batches: Sequence[int], flags: Sequence[str]) -> Iterator[StepFigures]:
    """Yield the figures of each model at each batch as they come; `flags` are those of `bench step` for all."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        for model, batch in product(models, batches):
            yield _measured(model, batch, flags, Path(folder) / "figures.json")


def _measured(model: str, batch: int, flags: Sequence[str], file: Path) -> StepFigures:
    command = [sys.executable, "-P", "-m", "lockstep", "bench", "step", "--model", model, "--batch", str(batch)]
    done = subprocess.run(
        [*command, *flags, "--json", str(file)], capture_output=True, check=False, env=child_environment()
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise RunError(f"{model} at batch {batch}: {words.removeprefix(ERROR_MARK)}")
    return msgspec.json.decode(file.read_bytes(), type=StepFigures)
