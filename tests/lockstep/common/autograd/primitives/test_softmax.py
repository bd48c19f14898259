"""Softmax and its logarithm: equal to the definition, never overflowing, with right derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.primitives.softmax import log_softmax, softmax
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.calls import result_of

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
