"""Batch and layer normalisation: equal to the definition, with derivatives through the statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.autograd.primitives.normalization import (
    batch_moments,
    batch_norm,
    batch_norm_inference,
    batch_statistics,
    layer_norm,
)
from lockstep.common.autograd.primitives.primitive import Array, Sink
from tests.lockstep.common.autograd.primitives.calls import gradients_of, result_of

SHAPES = [(4, 3), (5, 2, 3), (3, 2, 4, 5), (2, 4, 1, 1), (1, 3, 2, 2)]


def _affine(count: int, arguments: int) -> list[Array]:
    """Return a weight and a bias, or the first of them, or none."""
    return list(np.random.default_rng(7).standard_normal((2, count)))[:arguments]


def _defined(x: Array, mean: Array, var: Array, eps: float, affine: list[Array]) -> Array:
    shape = (1, -1, *(1,) * (x.ndim - 2))
    result: Array = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + eps)
    for operation, each in zip((np.multiply, np.add), affine, strict=False):
        result = operation(result, each.reshape(shape))
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arguments", [0, 1, 2])
def test_batch_norm(shape: tuple[int, ...], arguments: int) -> None:
    x = 3 + 2 * np.random.default_rng(0).standard_normal(shape)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    affine = _affine(shape[1], arguments)
    expected = _defined(x, x.mean(axis=axes), x.var(axis=axes), 1e-3, affine)
    np.testing.assert_allclose(result_of(batch_norm, x, *affine, eps=1e-3), expected, rtol=1e-10, atol=1e-12)


def test_statistics_passed_in_give_the_same_bits_and_gradients() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    weight, bias = (each.astype(np.float32) for each in _affine(3, 2))
    sink = Sink()
    moments = result_of(batch_moments, x, sink=sink)
    assert sink.last is not None
    assert np.stack(sink.last[:2]).tobytes() == moments.tobytes() == np.stack(batch_statistics(x)).tobytes()
    result = result_of(batch_norm, x, weight, bias)
    np.testing.assert_array_equal(result_of(batch_norm, x, weight, bias, moments), result)
    *given_, of_moments = gradients_of(batch_norm, result, x, weight, bias, moments)
    assert of_moments is None
    for one, other in zip(given_, gradients_of(batch_norm, result, x, weight, bias), strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arguments", [0, 1, 2])
def test_batch_norm_inference_takes_statistics_as_constants(shape: tuple[int, ...], arguments: int) -> None:
    rng = np.random.default_rng(0)
    x, mean, var = rng.standard_normal(shape), rng.standard_normal(shape[1]), rng.random(shape[1])
    affine = _affine(shape[1], arguments)
    result = result_of(batch_norm_inference, x, *affine, mean=mean, var=var)
    np.testing.assert_allclose(result, _defined(x, mean, var, 1e-5, affine), rtol=1e-10, atol=1e-12)


def test_the_mean_of_large_numbers_does_not_cancel() -> None:
    x = (1000 + np.random.default_rng(0).standard_normal((64, 1, 4, 4))).astype(np.float32)
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(), rtol=1e-6)
    np.testing.assert_allclose(var, x.astype(np.float64).var(), rtol=1e-4)
    assert mean.dtype == var.dtype == np.float32


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_layer_norm(ndim: int, axes: int, arguments: int) -> None:
    axes = min(axes, ndim)
    shape = (2, 3, 4, 2)[:ndim]
    rng = np.random.default_rng(ndim)
    x = 3 + rng.standard_normal(shape)
    affine = list(rng.standard_normal((2, *shape[ndim - axes :])))[:arguments]
    over = tuple(range(ndim - axes, ndim))
    expected = (x - x.mean(axis=over, keepdims=True)) / np.sqrt(x.var(axis=over, keepdims=True) + 1e-3)
    for operation, each in zip((np.multiply, np.add), affine, strict=False):
        expected = operation(expected, each)
    np.testing.assert_allclose(result_of(layer_norm, x, *affine, axes=axes, eps=1e-3), expected, rtol=1e-10, atol=1e-12)


def test_constant_channels_are_zero_and_finite() -> None:
    x = np.full((3, 2, 2, 2), 5.0, np.float32)
    np.testing.assert_array_equal(result_of(batch_norm, x), np.zeros_like(x))
    np.testing.assert_array_equal(gradients_of(batch_norm, x, x)[0], np.zeros_like(x))


def test_what_does_not_fit_is_refused() -> None:
    x = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(3,\): one for each channel"):
        batch_norm.forward(x, np.zeros(4))
    with pytest.raises(ValueError, match=r"input of shape \(3,\), expected \(batch, channels, ...\)"):
        batch_norm.forward(np.zeros(3))
    with pytest.raises(ValueError, match="no samples"):
        batch_statistics(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"weight or bias of shape \(3,\), expected \(3, 4\)"):
        layer_norm.forward(x, np.zeros(3), axes=2)
    with pytest.raises(ValueError, match="axes 4 for an input of shape"):
        layer_norm.forward(x, axes=4)
