"""Worked values: where a derivative is a convention, it is PyTorch's; where a formula could overflow, it does not."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.leaves import erf


def gradients(function: Callable[..., Tensor], *values: object) -> list[Array | None]:
    tensors = [Tensor(np.array(each, np.float64), requires_grad=True) for each in values]
    result = function(*tensors)
    result.backward(np.ones(result.shape))
    return [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("function", [F.maximum, F.minimum])
def test_ties_of_two_are_halved(function: Callable[..., Tensor]) -> None:
    one, other = gradients(function, [1.0, np.inf], [1.0, np.inf])
    np.testing.assert_array_equal(one, [0.5, 0.5])
    np.testing.assert_array_equal(other, [0.5, 0.5])


def test_the_greater_takes_all() -> None:
    one, other = gradients(F.maximum, [1.0, 3.0], [2.0, 2.0])
    np.testing.assert_array_equal(one, [0.0, 1.0])
    np.testing.assert_array_equal(other, [1.0, 0.0])


@pytest.mark.parametrize("function", [F.max, F.min])
def test_ties_along_axes_are_shared(function: Callable[..., Tensor]) -> None:
    (grad,) = gradients(lambda x: function(x, dim=1), [[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(grad, np.full((2, 4), 0.25))
    (grad,) = gradients(function, [[1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(grad, np.full((2, 2), 0.25))


def test_kinks_at_zero() -> None:
    np.testing.assert_array_equal(gradients(F.relu, [0.0, -0.0])[0], [0.0, 0.0])
    np.testing.assert_array_equal(gradients(F.abs, [0.0])[0], [0.0])
    np.testing.assert_array_equal(gradients(F.leaky_relu, [0.0])[0], [0.01])


def test_clip_passes_at_its_bounds() -> None:
    (grad,) = gradients(lambda x: F.clip(x, -1, 1), [-1.0, 1.0, -1.1, 1.1])
    np.testing.assert_array_equal(grad, [1.0, 1.0, 0.0, 0.0])


def test_powers_at_zero() -> None:
    base, exponent = gradients(F.power, [0.0, 0.0, 0.0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(base, [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(exponent, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(gradients(lambda x: x**0, [0.0])[0], [0.0])


def test_a_negative_base_has_powers_by_whole_numbers() -> None:
    np.testing.assert_array_equal(gradients(lambda x: x**3, [-2.0])[0], [12.0])
    np.testing.assert_array_equal(gradients(lambda x: x**-1, [-2.0])[0], [-0.25])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [F.sigmoid, F.softplus, F.tanh, F.gelu, lambda x: F.gelu(x, approximate="tanh")])
def test_nothing_overflows(function: Callable[..., Tensor], dtype: type) -> None:
    x = Tensor(np.array([-1e4, -100.0, 0.0, 100.0, 1e4], dtype), requires_grad=True)
    y = function(x)
    y.backward(np.ones_like(y.data))
    assert np.isfinite(y.data).all()
    assert x.grad is not None
    assert np.isfinite(x.grad).all()


def test_small_sigmoids_are_exact() -> None:
    x = Tensor(np.array([-40.0, -20.0, -1.0, 1.0, 20.0]))
    np.testing.assert_allclose(F.sigmoid(x).data, 1 / (1 + np.exp(-x.data)), rtol=1e-15)


def test_softplus() -> None:
    x = np.array([-30.0, -1.0, 0.0, 1.0, 30.0])
    np.testing.assert_allclose(F.softplus(Tensor(x)).data, np.log1p(np.exp(x)), rtol=1e-15)
    np.testing.assert_allclose(F.softplus(Tensor(x), beta=2.0).data, np.log1p(np.exp(2 * x)) / 2, rtol=1e-15)


def test_gelu_as_in_pytorch() -> None:
    x = Tensor(np.array([-2.0, -0.5, 0.0, 1.0, 3.0]))
    exact = [0.5 * each * (1 + math.erf(each / math.sqrt(2))) for each in x.tolist()]
    np.testing.assert_allclose(F.gelu(x).data, exact, rtol=1e-13)
    curve = [math.tanh(math.sqrt(2 / math.pi) * (each + 0.044715 * each**3)) for each in x.tolist()]
    expected = [0.5 * each * (1 + bend) for each, bend in zip(x.tolist(), curve, strict=True)]
    np.testing.assert_allclose(F.gelu(x, approximate="tanh").data, expected, rtol=1e-13)
    with pytest.raises(ValueError, match="must be 'none' or 'tanh'"):
        F.gelu(x, approximate="erf")


def test_relu_drops_infinite_gradients() -> None:
    x = Tensor([-1.0, 1.0], requires_grad=True)
    F.relu(x).backward(np.array([np.inf, np.inf]))
    np.testing.assert_array_equal(x.grad, [0.0, np.inf])


def test_the_last_of_repeated_assignments_gets_the_gradient() -> None:
    x, values = Tensor(np.zeros(3), requires_grad=True), Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = x * 1
    y[[0, 0, 2]] = values
    y.backward(np.array([10.0, 20.0, 30.0]))
    np.testing.assert_array_equal(y.data, [2.0, 0.0, 3.0])
    np.testing.assert_array_equal(values.grad, [0.0, 10.0, 30.0])
    np.testing.assert_array_equal(x.grad, [0.0, 20.0, 0.0])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_products_of_empty_matrices(shape: tuple[int, int]) -> None:
    x, weight = Tensor(np.zeros(shape), requires_grad=True), Tensor(np.ones((2, shape[1])), requires_grad=True)
    F.linear(x, weight).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    np.testing.assert_array_equal(weight.grad, np.zeros((2, shape[1])))


def reference(x: Array) -> Array:
    return np.array([math.erf(each) for each in x.tolist()]).reshape(x.shape)


@pytest.mark.parametrize(("dtype", "relative"), [(np.float32, 5e-7), (np.float64, 2e-14)])
def test_values(dtype: type, relative: float) -> None:
    x: Array = np.concatenate([np.linspace(-1e-3, 1e-3, 2001), np.linspace(-9, 9, 20001)]).astype(dtype)
    result = erf(x)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, reference(x), rtol=relative, atol=0)


def test_it_is_odd_and_ends_at_one() -> None:
    x = np.array([0.0, 0.3, 2.0, 30.0, np.inf])
    np.testing.assert_array_equal(erf(-x), -erf(x))
    np.testing.assert_allclose(erf(x[3:]), 1.0, rtol=2e-14)


def test_nan_stays() -> None:
    assert np.isnan(erf(np.array([np.nan]))).all()
