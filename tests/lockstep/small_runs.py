"""Finished runs on a small dataset, for what is done with them afterwards."""

from pathlib import Path

from lockstep import Run, fit, nn
from lockstep.runs.trained_model import Trained, open_trained
from tests.lockstep.tiny_data import write_tiny


def small_run(
    folder: Path, model: nn.Module | str = "linear", name: str = "run", epochs: int = 3, lr: float = 0.05
) -> Run:
    """Train for a moment; the data is beside the run."""
    return fit(
        model,
        write_tiny(folder),
        run_dir=folder / name,
        workers=0,
        epochs=epochs,
        lr=lr,
        global_batch=32,
        micro_batches=4,
        verbose=False,
    )


def trained(folder: Path, model: nn.Module | str = "linear") -> Trained:
    return open_trained(small_run(folder, model).folder)
