"""Functions of single floats give the float that is nearest to the exact value, as decimal arithmetic finds it."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.numerics.scalars import cos, exp, power

#: Digits in which the exact values are computed.
_DIGITS = 120


def _nearest(exact: Decimal) -> float:
    return float(exact)  # of a decimal text, which Python rounds to nearest


@given(st.floats(-745.0, 709.0) | st.floats(-1e-3, 1e-3))
def test_exp_is_the_nearest_float(x: float) -> None:
    with localcontext() as context:
        context.prec = _DIGITS
        assert exp(x) == _nearest(Decimal(x).exp())


@given(st.floats(-100.0, 100.0) | st.sampled_from([math.pi, math.pi / 2, math.pi / 4, 0.0, 1e-9]))
def test_cos_is_the_nearest_float(x: float) -> None:
    with localcontext() as context:
        # The terms of the series are as large as e**100.
        context.prec = _DIGITS + 50
        square, term, total, count = Decimal(x) ** 2, Decimal(1), Decimal(1), 0
        while abs(term) > Decimal(10) ** -_DIGITS:
            count += 2
            term *= -square / (count * (count - 1))
            total += term
        assert cos(x) == _nearest(total)


@given(st.floats(1e-3, 1e3), st.floats(-40.0, 40.0))
def test_a_power_is_the_nearest_float(x: float, y: float) -> None:
    with localcontext() as context:
        context.prec = _DIGITS
        assert power(x, y) == _nearest((Decimal(x).ln() * Decimal(y)).exp())


@given(st.floats(0.0, 2.0), st.integers(0, 200))
def test_a_whole_power_is_the_nearest_float(x: float, y: int) -> None:
    exact = Fraction(x) ** y
    assert power(x, y) == exact.numerator / exact.denominator


@pytest.mark.parametrize("x", [2.0**27 + 1.0, 2.0**27 - 1.0, 3.0, 0.1])
def test_a_power_between_two_floats_is_rounded_to_the_even_one(x: float) -> None:
    # A square has up to 106 bits, and lies half-way between two floats if it has 54.
    assert power(x, 2.0) == x * x
    assert power(x * x, 0.5) == math.sqrt(x * x)
    assert power(x, 1.0) == x


def test_ends_of_the_range() -> None:
    assert exp(-746.0) == exp(-math.inf) == power(0.5, 2000) == power(0.0, 0.5) == 0.0
    assert exp(-745.0) == power(2.0, -1074) == 5e-324
    assert power(0.0, 0.0) == power(7.0, 0.0) == exp(0.0) == cos(0.0) == 1.0
    assert math.isnan(exp(math.nan))


@pytest.mark.parametrize("x", [710.0, 1e300, math.inf])
def test_what_is_too_large_for_a_float_is_refused(x: float) -> None:
    with pytest.raises(OverflowError):
        exp(x)
    with pytest.raises(OverflowError):
        power(3.0, min(x, 1e300))


@pytest.mark.parametrize(("x", "y"), [(-1.0, 2.0), (0.0, -1.0), (math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0)])
def test_a_power_needs_numbers_of_its_domain(x: float, y: float) -> None:
    with pytest.raises(ValueError, match="power of"):
        power(x, y)


@pytest.mark.parametrize("x", [math.inf, math.nan, 1e30])
def test_a_cosine_needs_a_number_of_its_domain(x: float) -> None:
    with pytest.raises(ValueError, match="cos of"):
        cos(x)
