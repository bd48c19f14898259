"""Primitives that consist of several operations have the bits of the page of the contract."""

import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.recurrent import recurrent
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.numerics.operands import GATES
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


def _layer(
    kind: str, sizes: tuple[int, int, int, int], is_reversed: bool, lengths: tuple[int, ...] | None
) -> reference.Layer:
    steps, batch, features, hidden = sizes
    rows = GATES[kind] * hidden
    shapes = [(steps, batch, features), *[(batch, hidden)] * 2, (rows, features), (rows, hidden), (rows,), (rows,)]
    drawn = [_drawn(*shape, seed=seed) * np.float32(0.1) for seed, shape in enumerate(shapes)]
    arrays = dict(zip(reference.Layer._fields[1:8], drawn, strict=True))
    return reference.Layer(kind=kind, is_reversed=is_reversed, lengths=lengths or (steps,) * batch, **arrays)


@pytest.mark.parametrize(("is_reversed", "lengths"), [(False, None), (True, None), (False, (3, 1)), (True, (1, 2))])
@pytest.mark.parametrize("kind", GATES)
def test_a_recurrent_layer_has_the_bits_of_the_contract(
    kind: str, is_reversed: bool, lengths: tuple[int, ...] | None
) -> None:
    _check_layer(_layer(kind, (3, 2, 5, 9), is_reversed, lengths), lengths)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 90, 2, 3), (2, 3, 300, 2), (2, 1, 3, 70)], ids=str)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_chains_of_a_recurrent_layer_end_after_256_terms(kind: str, sizes: tuple[int, int, int, int]) -> None:
    _check_layer(_layer(kind, sizes, False, None), None)


def _check_layer(layer: reference.Layer, lengths: tuple[int, ...] | None) -> None:
    given = {name: _leaf(getattr(layer, name)) for name in layer._fields[1:8]}
    expected, made = reference.recurrent(layer)
    cell = given["cell"] if layer.kind == "lstm" else None
    operands = [given["x"], given["state"], cell, *list(given.values())[3:]]
    found = apply(recurrent, *operands, kind=layer.kind, is_reversed=layer.is_reversed, lengths=lengths)
    assert _same(found.data, expected)
    gradient = _drawn(*expected.shape, seed=9)
    found.backward(gradient)
    for name, wanted in reference.recurrent_gradient(layer, made, gradient).items():
        if given[name] is not cell and name == "cell":
            continue
        assert _same(_gradient(given[name]), np.ascontiguousarray(wanted)), name
