"""Who trains: this process, or workers if they are much quicker; with the same bits."""

import numpy as np
import pytest
from rich.console import Console

from lockstep import nn
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.clock import SystemClock
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.reports.display import display_for
from lockstep.sklearn.training import Stream, TrainingTask, train
from tests.lockstep.launch.test_placement import SlowClock

#: A machine with so many cores.
CORES = 4


def task(loss: str = "cross-entropy", classes: int = 3) -> TrainingTask:
    """Return something to train in a moment. The training set lacks the last class."""
    rng = generator(0, Purpose.CANARY)
    x = rng.standard_normal((96, 5), dtype=np.float32)
    labels = rng.integers(0, classes - 1, 96) if loss == "cross-entropy" else x[:, :classes].copy()
    last = np.full(1, classes - 1) if loss == "cross-entropy" else labels[:1]
    known = classes if loss == "cross-entropy" else 0
    job = Job(
        model=dict(describe(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, classes)))),
        data="arrays",
        loss=loss,
        epochs=8,
        global_batch=32,
        micro_batches=4,
        validation_split=0.25,
    )
    return TrainingTask(job=job, data=TrainTest("arrays", Dataset(x, labels, known), Dataset(x[:1], last, known)))


def by(clock: SystemClock | SlowClock, workers: int, work: TrainingTask) -> tuple[Stream, RunResult]:
    return train(work, workers, CORES, clock, display_for(Console(quiet=True), clock))


@pytest.mark.parametrize("loss", ["cross-entropy", pytest.param("mse", marks=pytest.mark.slow)])
def test_what_would_take_long_is_trained_by_workers_with_the_same_bits(loss: str) -> None:
    work = task(loss)
    (here, result), (there, other) = by(SystemClock(), 2, work), by(SlowClock(10.0), 2, work)
    assert (result.workers, other.workers) == (0, 2)
    assert other.weights_sha256 == result.weights_sha256
    assert there.weights.keys() == here.weights.keys()
    assert all(np.array_equal(there.weights[name], array) for name, array in here.weights.items())
    assert [figures(epoch) for epoch in other.history] == [figures(epoch) for epoch in result.history]
    assert there.moments == here.moments
    assert other.weights_epoch == result.weights_epoch


def figures(epoch: object) -> dict[str, object]:
    """Return the figures of an epoch without its time."""
    return {name: getattr(epoch, name) for name in ("epoch", "loss", "val_loss", "weights_sha256")}


@pytest.mark.parametrize("workers", [0, 1])
def test_one_worker_is_never_quicker(workers: int) -> None:
    assert by(SlowClock(10.0), workers, task())[1].workers == 0
