"""Who trains: this process, or workers if they are much quicker; with the same bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lockstep import nn
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.clock import SystemClock
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.display import display_for
from lockstep.sklearn.network import BLOCK, MOST_ROWS, column_moments, repetitions, scaled
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


def test_columns_get_mean_0_and_deviation_1() -> None:
    rows = generator(0, Purpose.CANARY).standard_normal((BLOCK + 100, 3), dtype=np.float32)
    rows *= np.array([1e-3, 1, 1e6], np.float32)
    rows += np.array([0, -50, 3e7], np.float32)
    found = scaled(rows, column_moments(rows))
    np.testing.assert_allclose(found.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=0, dtype=np.float64), 1, rtol=1e-6)
    other = np.asfortranarray(rows)
    assert scaled(other, column_moments(other)).tobytes() == found.tobytes()


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, -1e30])
def test_a_constant_column_stays_one(value: float) -> None:
    rows = np.full((1000, 1), value, np.float32)
    np.testing.assert_allclose(scaled(rows, column_moments(rows)), 0, atol=1e-5 * max(1, abs(value)))
    assert column_moments(rows)[1] == 1.0


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([0, 2, 3], [0, 2, 3]),
        ([4, 6, 0], [2, 3, 0]),
        ([0.5, 0.25, 0], [2, 1, 0]),
        ([0.1, 0.1, 0.1], [1, 1, 1]),
        ([1, 1.5, 1.5, 1.5, 1.5], [1, 1, 2, 2, 1]),
        ([1, 1e9], [0, 16]),
    ],
)
def test_rows_are_repeated_in_proportion(weights: list[float], expected: list[int]) -> None:
    assert repetitions(np.array(weights, np.float64)).tolist() == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(any))
def test_repetitions_add_up(weights: list[float]) -> None:
    given_weights = np.array(weights)
    times = repetitions(given_weights)
    assert 0 < times.sum() <= MOST_ROWS * len(weights) + 1
    assert (times[given_weights == 0] == 0).all()
    # As the weights say, but for what one rounding leaves.
    shares = given_weights / given_weights.sum() * times.sum()
    np.testing.assert_allclose(np.cumsum(times), np.cumsum(shares), atol=1.01)


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sample_weight has the value -1: expected none below 0"):
        repetitions(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="sample_weight is 0 for every row: expected a row to learn from"):
        repetitions(np.zeros(3))
