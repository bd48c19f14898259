"""Convolutions: equal to loops over the definition, with right derivatives, for every layout."""

from dataclasses import asdict, dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.autograd.primitives.convolution import conv1d, conv2d
from lockstep.common.autograd.primitives.primitive import Array
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.calls import gradients_of, result_of

Two = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Options:
    stride: Two = (1, 1)
    padding: Two = (0, 0)
    dilation: Two = (1, 1)
    groups: int = 1


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[Array], Options]:
    """Draw an input, a weight, perhaps a bias, and options that fit them."""

    def two(low: int, high: int) -> Two:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    options = Options(stride=two(1, 3), padding=two(0, 2), dilation=two(1, 2), groups=draw(st.integers(1, 3)))
    kernel, depth = two(1, 3), draw(st.integers(1, 2))
    outputs = options.groups * draw(st.integers(1, 2))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(options.dilation, kernel, options.padding, strict=True)]
    image = [size + draw(st.integers(0, 3)) for size in least]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    arrays = [
        rng.standard_normal((draw(st.integers(1, 3)), options.groups * depth, *image)),
        rng.standard_normal((outputs, depth, *kernel)),
    ]
    if draw(st.booleans()):
        arrays.append(rng.standard_normal(outputs))
    return arrays, options


@given(convolutions())
@settings(derandomize=True, deadline=None, max_examples=80)
def test_equals_the_loops(case: tuple[list[Array], Options]) -> None:
    arrays, options = case
    bias = arrays[2] if len(arrays) == 3 else None
    expected = twins.conv2d(arrays[0], arrays[1], bias, **asdict(options))
    np.testing.assert_allclose(result_of(conv2d, *arrays, **asdict(options)), expected, rtol=1e-12, atol=1e-12)


def test_blocks_of_columns_add_up_in_float32() -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((40, 8, 20, 20)), rng.standard_normal((5, 8, 3, 3))
    gradient = rng.standard_normal((40, 5, 20, 20))
    exact = gradients_of(conv2d, gradient, x, weight, padding=1)
    single = gradients_of(conv2d, *(each.astype(np.float32) for each in (gradient, x, weight)), padding=1)
    for one, other in zip(single, exact, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-2)


@given(st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(1, 2), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_conv1d(stride: int, padding: int, dilation: int, groups: int, has_bias: bool) -> None:
    rng = np.random.default_rng(stride)
    arrays = [rng.standard_normal((2, 4, 9)), rng.standard_normal((6, 4 // groups, 3)), rng.standard_normal(6)]
    arrays = arrays[: 2 + has_bias]
    result = result_of(conv1d, *arrays, stride=stride, padding=padding, dilation=(dilation,), groups=groups)
    images = [arrays[0][:, :, None], arrays[1][:, :, None], arrays[2] if has_bias else None]
    expected = twins.conv2d(images[0], images[1], images[2], (1, stride), (0, padding), (1, dilation), groups)  # type: ignore[arg-type]
    np.testing.assert_allclose(result, expected[:, :, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 5, 5), (3, 2, 3, 3)], {}, r"input of shape \(2, 5, 5\), expected \(batch, channels, height, width\)"),
        ([(1, 2, 5, 5), (3, 2, 3)], {}, r"weight of shape \(3, 2, 3\), expected \(out, in/groups, kh, kw\)"),
        ([(1, 3, 5, 5), (3, 2, 3, 3)], {}, r"input of 3 channels .* expects 2"),
        ([(1, 4, 5, 5), (3, 2, 3, 3)], {"groups": 2}, "3 outputs in 2 groups"),
        ([(1, 4, 5, 5), (3, 2, 3, 3)], {"groups": 0}, "3 outputs in 0 groups"),
        ([(1, 2, 5, 5), (3, 2, 3, 3), (4,)], {}, r"bias of shape \(4,\), expected \(3,\)"),
        ([(1, 2, 2, 5), (3, 2, 3, 3)], {}, "windows of 3 elements over an axis of 2"),
        ([(1, 2, 5, 5), (3, 2, 3, 3)], {"stride": (1, 2, 3)}, "stride is"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: list[tuple[int, ...]], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv2d.forward(*(np.zeros(shape) for shape in shapes), **options)


def test_conv1d_refuses_images() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, channels, length\)"):
        conv1d.forward(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"expected \(out, in/groups, kernel\)"):
        conv1d.forward(np.zeros((1, 2, 3)), np.zeros((1, 2, 3, 3)))
