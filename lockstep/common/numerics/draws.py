"""Random floats from a generator's uniform ones, by operations that IEEE 754 fixes.

NumPy's own normal numbers take their tails from the mathematics library of the system, and its compiler may fuse what
scales a uniform number. `Generator.random` is whole numbers of Philox times a power of two, the same everywhere.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

#: Numbers that are made at once, so that their arrays stay in a cache.
_BLOCK = 16_384

# AS 241, routine PPND16 (Wichura, "The percentage points of the normal distribution", Applied Statistics 37, 1988):
# numerator and denominator for the centre, the sides and the ends, from the lowest power on.
_CENTRE = (
    (
        *(3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4),
        *(4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    ),
    (
        *(1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3),
        *(2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
    ),
)
_SIDE = (
    (
        *(1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0),
        *(1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    ),
    (
        *(1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1),
        *(1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
    ),
)
_END = (
    (
        *(6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1),
        *(2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    ),
    (
        *(1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2),
        *(7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
    ),
)

_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
#: log2(m) = s P(s²) with s = (m - 1) / (m + 1), as in the kernels' `power`: from the lowest power on.
_LOG2 = tuple(
    map(
        float.fromhex,
        (
            *("0x1.71547652b82ffp+1", "0x1.ec709dc39c6a7p-1", "0x1.2776c516fcc93p-1", "0x1.a617561af612ep-2"),
            *("0x1.484fc3665c05ep-2", "0x1.0bb5069535d90p-2", "0x1.f1c166865e00fp-3"),
        ),
    )
)


def uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> Doubles:
    """Draw from U(low, high). Raises OverflowError for an infinite range."""
    width = high - low
    if not math.isfinite(width):
        raise OverflowError(f"the range from {low!r} to {high!r} is not finite")
    return low + width * rng.random(shape)


def normal(rng: np.random.Generator, mean: float, std: float, shape: tuple[int, ...]) -> Doubles:
    """Draw from N(mean, std²), one number from each uniform one. Raises ValueError for an `std` below 0."""
    if not std >= 0.0:
        raise ValueError(f"std is {std!r}: expected a number of at least 0")
    drawn = np.empty(shape)
    for block in _blocks(drawn.reshape(-1)):
        block[...] = mean + std * normal_quantile(rng.random(block.shape))
    return drawn


def normal_quantile(share: Doubles) -> Doubles:
    """Return the number below which that share of N(0, 1) lies, for multiples of 2**-53 from 0 to 1."""
    q = share - 0.5
    result = q * _ratio(_CENTRE, 0.180625 - q * q)
    far = np.abs(q) > 0.425
    # Zero is drawn once in 2**53 times, and counts as half of the least number above it.
    tail = np.maximum(np.minimum(share[far], 1.0 - share[far]), 2.0**-54)
    r = np.sqrt(-_LN2 * _log2(tail))
    size = np.where(r <= 5.0, _ratio(_SIDE, r - 1.6), _ratio(_END, r - 5.0))
    result[far] = np.where(q[far] < 0.0, -size, size)
    return result


def _blocks(flat: Doubles) -> Iterator[Doubles]:
    for first in range(0, len(flat), _BLOCK):
        yield flat[first : first + _BLOCK]


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Doubles) -> Doubles:
    numerator, denominator = coefficients
    return _polynomial(numerator, x) / _polynomial(denominator, x)


def _log2(x: Doubles) -> Doubles:
    """Return the binary logarithm of normal numbers above 0."""
    mantissa, twos = np.frexp(x)
    is_small = mantissa < math.sqrt(0.5)
    mantissa = np.where(is_small, 2.0 * mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    result: Doubles = s * _polynomial(_LOG2, s * s) + (twos - is_small)
    return result


def _polynomial(coefficients: Sequence[float], x: Doubles) -> Doubles:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result
