"""A ReLU behind its max-pool gives the values and gradients of one before it, to the bit."""

import numpy as np
import pytest

from common import nn
from common.autograd.tensor import Tensor
from common.nn.layers.reordering import cheapest_order
from common.random import Purpose, generator


def names(*modules: nn.Module) -> list[str]:
    return [type(module).__name__ for module in cheapest_order(modules)]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], []),
        ([nn.ReLU()], ["ReLU"]),
        ([nn.ReLU(), nn.MaxPool2d(2)], ["MaxPool2d", "ReLU"]),
        ([nn.ReLU(), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()], ["ReLU", "MaxPool1d", "ReLU", "Flatten"]),
        ([nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU()], ["MaxPool2d", "MaxPool2d", "ReLU", "ReLU"]),
        ([nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)], ["ReLU", "AvgPool2d", "MaxPool2d"]),
        ([nn.LeakyReLU(), nn.MaxPool2d(2)], ["LeakyReLU", "MaxPool2d"]),
    ],
)
def test_order(modules: list[nn.Module], expected: list[str]) -> None:
    assert names(*modules) == expected


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2)])
def test_values_and_gradients_are_those_of_the_order_as_written(pool: nn.MaxPool2d) -> None:
    rng = generator(0, Purpose.CANARY)
    # Few distinct values: windows with ties, with nothing positive, and with exact zeros.
    values = rng.integers(-2, 3, size=(3, 2, 8, 8)).astype(np.float32)
    plain, fused = Tensor(values, requires_grad=True), Tensor(values, requires_grad=True)
    expected, got = pool(nn.ReLU()(plain)), nn.Sequential(nn.ReLU(), pool)(fused)
    assert got.data.tobytes() == expected.data.tobytes()
    upstream = rng.standard_normal(expected.shape, dtype=np.float32)
    expected.backward(upstream)
    got.backward(upstream)
    assert plain.grad is not None
    assert fused.grad is not None
    np.testing.assert_array_equal(fused.grad, plain.grad)
