"""Callbacks, early stopping and a model of one's own, over real processes: the bits of one process."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lockstep import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint, fit, resume
from lockstep.api.callbacks import Training
from lockstep.common.errors import CallbackError
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.ledger import WorkerIn, read_lines
from lockstep.ps.records.run_folder import LEDGER
from tests.lockstep.api import zoo
from tests.lockstep.tiny_data import tiny_arrays

BRIEF: dict[str, Any] = {
    "epochs": 4,
    "global_batch": 32,
    "micro_batches": 4,
    "lr": 0.02,
    "schedule": "constant",
    "verbose": False,
}


class Stopper(Callback):
    """Stops after an epoch, and keeps what it was told."""

    def __init__(self, after: int) -> None:
        self.after, self.told = after, list[tuple[int, float]]()

    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        self.told.append((epoch.epoch, epoch.test_loss))
        if epoch.epoch == self.after:
            training.stop()


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_callback_stops_any_number_of_workers_at_the_same_step(tmp_path: Path, workers: int) -> None:
    runs, stoppers = [], []
    for count in (0, workers):
        stopper, files = Stopper(after=3), ModelCheckpoint(tmp_path / str(count) / "{epoch}.safetensors")
        run = fit(
            "linear",
            tiny_arrays(),
            run_dir=tmp_path / f"run-{count}",
            workers=count,
            callbacks=[stopper, files],
            **BRIEF,
        )
        runs.append(run)
        stoppers.append(stopper.told)
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    assert stoppers[0] == stoppers[1] == [(epoch.epoch, epoch.test_loss) for epoch in runs[0].history]
    assert (runs[1].result.steps, runs[1].result.stopped) == (15, "a callback stopped it after epoch 3")
    for name in ("1", "2", "3"):
        alone, shared = (tmp_path / str(count) / f"{name}.safetensors" for count in (0, workers))
        assert alone.read_bytes() == shared.read_bytes()


@pytest.mark.parametrize("workers", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_class_of_ones_own_stops_early_with_the_bits_of_one_process(tmp_path: Path, workers: int) -> None:
    stopping = EarlyStopping(patience=1, min_delta=0.2, restore_best_weights=True)
    runs = [
        fit(
            zoo.Net(),
            tiny_arrays(),
            run_dir=tmp_path / str(count),
            workers=count,
            validation_split=0.2,
            callbacks=[stopping],
            **{**BRIEF, "epochs": 30},
        )
        for count in (0, workers)
    ]
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    assert len(runs[1].history) == len(runs[0].history) < 30
    assert runs[1].result.weights_epoch == len(runs[1].history) - 1


def test_what_a_callback_raises_ends_all_processes(tmp_path: Path) -> None:
    def fail(training: Training, epoch: EpochRecord) -> None:
        raise ZeroDivisionError

    with pytest.raises(CallbackError):
        fit(
            "linear", tiny_arrays(), run_dir=tmp_path, workers=2, callbacks=[LambdaCallback(on_epoch_end=fail)], **BRIEF
        )
    assert pids_in(tmp_path) == [None]
    calm = fit("linear", tiny_arrays(), run_dir=tmp_path / "calm", workers=0, **BRIEF)
    assert resume(tmp_path, workers=1, verbose=False).weights_sha256 == calm.weights_sha256


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_ends_all_processes_and_the_run_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    def interrupt(training: Training, epoch: EpochRecord) -> None:
        if epoch.epoch == 2:
            signal.raise_signal(signal.SIGINT)  # as the button above a notebook does

    values, interrupting = {**BRIEF, "verbose": True, "workers": workers}, LambdaCallback(on_epoch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit("linear", tiny_arrays(), run_dir=tmp_path, callbacks=[interrupting], **values)
    told = f"interrupted: the run is kept; resume it with lockstep.resume({str(tmp_path)!r})"
    assert told in capsys.readouterr().out.splitlines()
    assert pids_in(tmp_path) == min(workers, 1) * [None]
    calm = fit("linear", tiny_arrays(), run_dir=tmp_path / "calm", **{**BRIEF, "workers": 0})
    assert resume(tmp_path, verbose=False).weights_sha256 == calm.weights_sha256


def pids_in(folder: Path) -> list[int | None]:
    """Return the leaders of a run's teams, None for each that is gone."""
    lines = read_lines((folder / LEDGER).read_bytes(), LEDGER)
    return [line.pid if Path(f"/proc/{line.pid}").exists() else None for line in lines if isinstance(line, WorkerIn)]


def test_a_worker_killed_in_a_pause_costs_nothing(tmp_path: Path) -> None:
    def kill(training: Training, epoch: EpochRecord) -> None:
        if epoch.epoch == 2:
            lines = read_lines((training.folder / LEDGER).read_bytes(), LEDGER)
            os.kill(next(line.pid for line in lines if isinstance(line, WorkerIn)), signal.SIGKILL)

    run = fit(
        "linear", tiny_arrays(), run_dir=tmp_path, workers=2, callbacks=[LambdaCallback(on_epoch_end=kill)], **BRIEF
    )
    calm = fit("linear", tiny_arrays(), run_dir=tmp_path / "calm", workers=0, **BRIEF)
    assert run.weights_sha256 == calm.weights_sha256
