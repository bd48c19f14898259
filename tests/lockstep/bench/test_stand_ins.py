"""Models that stand in for one that computes: what they write, and that it is the same again."""

from pathlib import Path

import numpy as np
import pytest

from lockstep.bench.stand_ins import CLASSES, Filler, Sleeper, write_model, write_samples
from lockstep.common.aggregation.layout import Binding, layout_of
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.source import load
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.source import open_model
from lockstep.common.nn.module import Module

#: Weights of five values, and three samples whose sum is 6.
WEIGHTS = np.array([1.0, -2.0, 0.0, 4.0, 0.5], dtype=np.float32)
SAMPLES = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)


def gradient_of(module: Module, weights: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return the outputs for the samples, and the gradient that backward leaves of their sum."""
    gradient = np.full(weights.shape, 9.0, dtype=np.float32)
    Binding(module, layout_of(module), (weights,), (gradient,))
    outputs = module(Tensor(SAMPLES))
    outputs.sum().backward()
    return outputs, gradient


def test_a_gradient_is_filled_where_it_belongs() -> None:
    outputs, gradient = gradient_of(Filler(5), WEIGHTS)
    assert outputs.shape == (3, CLASSES)
    assert gradient.tolist() == [0.5] * 5


def test_one_that_sleeps_writes_weights_and_the_sum_of_the_samples() -> None:
    outputs, gradient = gradient_of(Sleeper(5, 0.0), WEIGHTS)
    assert outputs.data.tolist() == [[1.0, -2.0]] * 3
    assert gradient.tolist() == [7.0, 4.0, 6.0, 10.0, 6.5]


def test_it_gives_the_same_bits_again_and_others_for_other_weights() -> None:
    gradients = [gradient_of(Sleeper(5, 0.0), weights)[1].tobytes() for weights in (WEIGHTS, WEIGHTS, WEIGHTS + 1)]
    assert gradients[0] == gradients[1] != gradients[2]


def test_repeated_steps_leave_its_weights_finite() -> None:
    weights = WEIGHTS.copy()
    for _ in range(1000):
        weights -= 0.01 * gradient_of(Sleeper(5, 0.0), weights)[1]
    np.testing.assert_allclose(weights, -6.0, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "arguments"), [(Filler, (70_000,)), (Sleeper, (70_000, 0.02))], ids=["filler", "sleeper"]
)
def test_a_model_file_builds_the_same_one(kind: type[Module], arguments: tuple[float, ...], tmp_path: Path) -> None:
    model = open_model(write_model(tmp_path / "model.py", kind, *arguments), 0)
    assert type(model.module) is kind
    assert model.layout.size == 70_000


def test_a_model_file_says_how_long_to_sleep(tmp_path: Path) -> None:
    name = write_model(tmp_path / "model.py", Sleeper, 62_000, 0.02)
    assert "return Sleeper(62000, 0.02)" in Path(name.removesuffix(":build")).read_text()


def test_values_of_one_that_sleeps_differ() -> None:
    model = AutogradModel(Sleeper(62_000, 0.0))
    assert len(np.unique(model.first_weights(7))) == 62_000


def test_samples_differ_and_have_every_class(tmp_path: Path) -> None:
    train = load(write_samples(tmp_path / "samples.npz", 600)).train
    assert train.images[:].shape == (600, 1)
    assert len(np.unique(train.images[:])) == 251
    assert np.unique(train.labels).tolist() == list(range(CLASSES))
