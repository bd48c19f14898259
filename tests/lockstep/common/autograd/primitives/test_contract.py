"""Primitives that consist of several operations have the bits of the page of the contract."""

import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.numerics import reference
from tests.lockstep.common.numerics.reference import Floats


def _drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(0.0, 3.0, shape).astype(np.float32)


def _leaf(x: Floats) -> Tensor:
    return Tensor(x, requires_grad=True)


def _gradient(x: Tensor) -> Floats:
    assert x.grad is not None
    return np.ascontiguousarray(x.grad, np.float32)


def _same(found: Floats, expected: Floats) -> bool:
    return found.shape == expected.shape and np.ascontiguousarray(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_softmax_and_its_logarithm_have_the_bits_of_the_contract(classes: int) -> None:
    x, gradient = _leaf(_drawn(7, classes)), _drawn(7, classes, seed=1)
    y = F.softmax(x)
    y.backward(gradient)
    assert _same(y.data, reference.softmax(x.data))
    assert _same(_gradient(x), reference.softmax_gradient(gradient, y.data))
    x.zero_grad()
    y = F.log_softmax(x)
    y.backward(gradient)
    assert _same(y.data, reference.log_softmax(x.data))
    assert _same(_gradient(x), reference.log_softmax_gradient(gradient, y.data))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (23, 10), (5, 40)])
def test_cross_entropy_has_the_bits_of_the_contract(samples: int, classes: int, smoothing: float) -> None:
    x, targets = _leaf(_drawn(samples, classes)), np.arange(samples) * 3 % classes
    loss = F.cross_entropy(x, targets, label_smoothing=smoothing)
    loss.backward()
    expected, gradient = reference.mean_cross_entropy(x.data, targets.tolist(), smoothing)
    assert _same(loss.data, expected)
    assert _same(_gradient(x), gradient)


@pytest.mark.parametrize("features", [1, 12, 40])
def test_layer_norm_has_the_bits_of_the_contract(features: int) -> None:
    x, weight, bias = _leaf(_drawn(6, features)), _leaf(_drawn(features, seed=1)), _leaf(_drawn(features, seed=2))
    gradient = _drawn(6, features, seed=3)
    y = F.layer_norm(x, (features,), weight, bias)
    y.backward(gradient)
    rows, deviation = reference.standardized(x.data, 1e-5)
    assert _same(y.data, rows * weight.data + bias.data)
    assert _same(_gradient(x), reference.standardized_gradient(gradient * weight.data, rows, deviation))
    assert _same(_gradient(weight), reference.total(gradient * rows, [0]))
    assert _same(_gradient(bias), reference.total(gradient, [0]))


def test_batch_norm_has_the_bits_of_the_contract() -> None:
    x, gradient = _leaf(_drawn(9, 4, 3, 2)), _drawn(9, 4, 3, 2, seed=3)
    weight, bias = _leaf(_drawn(4, seed=1)), _leaf(_drawn(4, seed=2))
    y = F.batch_norm(x, None, None, weight, bias, training=True)
    y.backward(gradient)

    def by_channel(images: Floats) -> Floats:
        return np.ascontiguousarray(images.transpose(1, 2, 3, 0)).reshape(4, -1)

    rows, deviation = reference.standardized(by_channel(x.data), 1e-5)
    upstream = by_channel(gradient)
    assert _same(by_channel(y.data), rows * weight.data[:, None] + bias.data[:, None])
    expected = reference.standardized_gradient(upstream * weight.data[:, None], rows, deviation)
    assert _same(by_channel(_gradient(x)), expected)
    assert _same(_gradient(weight), reference.total(upstream * rows, [1]))
    assert _same(_gradient(bias), reference.total(upstream, [1]))
