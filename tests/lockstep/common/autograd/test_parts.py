"""Calls are left out only where that changes nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd.parts import without_ones
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import MemoryKind, Tape

RNG = np.random.default_rng(3)


def taped(*shapes: tuple[int, ...]) -> tuple[Tape, list[Any]]:
    """Return a tape, and arrays that it knows."""
    tape = Tape()
    return tape, [tape.know(RNG.standard_normal(shape).astype(np.float32), MemoryKind.INPUT) for shape in shapes]


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
