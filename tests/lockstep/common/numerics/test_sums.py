"""Sums by halves: the order is that of the docstring, whatever the layout of the array is; and finiteness."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.numerics.sums import first_not_finite, halved_sum, halved_sums, over_tree

ROWS = arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(0, 40)), elements=st.floats(-1e300, 1e300))


def of_halves(node: Node) -> str:
    return str(node.lo) if len(node) == 1 else "({} {})".format(*map(of_halves, node.halves()))


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("count", range(1, 18))
def test_values_are_added_over_the_tree(count: int, first: int) -> None:
    assert over_tree(count, str, "({} {})".format, first) == of_halves(Node(first, first + count))


def by_hand(row: list[float]) -> float:
    while len(row) > 1:
        half = (len(row) + 1) // 2
        row = [row[at] + row[half + at] if half + at < len(row) else row[at] for at in range(half)]
    return row[0] if row else 0.0


@given(ROWS)
def test_each_row_is_added_half_by_half(rows: NDArray[np.float64]) -> None:
    before = rows.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(halved_sums(rows), [by_hand(row.tolist()) for row in rows])
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("shape", [(), (1,), (4099,), (7, 5, 3)])
def test_layout_and_type_do_not_matter(shape: tuple[int, ...]) -> None:
    values = generator(0, Purpose.CANARY).random(shape, dtype=np.float32)
    expected = by_hand(values.astype(np.float64).reshape(-1).tolist())
    wide = np.repeat(np.atleast_1d(values), 2, axis=-1)[..., ::2]
    assert halved_sum(values) == halved_sum(np.asfortranarray(values)) == halved_sum(wide) == expected


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 7, 999])
def test_the_first_value_that_is_not_finite_is_found(wrong: float, place: int) -> None:
    vector = np.linspace(-1, 1, 1000, dtype=np.float32)
    vector[place] = vector[-1] = wrong
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_not_finite(vector) == place


def test_a_finite_vector_is_finite_even_if_its_squares_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_not_finite(np.zeros(0, np.float32)) is None
        assert first_not_finite(np.full(1000, 3e38, np.float32)) is None
