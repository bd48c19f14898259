"""What holds for every layer: its class is in the examples, forward and backward work, gradients are slopes."""

import numpy as np
import pytest

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module
from tests.lockstep.common.nn.examples import ALL, LAYERS, label, normal, public_classes
from tests.lockstep.common.nn.finite_differences import assert_gradients, to_float64

CASES = [pytest.param(layer, shape, id=label(layer)) for layer, shape in LAYERS]


def test_every_public_class_has_an_example() -> None:
    assert {type(module) for module in ALL} == public_classes()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_the_input_gradient_is_the_slope_along_a_direction(
    layer: Module, shape: tuple[int, ...], training: bool
) -> None:
    to_float64(layer.train(training))
    x, direction = Tensor(normal(shape).data, requires_grad=True), normal(shape, seed=1).data

    def loss(at: Tensor) -> Tensor:
        layer.reseed(0, 0, 0)
        y = layer(at)
        return (y * normal(y.shape, seed=2)).sum()

    loss(x).backward()
    step = 1e-6
    slope = (loss(x.detach() + step * direction) - loss(x.detach() - step * direction)).item() / (2 * step)
    assert x.grad is not None
    np.testing.assert_allclose(np.sum(x.grad * direction), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), [case for case in CASES if list(case.values[0].parameters())])  # type: ignore[union-attr]
def test_parameter_gradients_are_slopes(layer: Module, shape: tuple[int, ...], training: bool) -> None:
    layer.train(training)
    x = normal(shape)

    def loss() -> Tensor:
        y = layer(x)
        return (y * normal(y.shape, seed=2)).sum()

    assert_gradients(layer, loss)


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_float32_in_gives_float32_out(layer: Module, shape: tuple[int, ...]) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data.astype(np.float32)
    assert layer(Tensor(normal(shape).data.astype(np.float32))).dtype == np.float32
