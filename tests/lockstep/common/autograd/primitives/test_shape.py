"""Embedding: rows by index, gradients added up where a row is used again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from lockstep.common.autograd.primitives.shape import embedding
from tests.lockstep.common.autograd.primitives.calls import gradients_of, result_of


@given(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.integers(1, 6), st.integers(1, 3))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_equals_a_walk_over_the_indices(shape: tuple[int, ...], entries: int, features: int) -> None:
    rng = np.random.default_rng(entries)
    indices, weight = rng.integers(0, entries, shape), rng.standard_normal((entries, features))
    result = result_of(embedding, indices, weight)
    assert result.shape == (*shape, features)
    gradient, expected = rng.standard_normal(result.shape), np.zeros_like(weight)
    for position in np.ndindex(shape):
        np.testing.assert_array_equal(result[position], weight[indices[position]])
        expected[indices[position]] += gradient[position]
    by_indices, by_weight = gradients_of(embedding, gradient, indices, weight)
    assert by_indices is None
    assert by_weight is not None
    np.testing.assert_allclose(by_weight, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integers_and_float32(dtype: type[np.integer]) -> None:
    indices, weight = np.array([[1, 0], [1, 1]], dtype), np.eye(3, dtype=np.float32)
    result = result_of(embedding, indices, weight)
    _, gradient = gradients_of(embedding, result, indices, weight)
    assert gradient is not None
    assert result.dtype == gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, np.diag([1, 3, 0]))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_index_out_of_range_is_named(wrong: int) -> None:
    with pytest.raises(IndexError, match=rf"index {wrong}, expected one from 0 to 2 \(3 entries\)"):
        embedding.forward(np.array([[0, wrong]]), np.zeros((3, 2)))


def test_other_misuse_is_refused() -> None:
    with pytest.raises(TypeError, match="indices of type float64, expected integers"):
        embedding.forward(np.array([0.0]), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"weight of shape \(3,\), expected \(entries, features\)"):
        embedding.forward(np.array([0]), np.zeros(3))
