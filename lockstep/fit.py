"""Training from Python: one call, in a script or a notebook cell, on any number of workers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray
from rich.console import Console

from common.clock import SystemClock
from common.errors import JobError
from common.job import Job
from common.model import build_model
from common.nn.description import describe
from common.nn.module import Module
from common.safetensors import read
from lockstep.books import Destination
from lockstep.display import Display, SilentDisplay, display_for
from lockstep.handover import Arrays, handed_over, named_arrays
from lockstep.job_file import read_values, resolve
from lockstep.launch import default_launch
from lockstep.local import train_here
from lockstep.run_dir import JOB, claimed_run_dir
from ps.run_folder import RESULT, WEIGHTS, EpochRecord, RunResult, read_result


@dataclass(frozen=True)
class Run:
    """A finished run: its result and its folder."""

    result: RunResult
    folder: Path
    job: Job

    @property
    def test_accuracy(self) -> float:
        """The share of test samples that the final weights get right."""
        return self.result.test_accuracy

    @property
    def history(self) -> list[EpochRecord]:
        """One record an epoch: loss, accuracy, test_loss, test_accuracy, wall_s, weights_sha256."""
        return self.result.history

    @property
    def weights_sha256(self) -> str:
        """The digest of the final weights: equal for equal jobs, whatever the number of workers."""
        return self.result.weights_sha256

    @cached_property
    def model(self) -> Module:
        """A model with the final weights, in evaluation mode."""
        model = build_model(self.job.model)
        arrays, _ = read(self.folder / WEIGHTS)
        model.load_state_dict(arrays)
        return model.eval()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, test_accuracy={self.test_accuracy:.4f})"


def fit(
    model: Module | str,
    data: str | Path | Arrays = "mnist",
    *,
    run_dir: str | Path | None = None,
    warm_start: bool = False,
    verbose: bool = True,
    **values: Any,
) -> Run:
    """Train a model and return the run; `model` itself stays as it is, the trained one is `run.model`.

    `model` is a Module made of the library's layers, the name of a shipped model, or `FILE.py:FUNCTION`. `data` is
    "mnist", a folder of IDX files, an .npz, or arrays as `((x_train, y_train), (x_test, y_test))`: images uint8 or
    float (n, h, w) or (n, channels, h, w), or features (n, k), and integer labels (n,) from 0. `values` are those of a
    job file: `workers=4, epochs=3, lr=0.1, seed=7, optimizer="adam"`, …; `workers=0` trains in this process.

    The first weights are drawn from `seed`, so that the same call gives the same bits; with `warm_start=True` they are
    the model's own. Results go to `run_dir`, a new folder, by default one below `runs`.

    Raises `JobError`, `ModelError` or `DataError` where the call cannot be carried out, and `RunError` where the run
    fails.
    """
    arrays = None if isinstance(data, str | Path) else named_arrays(data)
    given = {"model": describe(model) if isinstance(model, Module) else model, **values}
    if arrays is None:
        given["data"] = str(data)
    job, launch = resolve({}, given, default_launch())
    weights = _weights(model) if warm_start else None
    wanted = None if run_dir is None else Path(run_dir)
    with (
        claimed_run_dir(wanted, job.model_name()) as folder,
        handed_over(folder, weights, arrays) as paths,
        _display(verbose) as display,
    ):
        job = msgspec.structs.replace(job, **paths)
        result = train_here(job, Destination(folder=folder, launch=launch), display)
    return Run(result, folder, job)


def load_run(folder: str | Path) -> Run:
    """Return a finished run from its folder."""
    path = Path(folder)
    if not (path / RESULT).is_file():
        raise JobError(f"{str(folder)!r} holds no finished run: expected a folder with {RESULT}")
    job, _ = resolve(read_values(path / JOB), {}, default_launch())
    return Run(read_result(path), path, job)


def _weights(model: Module | str) -> dict[str, NDArray[Any]]:
    if not isinstance(model, Module):
        raise JobError(f"warm_start needs a model with weights, and {model!r} is a name: pass the Module itself")
    return model.state_dict()


def _display(verbose: bool) -> Display:
    # Plain lines also in a notebook, where rich would put each into a widget of its own.
    console = Console(highlight=False, force_jupyter=False)
    return display_for(console, SystemClock()) if verbose else SilentDisplay()
