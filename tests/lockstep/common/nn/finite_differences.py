"""Compares the gradients of a module's parameters with central differences, in float64."""

from collections.abc import Callable

import numpy as np

from lockstep.common.autograd.gradient_check import slope_along
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module
from tests.lockstep.common.nn.examples import rng


def to_float64(module: Module) -> None:
    """Turn all parameters into float64, which central differences need."""
    for parameter in module.parameters():
        parameter.data = parameter.data.astype(np.float64)


def assert_gradients(module: Module, loss: Callable[[], Tensor], each: int = 3, step: float = 1e-6) -> None:
    """Assert that `loss().backward()` gives the slope of the loss along `each` elements of every parameter."""
    to_float64(module)
    module.zero_grad()
    loss().backward()
    choice = rng()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        for index in choice.integers(parameter.size, size=each):
            direction = np.zeros(parameter.shape)
            direction.flat[index] = 1
            slope = slope_along(direction, parameter.data, parameter.grad, lambda: loss().item(), step)
            np.testing.assert_allclose(slope.exact, slope.numeric, rtol=1e-5, atol=1e-8, err_msg=f"{name}[{index}]")
