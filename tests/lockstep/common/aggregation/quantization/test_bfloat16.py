"""bfloat16 against its definition: the nearest of the float32 values whose lower half is zero, the even one of two."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.quantization import BFloat16
from tests.lockstep.common.aggregation.quantization.vectors import bits_of, of_bits, rounded, sent, spread


def by_definition(value: float) -> float:
    """Round with exact fractions: no bit is touched but to cut the lower half off."""
    if not math.isfinite(value):
        return value
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    below, above = (struct.unpack("<f", struct.pack("<I", edge))[0] for edge in (bits & 0xFFFF0000, _up(bits)))
    beyond = Fraction(2) ** 128 if math.isinf(above) else abs(Fraction(above))
    left, right = abs(Fraction(value)) - abs(Fraction(below)), beyond - abs(Fraction(value))
    is_even = not bits >> 16 & 1
    return float(below if left < right or (left == right and is_even) else above)


def _up(bits: int) -> int:
    return (bits & 0xFFFF0000) + 0x10000


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(width=32, allow_nan=False))
def test_it_rounds_to_the_nearest_and_ties_to_even(value: float) -> None:
    (found,) = rounded(BFloat16(), np.array([value], np.float32))
    expected = by_definition(value)
    assert (float(found), math.copysign(1, found)) == (expected, math.copysign(1, expected))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F800000),  # a tie, to even: down
        (0x3F818000, 0x3F820000),  # and up
        (0x3F808001, 0x3F810000),
        (0x80000000, 0x80000000),  # -0
        (0x00000001, 0x00000000),  # the smallest number below half of bfloat16's
        (0x7F7F7FFF, 0x7F7F0000),  # the largest
        (0x7F7F8000, 0x7F800000),  # beyond it: infinite
        (0x7F800000, 0x7F800000),
        (0xFF800000, 0xFF800000),
    ],
)
def test_bits(bits: int, expected: int) -> None:
    assert bits_of(rounded(BFloat16(), of_bits(bits))) == [expected]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF])
def test_a_nan_stays_one_whatever_its_payload(bits: int) -> None:
    values = rounded(BFloat16(), of_bits(bits, 0x3F800000))
    assert np.isnan(values[0])
    assert values[1] == 1.0
    assert np.isnan(sent(BFloat16(), values)[0])


def test_it_travels_exactly_in_half_the_bytes() -> None:
    values = rounded(BFloat16(), spread(70_001))
    assert BFloat16().size(70_001) == 140_002
    assert sent(BFloat16(), values).tobytes() == values.tobytes()
