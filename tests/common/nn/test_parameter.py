import copy

import numpy as np
import pytest

from common import nn
from common.autograd.tensor import Tensor


def test_a_parameter_wants_a_gradient_unless_told() -> None:
    assert nn.Parameter([1.0, 2.0]).requires_grad
    assert not nn.Parameter([1.0], requires_grad=False).requires_grad
    assert nn.Parameter([1.0, 2.0]).dtype == np.float32
    assert nn.Parameter(np.zeros(2)).dtype == np.float64


def test_it_shares_the_memory_it_is_given() -> None:
    flat = np.zeros(4, np.float32)
    nn.Parameter(flat[1:3]).data[...] = 1
    assert flat.tolist() == [0, 1, 1, 0]


def test_results_are_plain_tensors() -> None:
    assert type(nn.Parameter([1.0]) * 2) is Tensor


def test_a_deep_copy_shares_nothing() -> None:
    parameter = nn.Parameter([1.0, 2.0])
    (parameter * 3).sum().backward()
    twin = copy.deepcopy(parameter)
    twin.data[...] = 0
    assert twin.grad is not parameter.grad
    assert isinstance(twin, nn.Parameter)
    assert parameter.data.tolist() == [1, 2]


def test_integers_cannot_be_trained() -> None:
    with pytest.raises((TypeError, RuntimeError), match="float"):
        nn.Parameter(np.array([1, 2]))
