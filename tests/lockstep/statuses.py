"""Statuses and results to show."""

from typing import Any

import msgspec

from lockstep.common.protocol.messages import EpochRecord, Status, WorkerStatus
from lockstep.ps.records.run_folder import RunResult

EPOCH = EpochRecord(epoch=1, loss=0.5, accuracy=0.875, test_loss=0.25, test_accuracy=0.9375, wall_s=12.34)

TRAINING = Status(
    run="20261124-231714-lenet",
    model="lenet",
    phase="training",
    epoch=2,
    epochs=8,
    step=700,
    steps=3752,
    loss=0.12345,
    accuracy=0.96123,
    images_per_s=12345.6,
    elapsed_s=20.0,
    eta_s=200.0,
    min_workers=2,
    workers=[],
    history=[EPOCH],
    failure="",
)


def worker(rank: int, **values: Any) -> WorkerStatus:
    """Return a worker at work, or as `values` say."""
    at_work = WorkerStatus(rank=rank, host="alpha", pid=4000 + rank, state="computing", samples=24_000, compute_s=2.0)
    return msgspec.structs.replace(at_work, **values)


def status(**values: Any) -> Status:
    """Return a run in training, or as `values` say."""
    return msgspec.structs.replace(TRAINING, **values)


def result(**values: Any) -> RunResult:
    """Return a result of a run by two workers that paid, or as `values` say."""
    good = RunResult(
        run="mine",
        model="lenet",
        dataset="mnist",
        seed=0,
        workers=2,
        servers=1,
        transport="ipc",
        epochs=1,
        steps=469,
        global_batch=128,
        micro_batches=8,
        wall_s=12.3,
        train_s=10.0,
        images_per_s=6000.0,
        compute_s=18.0,
        update_s=1.0,
        train_loss=0.5,
        test_loss=0.25,
        test_accuracy=0.9375,
        weights_sha256="ab" * 32,
        numerics={"mode": "native", "numpy": "2.4.6", "blas": "openblas 0.3", "kernel": "Zen"},
        history=[msgspec.structs.replace(EPOCH, weights_sha256="ab" * 32)],
    )
    return msgspec.structs.replace(good, **values)
