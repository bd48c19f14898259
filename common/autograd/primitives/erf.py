"""The error function, which NumPy lacks: accurate to some units of the dtype's rounding."""

import functools
import math

import numpy as np
from numpy.polynomial import chebyshev

from common.autograd.primitives.primitive import Array


@functools.cache
def _coefficients(dtype: np.dtype[np.floating]) -> tuple[float, Array]:
    """Return the bound beyond which erf rounds to 1, and the Chebyshev series of `erf(sqrt(t)) / sqrt(t)`.

    That function of `t = x**2` is entire, so the series converges faster than any power; that it leaves the odd
    factor x outside keeps the relative accuracy near 0. The values come from the C library.
    """
    bound, degree = (4.0, 24) if dtype == np.float32 else (6.0, 56)

    roots = bound * np.sqrt((chebyshev.chebpts1(degree + 1) + 1) / 2)
    values = [math.erf(root) / root for root in roots.tolist()]
    series = chebyshev.chebfit(chebyshev.chebpts1(degree + 1), values, degree)
    return bound, series.astype(dtype)


def erf(x: Array) -> Array:
    """Return the error function of each element, in the dtype of `x`."""
    bound, series = _coefficients(x.dtype)
    inside = np.clip(x, -bound, bound)
    over_x: Array = chebyshev.chebval(inside * inside * (2 / bound**2) - 1, series)
    return inside * over_x
