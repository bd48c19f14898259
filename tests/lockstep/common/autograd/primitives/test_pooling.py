"""Pooling: equal to a walk over windows, the gradient of a maximum to the first of the largest."""

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
    max_pool1d,
    max_pool2d,
)
from lockstep.common.autograd.primitives.primitive import Array
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.calls import gradients_of, result_of

Two = tuple[int, int]


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Two, Two, Two, Two]:
    """Draw (image, kernel, stride, padding) that fit; half of the strides are the kernel's."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.one_of(st.just(kernel), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    return (kernel[0] + draw(st.integers(0, 5)), kernel[1] + draw(st.integers(0, 5))), kernel, stride, padding


def _distinct(shape: tuple[int, ...]) -> Array:
    """Return numbers all at least 1 apart: no step of a difference changes which is largest."""
    return np.random.default_rng(0).permutation(float(np.prod(shape)) + np.arange(np.prod(shape))).reshape(shape)


@given(poolings(), st.integers(1, 9))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_equals_the_walk_with_the_gradient_to_the_first_of_equals(case: tuple[Two, Two, Two, Two], values: int) -> None:
    image, kernel, stride, padding = case
    rng = np.random.default_rng(values)
    x = rng.integers(-values, 1, (2, 3, *image)).astype(np.float64)
    result = result_of(max_pool2d, x, kernel_size=kernel, stride=stride, padding=padding)
    gradient = rng.integers(-9, 9, result.shape).astype(np.float64)
    expected, taken = twins.max_pool2d(x, gradient, kernel, stride, padding)
    np.testing.assert_array_equal(result, expected)
    (got,) = gradients_of(max_pool2d, gradient, x, kernel_size=kernel, stride=stride, padding=padding)
    np.testing.assert_array_equal(got, taken)


def test_large_images_go_through_in_blocks_of_channels() -> None:
    x = np.random.default_rng(0).standard_normal((8, 5, 128, 130)).astype(np.float32)
    result = result_of(max_pool2d, x, kernel_size=2)
    np.testing.assert_array_equal(result, x.reshape(8, 5, 64, 2, 65, 2).max(axis=(3, 5)))
    (gradient,) = gradients_of(max_pool2d, result, x, kernel_size=2)
    assert gradient is not None
    np.testing.assert_array_equal(gradient, np.where(x == result.repeat(2, axis=2).repeat(2, axis=3), x, 0))


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}])
def test_nan_reaches_every_window_that_holds_it_and_keeps_its_gradient(options: dict[str, int]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 4))
    x[0, 0, 1, 1] = np.nan
    result = result_of(max_pool2d, x, **options)
    assert np.isnan(result).sum() == (1 if options["kernel_size"] == 2 else 9)
    (gradient,) = gradients_of(max_pool2d, np.ones_like(result), x, **options)
    assert gradient is not None
    assert gradient.sum() == result.size


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_infinite_gradients_and_elements_make_no_nan(options: dict[str, int]) -> None:
    x = np.full((1, 1, 4, 4), -np.inf)
    result = result_of(max_pool2d, x, **options)
    assert (result == -np.inf).all()
    (gradient,) = gradients_of(max_pool2d, np.full_like(result, np.inf), x, **options)
    assert gradient is not None
    assert gradient[0, 0, 0, 0] == np.inf
    assert not np.isnan(gradient).any()


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 1), (1, 2, 0)])
def test_max_pool1d(kernel: int, stride: int | None, padding: int) -> None:
    x = _distinct((2, 3, 9))
    result = result_of(max_pool1d, x, kernel_size=kernel, stride=stride, padding=(padding,))
    expected, _ = twins.max_pool2d(x[:, :, None], None, (1, kernel), (1, stride or kernel), (0, padding))
    np.testing.assert_array_equal(result, expected[:, :, 0])


def test_whole_numbers_have_a_largest_one_next_to_padding() -> None:
    x = np.array([[[[7, 3], [0, 5]]]], np.uint8)
    result = result_of(max_pool2d, x, kernel_size=3, stride=2, padding=(1, 1))
    np.testing.assert_array_equal(result, [[[[7]]]])


def test_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_pool2d got an input of shape \(2, 3, 4\)"):
        max_pool2d.forward(np.zeros((2, 3, 4)), kernel_size=2)
    with pytest.raises(ValueError, match=r"max_pool1d got an input of shape \(2, 3\)"):
        max_pool1d.forward(np.zeros((2, 3)), kernel_size=2)
    with pytest.raises(ValueError, match="windows of 5 elements over an axis of 4"):
        max_pool2d.forward(np.zeros((2, 3, 4, 4)), kernel_size=5)


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


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_adaptive_equals_the_walk_with_right_derivatives(image: Two, outputs: Two) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *image))
    expected = twins.adaptive_avg_pool2d(x, outputs)
    np.testing.assert_allclose(result_of(adaptive_avg_pool2d, x, output_size=outputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 4, 9, (5,)])
def test_adaptive_avg_pool1d(outputs: int | tuple[int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9))
    length = outputs if isinstance(outputs, int) else outputs[0]
    expected = twins.adaptive_avg_pool2d(x[:, :, None], (1, length))
    np.testing.assert_allclose(result_of(adaptive_avg_pool1d, x, output_size=outputs), expected[:, :, 0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"avg_pool2d got an input of shape \(2, 3, 4\)"):
        avg_pool2d.forward(np.zeros((2, 3, 4)), kernel_size=2)
    with pytest.raises(ValueError, match=r"output_size 0 for images of \(4, 4\)"):
        adaptive_avg_pool2d.forward(np.zeros((2, 3, 4, 4)), output_size=0)
    with pytest.raises(ValueError, match="adaptive_avg_pool1d got an input of shape"):
        adaptive_avg_pool1d.forward(np.zeros((2, 3)), output_size=1)
    with pytest.raises(ValueError, match="avg_pool1d got an input of shape"):
        avg_pool1d.forward(np.zeros((2, 3)), kernel_size=1)
