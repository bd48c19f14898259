"""exp, cos and powers of single floats, each the float that is nearest to the exact value.

The mathematics library of a system may round its own either way, so that a learning rate would depend on it. These are
computed with whole numbers, which Python adds and multiplies exactly: fixed-point numbers of 256 bits behind the point.
The hardest known cases of exp and log take some 120 bits (Lefèvre and Muller, "Worst cases for correct rounding of the
elementary functions in double precision", ARITH 2001). A call takes 5 to 30 µs: enough for a number per step.
"""

import math
from functools import lru_cache

#: Bits behind the point of a fixed-point number, and bits of a result before it is rounded to a float.
_POINT, _KEPT = 256, 128
_ONE = 1 << _POINT
#: Halvings of an exponent before its series, which then takes some twenty terms; the result is squared as often.
_HALVINGS = 8


def exp(x: float) -> float:
    """Return e**x, and NaN for NaN. Raises OverflowError if the result is too large for a float."""
    if math.isnan(x):
        return x
    if x < -1000.0:
        return 0.0
    return _exp(_fixed(min(x, 1000.0)))


def cos(x: float) -> float:
    """Return the cosine. Raises ValueError unless `x` is from -2**60 to 2**60."""
    _check(abs(x) <= 2.0**60, "cos", x)
    angle = _fixed(x) % (2 * _PI)
    return _nearest(_series(_OF_COS, angle * angle >> _POINT), -_POINT)


@lru_cache(maxsize=256)
def power(x: float, y: float) -> float:
    """Return x**y; 0**0 is 1.

    Raises ValueError unless both are finite, `x` is at least 0, and `y` is so if `x` is 0; OverflowError as `exp`.
    """
    _check(0.0 <= x < math.inf and math.isfinite(y) and (x > 0.0 or y >= 0.0), "power", (x, y))
    if x == 0.0:
        return 1.0 if y == 0.0 else 0.0
    # The product of a float and a fixed-point number is exact, and rounded once.
    numerator, denominator = float(y).as_integer_ratio()
    exponent = _log(float(x)) * numerator // denominator
    return 0.0 if exponent < -1000 * _ONE else _exp(min(exponent, 1000 * _ONE))


def _exp(x: int) -> float:
    twos, rest = divmod(x, _LN2)
    total = _series(_OF_EXP, rest >> _HALVINGS)
    for _ in range(_HALVINGS):
        total = total * total >> _POINT
    return _nearest(total, twos - _POINT)


@lru_cache(maxsize=64)
def _log(x: float) -> int:
    mantissa, twos = math.frexp(x)
    if mantissa < math.sqrt(0.5):
        mantissa, twos = 2.0 * mantissa, twos - 1
    of = _fixed(mantissa)
    return 2 * _atanh(((of - _ONE) << _POINT) // (of + _ONE)) + twos * _LN2


def _atanh(x: int) -> int:
    """Return the inverse of tanh, for a number from -1/3 to 1/3."""
    return x * _series(_OF_ATANH, x * x >> _POINT) >> _POINT


def _series(coefficients: list[int], x: int) -> int:
    total = 0
    for coefficient in coefficients:
        total = coefficient + (total * x >> _POINT)
    return total


def _arctan_of_inverse(whole: int) -> int:
    """1/n - 1/(3n³) + 1/(5n⁵) - ..."""
    total, size, count = 0, _ONE // whole, 1
    while size:
        total += size // count if count % 4 == 1 else -(size // count)
        size, count = size // (whole * whole), count + 2
    return total


def _fixed(x: float) -> int:
    numerator, denominator = float(x).as_integer_ratio()
    return (numerator << _POINT) // denominator


def _nearest(whole: int, exponent: int) -> float:
    """Return the float next to whole · 2**exponent, of which the last bits are uncertain.

    They are rounded away first, so that a value which lies exactly between two floats is found to do so.
    """
    spare = max(abs(whole).bit_length() - _KEPT, 0)
    whole, exponent = (whole + (1 << spare >> 1)) >> spare, exponent + spare
    # A quotient of whole numbers is rounded to nearest, ties to even, subnormal floats included.
    return (whole << exponent) / 1 if exponent >= 0 else whole / (1 << -exponent)


def _check(is_good: bool, function: str, value: object) -> None:
    if not is_good:
        raise ValueError(f"{function} of {value!r}: not a finite number of its domain")


#: Coefficients of series, from the highest power to the lowest: as many as reach the last bit, and a few more. Those of
#: exp are for x up to ln(2) / 2**8, those of cos for x² up to (2π)², those of atanh for x² up to 1/9.
_OF_EXP = [_ONE // math.factorial(k) for k in reversed(range(30))]
_OF_COS = [(-1) ** k * (_ONE // math.factorial(2 * k)) for k in reversed(range(50))]
_OF_ATANH = [_ONE // (2 * k + 1) for k in reversed(range(84))]
_LN2 = 2 * _atanh(_ONE // 3)
#: Machin's formula.
_PI = 4 * (4 * _arctan_of_inverse(5) - _arctan_of_inverse(239))
