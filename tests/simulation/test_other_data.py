"""The promise for what is no picture of a class: numbers to be told of a table, and characters of a text."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.optimizers import SGD
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import NO_TRANSPORT, MetricsRecorder, Setting
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.single_process import SerialRun
from tests.lockstep.common.model.built import build_model
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run
from tests.simulation.small import job_of


@cache
def table() -> TrainTest:
    """Two numbers to be told of five."""
    rng = generator(0, Purpose.CANARY)
    x = rng.standard_normal((70, 5)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], x[:, 2] - 3 * x[:, 3]], axis=1).astype(np.float32)
    return TrainTest("table", Dataset(x[:40], y[:40], 0), Dataset(x[40:], y[40:], 0))


@cache
def text() -> TrainTest:
    """Sequences of seven tokens of nine kinds; each is told by the one before it."""
    rng = generator(1, Purpose.CANARY)
    x = rng.integers(0, 9, (70, 7), dtype=np.int32)
    y = (x.astype(np.int64) * 2 + 1) % 9
    return TrainTest("text", Dataset(x[:40], y[:40], 9), Dataset(x[40:], y[40:], 9))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, norm_first=True, is_causal=True)
    return nn.Sequential(nn.Embedding(9, 8), nn.PositionalEmbedding(7, 8), layer, nn.LayerNorm(8), nn.Linear(8, 9))


def normalised() -> nn.Module:
    """A net whose running statistics are weighted by samples, where two targets of each are counted."""
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))


def job(model: nn.Module, **values: Any) -> Job:
    # Three steps an epoch, the last of them short.
    return job_of(model=dict(describe(model)), global_batch=18, micro_batches=5, steps=6, lr=0.05, **values)


JOBS = {
    "table": (job(normalised(), loss="mse", clip_norm=2.0), table),
    "text": (job(transformer(), optimizer="adamw"), text),
}


@cache
def alone(name: str) -> RunRecords:
    chosen, data = JOBS[name]
    return reference_run(chosen, data())


def train_alone(chosen: Job, data: TrainTest) -> RunSetup:
    """Train in one process; return what it began with, whose shard has the last weights."""
    opening = open_run("alone", chosen, data, RunOptions())
    recorder = MetricsRecorder(opening.info, Setting(transport=NO_TRANSPORT, started=0.0), opening.layout, None)
    SerialRun(opening, recorder, ManualClock(), lambda status: None).train()
    return opening


@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("name", JOBS)
def test_any_number_of_workers_gives_the_bits_and_figures_of_one_process(name: str, workers: int) -> None:
    chosen, data = JOBS[name]
    simulation = Simulation(chosen, workers, RunOptions(min_workers=workers), data=data)
    for _ in range(workers):
        simulation.add_worker()
    simulation.prove(alone(name))


def test_a_regression_is_told_by_r2_and_classes_by_accuracy() -> None:
    of_table, of_text = alone("table").result, alone("text").result
    assert (of_table.test_accuracy, of_text.test_r2) == (None, None)
    assert all(epoch.accuracy is None and epoch.test_accuracy is None for epoch in of_table.history)
    variance = float(np.var(table().test.labels, axis=0).mean())
    assert of_table.test_r2 == pytest.approx(1 - of_table.test_loss / variance, rel=1e-6)
    # Over places, and not over sequences: at the start it guesses one of nine.
    assert of_text.history[0].loss == pytest.approx(np.log(9), rel=0.2)
    assert of_text.test_accuracy is not None
    assert of_text.test_accuracy * 30 * 7 == pytest.approx(round(of_text.test_accuracy * 30 * 7))


def test_running_statistics_are_weighted_by_samples_and_not_by_targets() -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2))
    chosen = job_of(
        model=dict(describe(net)), loss="mse", normalize=False, global_batch=20, micro_batches=1, steps=1, lr=1e-9
    )
    opening = train_alone(chosen, table())
    rows = generator(chosen.seed, Purpose.SHUFFLE, at=0).permutation(40)[:20]
    found = opening.layout.read(opening.shard.weights)
    np.testing.assert_allclose(found["0.running_mean"], 0.1 * table().train.images[rows].mean(axis=0), rtol=1e-4)


def test_the_bits_are_those_of_a_loop_written_by_hand() -> None:
    plain = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    chosen = job_of(
        model=dict(describe(plain)),
        loss="mse",
        normalize=False,
        global_batch=20,
        micro_batches=1,
        steps=2,
        momentum=0.0,
    )
    opening = train_alone(chosen, table())
    model = build_model(chosen.model).initialize(chosen.seed)
    optimizer = SGD(model.parameters(), lr=chosen.lr)
    order = generator(chosen.seed, Purpose.SHUFFLE, at=0).permutation(40)
    for rows in (order[:20], order[20:]):
        optimizer.zero_grad()
        x, y = table().train.images[rows], table().train.labels[rows]
        F.mse_loss(model(Tensor(x)), y).backward()
        optimizer.step()
    expected = np.concatenate([parameter.data.ravel() for parameter in model.parameters()])
    np.testing.assert_allclose(opening.shard.weights, expected, rtol=2e-6)
