"""What is recorded, and how to have nothing recorded."""

import threading

import numpy as np
import pytest

from lockstep.common.autograd.graph import enable_grad, no_grad
from lockstep.common.autograd.primitives import elementwise
from lockstep.common.autograd.tensor import Tensor, apply


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def test_no_grad_records_nothing() -> None:
    x = leaf(1.0)
    with no_grad():
        y = x * 2
    assert not y.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator() -> None:
    @no_grad()
    def double(x: Tensor, depth: int) -> Tensor:
        return x * 2 if depth == 0 else double(x, depth - 1)

    x = leaf(1.0)
    assert not double(x, 2).requires_grad
    assert (x * 2).requires_grad


def test_an_exception_restores_recording() -> None:
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1.0) * 2).requires_grad


def test_enable_grad_inside() -> None:
    with no_grad(), enable_grad():
        assert (leaf(1.0) * 2).requires_grad


def test_other_threads_go_on_recording() -> None:
    found: list[bool] = []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append((leaf(1.0) * 2).requires_grad))
        thread.start()
        thread.join()
    assert found == [True]


def test_constants_make_no_nodes() -> None:
    assert Tensor([1.0]).exp().grad_fn is None


def test_an_argument_without_a_derivative_is_not_walked() -> None:
    condition = leaf(1.0)
    assert not apply(elementwise.where, condition, np.array([1.0]), np.array([2.0])).requires_grad
