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
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.calls import result_of
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


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_adaptive_equals_the_walk_with_right_derivatives(image: Two, outputs: Two) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *image))
    expected = twins.adaptive_avg_pool2d(x, outputs)
    np.testing.assert_allclose(result_of(adaptive_avg_pool2d, x, output_size=outputs), expected, rtol=1e-12, atol=1e-12)


def test_adaptive_to_one_is_the_mean_of_the_image() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    np.testing.assert_allclose(result_of(adaptive_avg_pool2d, x, output_size=1)[:, :, 0, 0], x.mean(axis=(2, 3)))


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool1d(count_include_pad: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9))
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": count_include_pad}
    expected = twins.avg_pool2d(x[:, :, None], (1, 3), (1, 2), (0, 1), count_include_pad)
    np.testing.assert_allclose(result_of(avg_pool1d, x, **options), expected[:, :, 0])


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
