"""Initial values: their statistics against the formulas of the papers, PyTorch's fans and gains, determinism."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn import init
from tests.lockstep.common.nn.examples import rng

Draw = Callable[[Tensor, np.random.Generator], Tensor]


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("draw", "std"),
    [
        (init.xavier_uniform_, math.sqrt(2 / (300 + 200))),
        (init.xavier_normal_, math.sqrt(2 / (300 + 200))),
        (lambda t, g: init.xavier_normal_(t, g, gain=2.0), 2 * math.sqrt(2 / (300 + 200))),
        (init.kaiming_uniform_, math.sqrt(2 / 200)),
        (init.kaiming_normal_, math.sqrt(2 / 200)),
        (lambda t, g: init.kaiming_normal_(t, g, mode="fan_out"), math.sqrt(2 / 300)),
        (lambda t, g: init.kaiming_uniform_(t, g, a=0.5), math.sqrt(2 / 1.25 / 200)),
        (lambda t, g: init.kaiming_normal_(t, g, nonlinearity="tanh"), 5 / 3 / math.sqrt(200)),
        (init.default_weight_, 1 / math.sqrt(3 * 200)),
        (lambda t, g: init.normal_(t, g, mean=0.0, std=3.0), 3.0),
        (lambda t, g: init.uniform_(t, g, -1.0, 1.0), 1 / math.sqrt(3)),
    ],
)
def test_mean_and_deviation_are_the_formulas(draw: Draw, std: float) -> None:
    weight = zeros(300, 200)
    assert draw(weight, rng()) is weight
    assert weight.data.std() == pytest.approx(std, rel=0.02)
    assert abs(weight.data.mean()) < 4 * std / math.sqrt(weight.size)
    assert len(np.unique(weight.data)) > 0.9 * weight.size, "every element has a value of its own"


@pytest.mark.parametrize(
    ("draw", "bound"),
    [
        (init.xavier_uniform_, math.sqrt(6 / (300 + 200))),
        (init.kaiming_uniform_, math.sqrt(6 / 200)),
        (init.default_weight_, 1 / math.sqrt(200)),
    ],
)
def test_uniform_draws_reach_their_bound_and_stay_within(draw: Draw, bound: float) -> None:
    largest = np.abs(draw(zeros(300, 200), rng()).data).max()
    assert bound * 0.999 < largest <= bound * (1 + 1e-6)


def test_the_same_generator_state_gives_the_same_bits() -> None:
    one, other, third = (init.kaiming_normal_(zeros(5, 4), rng(seed)).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)


def test_constants() -> None:
    assert init.zeros_(Tensor(np.ones(2))).data.tolist() == [0, 0]
    assert init.ones_(zeros(2)).data.tolist() == [1, 1]
    assert init.constant_(zeros(2), 0.5).data.tolist() == [0.5, 0.5]


def test_the_array_is_written_in_place() -> None:
    flat = np.zeros(6, np.float32)
    init.ones_(Tensor(flat[2:4]))
    assert flat.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("shape", "fans"), [((3, 4), (4, 3)), ((6, 2, 5), (10, 30)), ((8, 4, 3, 5), (60, 120))])
def test_fans_are_pytorchs(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    assert init.calculate_fan_in_and_fan_out(zeros(*shape)) == fans


def test_a_vector_has_no_fan() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) has no fan: expected at least two axes"):
        init.xavier_uniform_(zeros(3), rng())


@pytest.mark.parametrize(
    ("nonlinearity", "gain"), [("linear", 1), ("tanh", 5 / 3), ("relu", math.sqrt(2)), ("selu", 0.75), ("sigmoid", 1)]
)
def test_gains_are_pytorchs(nonlinearity: Any, gain: float) -> None:
    assert init.calculate_gain(nonlinearity) == pytest.approx(gain)
    assert init.calculate_gain("leaky_relu", 0.5) == pytest.approx(math.sqrt(2 / 1.25))


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="unknown nonlinearity 'swish': expected one of linear, "):
        init.calculate_gain("swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown mode 'fan': expected 'fan_in' or 'fan_out'"):
        init.kaiming_normal_(zeros(2, 2), rng(), mode="fan")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(nn.Linear(400, 600), 400), (nn.Conv1d(32, 300, 3), 96), (nn.Conv2d(16, 400, (5, 3), groups=4), 60)],
)
def test_layers_draw_weights_and_biases_from_pytorchs_interval(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d, fan_in: int
) -> None:
    layer.reset_parameters(rng())
    assert layer.bias is not None
    for values in (layer.weight.data, layer.bias.data):
        bound = 1 / math.sqrt(fan_in)
        assert 0.97 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_an_embedding_is_standard_normal() -> None:
    weight = nn.Embedding(300, 100, rng=rng()).weight.data
    assert weight.mean() == pytest.approx(0, abs=0.02)
    assert weight.std() == pytest.approx(1, rel=0.02)
