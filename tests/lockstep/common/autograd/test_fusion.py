"""Calls are joined or left out only where that changes nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd.fusion import joined, runs, without_ones
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import MemoryKind, Tape

RNG = np.random.default_rng(3)


def taped(*shapes: tuple[int, ...]) -> tuple[Tape, list[Any]]:
    """Return a tape, and arrays that it knows."""
    tape = Tape()
    return tape, [tape.know(RNG.standard_normal(shape).astype(np.float32), MemoryKind.INPUT) for shape in shapes]


def lengths(tape: Tape, may_join: Callable[[Any], bool] = lambda call: True) -> list[int]:
    return [cut.stop - cut.start for cut in runs(tape.calls, may_join)]


def test_blocks_of_columns_are_one_call_with_the_same_operands() -> None:
    tape, (x, w, out) = taped((4, 9), (12, 9), (4, 12))
    for start in range(0, 12, 3):
        np.matmul(x, w.T[:, start : start + 3], out=out[:, start : start + 3])
    assert lengths(tape) == [4]
    left, right, result = joined(tape.calls).operands
    assert left == tape.calls[0].operands[0]
    assert (right.shape, right.offset, right.strides) == ((4, 9, 3), 0, (3 * 36, 4, 36))
    assert (result.shape, result.offset, result.strides) == ((4, 4, 3), 0, (12, 48, 4))


def test_one_call_alone_stays() -> None:
    tape, (x, y, out) = taped((4, 9), (9, 2), (4, 2))
    np.matmul(x, y, out=out)
    assert lengths(tape) == [1]
    assert joined(tape.calls) is tape.calls[0]


def rows_of_other_heights(x: Array, y: Array, out: Array) -> None:
    for start, stop in ((0, 3), (3, 6), (6, 8)):
        np.matmul(x[start:stop], y, out=out[start:stop])


def rows_at_other_distances(x: Array, y: Array, out: Array) -> None:
    for start in (0, 2, 5):
        np.matmul(x[start : start + 2], y, out=out[start : start + 2])


def something_between(x: Array, y: Array, out: Array) -> None:
    np.matmul(x[:2], y, out=out[:2])
    np.add(x, 1, out=x)
    np.matmul(x[2:4], y, out=out[2:4])


def backwards(x: Array, y: Array, out: Array) -> None:
    for start in (4, 2, 0):
        np.matmul(x[start : start + 2], y, out=out[start : start + 2])


def into_the_same(x: Array, y: Array, out: Array) -> None:
    for start in (0, 2, 4):
        np.matmul(x[start : start + 2], y, out=out[:2])


def from_what_was_written(x: Array, y: Array, out: Array) -> None:
    for start in (0, 2, 4):
        np.matmul(x[start : start + 2], y, out=x[start + 2 : start + 4])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (rows_of_other_heights, [2, 1]),
        (rows_at_other_distances, [2, 1]),
        (something_between, [1, 1, 1]),
        (backwards, [1, 1, 1]),
        (into_the_same, [1, 1, 1]),
        (from_what_was_written, [1, 1, 1]),
    ],
)
def test_what_is_not_the_same_product_at_even_distances_is_not_joined(
    function: Callable[..., None], expected: list[int]
) -> None:
    tape, arrays = taped((8, 5), (5, 5), (8, 5))
    function(*arrays)
    assert lengths(tape) == expected


def test_what_may_not_be_joined_is_not() -> None:
    tape, (x, y, out) = taped((8, 5), (5, 5), (8, 5))
    for start in range(0, 8, 2):
        np.matmul(x[start : start + 2], y, out=out[start : start + 2])
    assert lengths(tape, lambda call: call is not tape.calls[1]) == [1, 1, 2]


def test_a_product_with_ones_is_left_out() -> None:
    tape, (x, ones) = taped((8, 5), (1,))
    np.copyto(ones, 1)
    np.multiply(x, ones, out=x)
    assert without_ones(tape.calls) == [True, False]


def with_another_result(x: Array, ones: Array) -> None:
    np.copyto(ones, 1)
    np.multiply(x[:4], ones, out=x[4:])


def with_a_part_that_is_not_one(x: Array, ones: Array) -> None:
    np.copyto(ones[:1], 1)
    np.multiply(x, ones, out=x)


def with_what_was_one_before(x: Array, ones: Array) -> None:
    np.copyto(ones, 1)
    np.add(ones, ones, out=ones)
    np.multiply(x, ones, out=x)


def with_twos(x: Array, ones: Array) -> None:
    np.copyto(ones, 2)
    np.multiply(x, ones, out=x)


def a_sum_with_ones(x: Array, ones: Array) -> None:
    np.copyto(ones, 1)
    np.add(x, ones, out=x)


@pytest.mark.parametrize(
    "function",
    [with_another_result, with_a_part_that_is_not_one, with_what_was_one_before, with_twos, a_sum_with_ones],
)
def test_any_other_call_is_needed(function: Callable[..., None]) -> None:
    tape, arrays = taped((8, 5), (5,))
    function(*arrays)
    assert all(without_ones(tape.calls))
