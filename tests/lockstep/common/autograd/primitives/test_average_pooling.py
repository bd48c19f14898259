"""Average pooling: equal to a walk over windows, with right derivatives."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.autograd.primitives.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    avg_pool1d,
    avg_pool2d,
)
from lockstep.common.autograd.primitives.primitive import Primitive
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.directional import check_derivatives, gradients_of, layouts, result_of
from tests.lockstep.common.autograd.primitives.test_pooling import Two, poolings


@given(poolings(), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=80)
def test_equals_the_walk_with_right_derivatives(case: tuple[Two, Two, Two, Two], count_include_pad: bool) -> None:
    image, kernel, stride, padding = case
    x = np.random.default_rng(0).standard_normal((2, 3, *image))
    options: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "count_include_pad": count_include_pad,
    }
    expected = twins.avg_pool2d(x, kernel, stride, padding, count_include_pad)
    np.testing.assert_allclose(result_of(avg_pool2d, x, **options), expected, rtol=1e-12, atol=1e-12)
    check_derivatives(avg_pool2d, x, **options)


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_adaptive_equals_the_walk_with_right_derivatives(image: Two, outputs: Two) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *image))
    expected = twins.adaptive_avg_pool2d(x, outputs)
    np.testing.assert_allclose(result_of(adaptive_avg_pool2d, x, output_size=outputs), expected, rtol=1e-12, atol=1e-12)
    check_derivatives(adaptive_avg_pool2d, x, output_size=outputs)


def test_adaptive_to_one_is_the_mean_of_the_image() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    np.testing.assert_allclose(result_of(adaptive_avg_pool2d, x, output_size=1)[:, :, 0, 0], x.mean(axis=(2, 3)))


@pytest.mark.parametrize(
    ("primitive", "options"), [(avg_pool2d, {"kernel_size": 2}), (adaptive_avg_pool2d, {"output_size": 3})]
)
def test_layout_changes_no_bit_and_dtype_is_kept(primitive: Primitive, options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 8)).astype(np.float32)
    result = result_of(primitive, x, **options)
    assert result.transpose(1, 2, 3, 0).flags.c_contiguous
    (expected,) = gradients_of(primitive, result, x, **options)
    assert expected is not None
    assert result.dtype == expected.dtype == np.float32
    for other, upstream in zip(layouts(x), layouts(result), strict=True):
        np.testing.assert_array_equal(result_of(primitive, other, **options), result)
        np.testing.assert_array_equal(gradients_of(primitive, upstream, other, **options)[0], expected)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool1d(count_include_pad: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9))
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": count_include_pad}
    expected = twins.avg_pool2d(x[:, :, None], (1, 3), (1, 2), (0, 1), count_include_pad)
    np.testing.assert_allclose(result_of(avg_pool1d, x, **options), expected[:, :, 0])
    check_derivatives(avg_pool1d, x, **options)


@pytest.mark.parametrize("outputs", [1, 4, 9, (5,)])
def test_adaptive_avg_pool1d(outputs: int | tuple[int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9))
    length = outputs if isinstance(outputs, int) else outputs[0]
    expected = twins.adaptive_avg_pool2d(x[:, :, None], (1, length))
    np.testing.assert_allclose(result_of(adaptive_avg_pool1d, x, output_size=outputs), expected[:, :, 0])
    check_derivatives(adaptive_avg_pool1d, x, output_size=outputs)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"avg_pool2d got an input of shape \(2, 3, 4\)"):
        avg_pool2d.forward(np.zeros((2, 3, 4)), kernel_size=2)
    with pytest.raises(ValueError, match=r"output_size 0 for images of \(4, 4\)"):
        adaptive_avg_pool2d.forward(np.zeros((2, 3, 4, 4)), output_size=0)
    with pytest.raises(ValueError, match="adaptive_avg_pool1d got an input of shape"):
        adaptive_avg_pool1d.forward(np.zeros((2, 3)), output_size=1)
    with pytest.raises(ValueError, match="avg_pool1d got an input of shape"):
        avg_pool1d.forward(np.zeros((2, 3)), kernel_size=1)


def test_empty_batch() -> None:
    x = np.zeros((0, 2, 4, 4))
    for primitive, options in ((avg_pool2d, {"kernel_size": 2}), (adaptive_avg_pool2d, {"output_size": 2})):
        result = result_of(primitive, x, **options)
        assert result.shape == (0, 2, 2, 2)
        (gradient,) = gradients_of(primitive, result, x, **options)
        assert gradient is not None
        assert gradient.shape == x.shape
