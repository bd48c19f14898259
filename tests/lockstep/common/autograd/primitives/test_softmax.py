"""Softmax and its logarithm: equal to the definition, never overflowing, with right derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.primitives.softmax import log_softmax, softmax
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.directional import check_derivatives, gradients_of, layouts, result_of

BOTH = pytest.mark.parametrize("primitive", [softmax, log_softmax], ids=lambda each: each.name)


@given(array_shapes(min_dims=1, max_dims=4, max_side=4), st.integers(-4, 3), st.floats(0, 30))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_equal_the_definition_along_any_axis(shape: tuple[int, ...], axis: int, scale: float) -> None:
    axis = axis % len(shape)
    x = scale * np.random.default_rng(0).standard_normal(shape)
    rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    expected = np.array([twins.softmax(row) for row in rows.tolist()]).reshape(np.moveaxis(x, axis, -1).shape)
    result = result_of(softmax, x, axis=axis)
    np.testing.assert_allclose(np.moveaxis(result, axis, -1), expected, rtol=1e-12)
    np.testing.assert_allclose(result_of(log_softmax, x, axis=axis), np.log(result), rtol=1e-9, atol=1e-12)


@given(array_shapes(min_dims=1, max_dims=4, max_side=4), st.integers(-4, 3))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_derivatives(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    for primitive in (softmax, log_softmax):
        check_derivatives(primitive, x, axis=axis % len(shape) - len(shape))


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(primitive: Primitive, dtype: type[np.floating]) -> None:
    x = np.arange(12, dtype=dtype).reshape(3, 4)
    (gradient,) = gradients_of(primitive, x, x)
    assert gradient is not None
    assert result_of(primitive, x).dtype == gradient.dtype == dtype


@BOTH
def test_any_layout(primitive: Primitive) -> None:
    x = np.random.default_rng(2).standard_normal((3, 4, 5))
    (expected,) = gradients_of(primitive, x, x, axis=1)
    for other in layouts(x):
        np.testing.assert_allclose(result_of(primitive, other, axis=1), result_of(primitive, x, axis=1), rtol=1e-12)
        np.testing.assert_allclose(gradients_of(primitive, other, other, axis=1)[0], expected, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


def test_huge_scores_do_not_overflow() -> None:
    x = np.array([[3e38, -3e38, 3e38]], np.float32)
    np.testing.assert_array_equal(result_of(softmax, x), np.array([[0.5, 0, 0.5]], np.float32))
    assert np.isfinite(result_of(log_softmax, x / 4)).all()


def test_masked_scores_have_probability_zero() -> None:
    np.testing.assert_array_equal(result_of(softmax, np.array([0.0, -np.inf, 0.0])), [0.5, 0, 0.5])


@BOTH
@pytest.mark.parametrize("row", [[-np.inf, -np.inf], [np.inf, 0.0], [np.nan, 0.0]])
def test_rows_without_an_answer_are_nan_without_a_warning(primitive: Primitive, row: list[float]) -> None:
    assert np.isnan(result_of(primitive, np.array(row))).any()
