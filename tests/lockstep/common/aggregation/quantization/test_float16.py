"""float16 against NumPy's conversion, which is IEEE 754's; beyond its range values are held at the largest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.quantization import LARGEST, Float16
from tests.lockstep.common.aggregation.quantization.vectors import rounded, sent, spread


def converted(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16).astype(np.float32)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(width=32, min_value=-65519, max_value=65519))
def test_it_rounds_as_numpy_converts(value: float) -> None:
    values = np.array([value], np.float32)
    assert rounded(Float16(), values) == converted(values)


def test_every_float16_stays_as_it_is() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = every[np.isfinite(every)]
    assert np.array_equal(rounded(Float16(), finite), finite)


def test_ties_go_to_even_in_every_binade() -> None:
    halves = np.arange(2**15 - 2**10 - 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / np.float32(2)
    assert np.array_equal(rounded(Float16(), between), converted(between))


@pytest.mark.parametrize("value", [65_520.0, 7e4, 3e38])
def test_what_is_finite_is_held_at_the_largest(value: float) -> None:
    values = rounded(Float16(), np.array([value, -value, 1.0], np.float32))
    assert values.tolist() == [LARGEST, -LARGEST, 1.0]


def test_infinities_and_nans_stay() -> None:
    values = rounded(Float16(), np.array([np.inf, -np.inf, np.nan, 1e9, 2.0], np.float32))
    assert np.array_equal(values, np.array([np.inf, -np.inf, np.nan, LARGEST, 2.0]), equal_nan=True)
    assert np.array_equal(sent(Float16(), values), values, equal_nan=True)


def test_it_travels_exactly_in_half_the_bytes() -> None:
    values = rounded(Float16(), spread(70_001, high=3))
    assert Float16().size(70_001) == 140_002
    assert sent(Float16(), values).tobytes() == values.tobytes()
