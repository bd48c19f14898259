"""Where windows lie, against a walk over every window and offset; and the layout of images."""

from itertools import product

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.autograd.primitives.windows import (
    batch_first,
    batch_innermost,
    channel_blocks,
    check_window,
    pair,
    pooling_windows,
    single,
)
from lockstep.common.numerics.operands import Window, taps

GEOMETRIES = [
    Window(size, kernel, stride, padding, dilation, is_ceil)
    for size, kernel, stride, padding, dilation, is_ceil in product(
        (1, 4, 7), (1, 2, 3), (1, 2, 4), (0, 1, 2), (1, 2), (False, True)
    )
    if size + 2 * padding >= dilation * (kernel - 1) + 1
]


def _elements(window: Window) -> list[list[tuple[int, int]]]:
    """Return (offset, element) of each window, the padding left out."""
    return [
        [
            (offset, k * window.stride + offset * window.dilation - window.padding)
            for offset in range(window.kernel)
            if 0 <= k * window.stride + offset * window.dilation - window.padding < window.size
        ]
        for k in range(window.count)
    ]


def test_taps_name_each_element_that_each_window_sees_and_no_other() -> None:
    for window in GEOMETRIES:
        seen: list[list[tuple[int, int]]] = [[] for _ in range(window.count)]
        for offset in range(window.kernel):
            elements, windows = window.tap(offset)
            pairs = zip(range(window.count)[windows], range(window.size)[elements], strict=True)
            for k, element in pairs:
                seen[k].append((offset, element))
        assert seen == _elements(window), window


def test_last_window_ends_inside_the_padded_axis() -> None:
    for window in (each for each in GEOMETRIES if not each.is_ceil):
        last_end = (window.count - 1) * window.stride + window.reach
        assert last_end <= window.size + 2 * window.padding < last_end + window.stride


def test_a_window_that_is_cut_off_begins_before_the_padding_at_the_end_and_is_the_only_one_more() -> None:
    for window in (each for each in GEOMETRIES if each.is_ceil):
        whole = replace(window, is_ceil=False).count
        begins, end = whole * window.stride - window.padding, window.size + window.padding
        is_left = (whole - 1) * window.stride - window.padding + window.reach < end
        assert window.count == whole + (is_left and begins < window.size), window


def test_lengths_are_those_of_the_walk() -> None:
    for window in (each for each in GEOMETRIES if each.dilation == 1):
        assert window.lengths(with_padding=False) == [len(each) for each in _elements(window)]
        begins = [k * window.stride - window.padding for k in range(window.count)]
        expected = [len(range(first, min(first + window.kernel, window.size + window.padding))) for first in begins]
        assert window.lengths(with_padding=True) == expected


def test_taps_are_in_row_major_order() -> None:
    rows, columns = Window(4, 2, 2), Window(6, 3, 3)
    firsts = [(elements[1].start, elements[2].start) for elements, _ in taps(rows, columns)]
    assert firsts == [(y, x) for y in range(2) for x in range(3)]


@pytest.mark.parametrize(
    ("value", "expected"), [(3, (3, 3)), (np.int64(2), (2, 2)), ((1, 2), (1, 2)), ([4, 5], (4, 5))]
)
def test_pair(value: int | tuple[int, int], expected: tuple[int, int]) -> None:
    assert pair(value, "stride") == expected


def test_wrong_number_of_values_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"stride is \(1, 2, 3\), expected an integer or two"):
        pair((1, 2, 3), "stride")
    with pytest.raises(ValueError, match=r"padding is \(1, 2\), expected one integer"):
        single((1, 2), "padding")
    assert single((7,), "padding") == single(7, "padding") == 7


@pytest.mark.parametrize("window", [Window(4, 0, 1), Window(4, 1, 0), Window(4, 1, 1, -1), Window(4, 1, 1, 0, 0)])
def test_values_out_of_range_are_refused(window: Window) -> None:
    with pytest.raises(ValueError, match="at least 1 and the last at least 0"):
        check_window(window, "a convolution")


def test_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="windows of 5 elements over an axis of 4 with padding 0"):
        check_window(Window(4, 3, 1, 0, 2), "a convolution")


def test_pooling_padding_beyond_half_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="padding 2 for a kernel of 3, expected at most 1"):
        pooling_windows((8, 8), 3, None, 2)


def test_stride_defaults_to_the_kernel() -> None:
    rows, columns = pooling_windows((8, 9), (2, 3), None, 0)
    assert (rows.stride, columns.stride) == (2, 3)


def test_batch_innermost_is_a_view_where_memory_is_so() -> None:
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    innermost = batch_innermost(x)
    assert innermost.shape == (3, 4, 5, 2)
    assert innermost.flags.c_contiguous
    np.testing.assert_array_equal(batch_first(innermost), x)
    assert np.shares_memory(batch_innermost(batch_first(innermost)), innermost)


@pytest.mark.parametrize("shape", [(5, 300, 300, 4), (1, 2, 2, 2), (0, 2, 2, 2), (3, 4, 4, 0)])
def test_channel_blocks_cover_every_channel_once(shape: tuple[int, ...]) -> None:
    x = np.empty(shape, np.float32)
    assert [c for block in channel_blocks(x) for c in range(shape[0])[block]] == list(range(shape[0]))
