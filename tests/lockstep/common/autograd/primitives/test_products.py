"""Thin products in blocks: each element once, within what the kernels take, and the product that NumPy gives."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.primitives.products import (
    Block,
    blocks_across,
    blocks_along,
    multiply,
    multiply_in_blocks,
)
from lockstep.common.random import Purpose, generator

#: A batch of 32 through mlp's first layer, lenet's second convolution in a block of columns, and their derivatives.
SHAPES = (
    (32, 784, 512),
    (128, 784, 10),
    (10, 128, 784),
    (512, 32, 784),
    (16, 150, 3495),
    (16, 3495, 150),
    (150, 16, 3495),
    (8, 3136, 40),
)
SIZES = st.integers(1, 5000)
CUTS = pytest.mark.parametrize("cut", [blocks_along, blocks_across])


def normal(rows: int, columns: int) -> Array:
    return generator(rows * 10_000 + columns, Purpose.CANARY).standard_normal((rows, columns), dtype=np.float32)


def length(part: slice, size: int) -> int:
    return len(range(*part.indices(size)))


@CUTS
@given(rows=SIZES, inner=SIZES, columns=SIZES)
def test_blocks_cover_each_element_once_and_are_small(
    cut: Callable[[int, int, int], tuple[Block, ...]], rows: int, inner: int, columns: int
) -> None:
    blocks = cut(rows, inner, columns)
    assert blocks == cut(rows, inner, columns)
    areas = [length(r, rows) * length(c, columns) for r, c, _ in blocks]
    assert sum(areas) == (rows * columns if blocks else 0)
    assert len({(r.start, c.start) for r, c, _ in blocks}) == len(blocks)
    for area, (_, _, sums) in zip(areas, blocks, strict=True):
        lengths = [length(part, inner) for part in sums]
        assert sum(lengths) == inner
        assert area * max(lengths) <= 1_000_000
        if cut is blocks_across:
            assert area <= 1_152


@CUTS
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_in_blocks_is_the_product(
    cut: Callable[[int, int, int], tuple[Block, ...]], shape: tuple[int, int, int]
) -> None:
    rows, inner, columns = shape
    left, right = normal(rows, inner), normal(inner, columns)
    blocks = cut(*shape)
    out = np.full((rows, columns), np.nan, np.float32)
    if blocks:
        multiply_in_blocks(left, right, blocks, out)
        exact = left.astype(np.float64) @ right.astype(np.float64)
        assert np.abs(out - exact).max() < 1e-5 * np.abs(left).sum(axis=1).max()


@pytest.mark.parametrize("rows", [1, 6, 32])
@pytest.mark.parametrize("columns", [1, 9])
@pytest.mark.parametrize("sizes", [(840,) * 14 + (784,), (40,) * 9, (8, 3)])
def test_parts_of_a_sum_are_added_one_after_the_other(rows: int, columns: int, sizes: tuple[int, ...]) -> None:
    """Any other order would have other bits; so would a sum that begins with 0, if all that it adds is -0."""
    left, right = normal(rows, sum(sizes)), normal(sum(sizes), columns)
    left[:, ::3] *= 1e4
    stops = np.cumsum(sizes).tolist()
    parts = tuple(slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True))
    expected = left[:, parts[0]] @ right[parts[0]]
    for part in parts[1:]:
        expected += left[:, part] @ right[part]
    out = np.full((rows + 1, columns + 1), np.nan, np.float32)
    multiply_in_blocks(left, right, [(slice(None), slice(None), parts)], out[:-1, 1:])
    assert out[:-1, 1:].tobytes() == expected.tobytes()
    assert np.isnan(out[-1]).all()
    assert np.isnan(out[:, 0]).all()


def test_a_sum_of_negative_zeros_is_one_if_the_kernel_gives_any() -> None:
    left, right = np.full((6, 24), -1e-30, np.float32), np.full((24, 2), 1e-30, np.float32)
    out = np.full((6, 2), np.nan, np.float32)
    multiply_in_blocks(left, right, [(slice(None), slice(None), (slice(0, 8), slice(8, 16), slice(16, 24)))], out)
    assert out.tobytes() == (left[:, :8] @ right[:8]).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_any_layout_of_the_operands_gives_the_product(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = normal(rows, inner), normal(inner, columns)
    expected = left.astype(np.float64) @ right.astype(np.float64)
    tolerance = 1e-5 * np.abs(left).sum(axis=1).max()
    for a in (left, np.asfortranarray(left)):
        for b in (right, np.asfortranarray(right)):
            out = np.full((rows, columns), np.nan, np.float32)
            assert multiply(a, b, out) is out
            assert np.abs(out - expected).max() < tolerance
            assert multiply(a, b).tobytes() == out.tobytes()


def test_other_types_vectors_and_stacks_are_left_to_numpy() -> None:
    left, right = normal(32, 784).astype(np.float64), normal(784, 512)
    assert multiply(left, right).dtype == np.float64
    assert multiply(left[0], right).shape == (512,)
    assert multiply(np.stack([right.T] * 2), left.T).shape == (2, 512, 32)
    assert multiply(normal(3, 4)[:0], normal(4, 5)).shape == (0, 5)
