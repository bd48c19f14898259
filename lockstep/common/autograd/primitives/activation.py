"""Smooth functions and activations of one array; none overflows for any finite argument it is defined on."""

import functools
import math

import numpy as np
from numpy.polynomial import chebyshev

from lockstep.common.autograd.primitives.elementwise import masked
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.runtime.numerics import own_numerics


def _sigmoid(x: Array) -> Array:
    """Return `1 / (1 + exp(-x))` by the exponential of what is never positive: small results stay exact."""
    decay = np.exp(-np.abs(x))
    result: Array = np.maximum(decay, x >= 0) / (1 + decay)
    return result


def log1p(x: Array) -> Array:
    """Return `log(1 + x)`; with portable numerics float32 goes by way of float64.

    Without AVX-512 NumPy leaves it to the C library, and glibc before 2.41 has other bits for one in twelve numbers in
    float32, since only the later one rounds correctly. Rounded from float64, both give the same bits.
    """
    if x.dtype == np.float32 and own_numerics() == "portable":
        rounded: Array = np.log1p(x, dtype=np.float64).astype(np.float32)
        return rounded
    result: Array = np.log1p(x)
    return result


def _softplus(x: Array, beta: float) -> Array:
    """Return `log(1 + exp(beta x)) / beta` as `max(x, 0)` and a bounded rest."""
    rest: Array = log1p(np.exp(-beta * np.abs(x))) / beta
    return np.maximum(x, 0) + rest


def _leaky_relu(x: Array, negative_slope: float) -> Array:
    return np.maximum(x, 0) + np.minimum(x, 0) * negative_slope


def _leaky_relu_derivative(gradient: Array, _: None, x: Array, negative_slope: float) -> Array:
    rises = x > 0
    return masked(gradient, rises) + masked(gradient * negative_slope, ~rises)


@functools.cache
def _coefficients(dtype: np.dtype[np.floating]) -> tuple[float, Array]:
    """Return the bound beyond which erf rounds to 1, and the Chebyshev series of `erf(sqrt(t)) / sqrt(t)`.

    That function of `t = x**2` is entire, so the series converges faster than any power; leaving out the odd
    factor x keeps the relative accuracy near 0. The values come from the C library.
    """
    bound, degree = (4.0, 24) if dtype == np.float32 else (6.0, 56)

    roots = bound * np.sqrt((chebyshev.chebpts1(degree + 1) + 1) / 2)
    values = [math.erf(root) / root for root in roots.tolist()]
    series = chebyshev.chebfit(chebyshev.chebpts1(degree + 1), values, degree)
    return bound, series.astype(dtype)


def erf(x: Array) -> Array:
    """Return the error function, which NumPy lacks, to some units of rounding of the dtype of `x`."""
    bound, series = _coefficients(x.dtype)
    inside = np.clip(x, -bound, bound)
    return inside * _chebyshev_sum(inside * inside * (2 / bound**2) - 1, series)


def _chebyshev_sum(x: Array, series: Array) -> Array:
    """Return what `chebyshev.chebval` does, by Clenshaw's recurrence, of three coefficients or more.

    With numbers for coefficients: arrays of them a tape would not know.
    """
    twice = 2 * x
    last, result = float(series[-3] - series[-1]), float(series[-2]) + float(series[-1]) * twice
    for coefficient in series[-4::-1].tolist():
        last, result = coefficient - result, last + result * twice
    return last + result * x


def _gelu(x: Array) -> tuple[Array, Array]:
    """Return `x Phi(x)` and `Phi(x)`, the normal distribution function (Hendrycks & Gimpel, arXiv:1606.08415)."""
    distribution: Array = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    return x * distribution, distribution


def _gelu_derivative(gradient: Array, distribution: Array, x: Array) -> Array:
    density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    result: Array = gradient * (distribution + x * density)
    return result


#: Constants of the tanh form, in section 2 of the paper above.
_SCALE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    """Return the tanh form of GELU and the tanh in it."""
    curve: Array = np.tanh(_SCALE * (x + _CUBIC * x * x * x))
    return 0.5 * x * (1 + curve), curve


def _gelu_tanh_derivative(gradient: Array, curve: Array, x: Array) -> Array:
    slope = _SCALE * (1 + 3 * _CUBIC * x * x)
    result: Array = gradient * (0.5 * (1 + curve) + 0.5 * x * (1 - curve * curve) * slope)
    return result


exp = Primitive("exp", np.exp, (lambda g, result, x: g * result,), reads=((RESULT,),))
log = Primitive("log", np.log, (lambda g, _, x: g / x,), reads=((0,),))
sqrt = Primitive("sqrt", np.sqrt, (lambda g, root, x: 0.5 * g / root,), reads=((RESULT,),))
tanh = Primitive("tanh", np.tanh, (lambda g, result, x: g * (1 - result * result),), reads=((RESULT,),))
sigmoid = Primitive("sigmoid", _sigmoid, (lambda g, result, x: g * result * (1 - result),), reads=((RESULT,),))
# By the result, so that a pre-activation is not kept alive; 0 has derivative 0, as in PyTorch.
relu = Primitive("relu", lambda x: np.maximum(x, 0), (lambda g, result, x: masked(g, result > 0),), reads=((RESULT,),))
leaky_relu = Primitive("leaky_relu", _leaky_relu, (_leaky_relu_derivative,), reads=((0,),))
softplus = Primitive("softplus", _softplus, (lambda g, _, x, beta: g * _sigmoid(beta * x),), reads=((0,),))
gelu = Primitive("gelu", _gelu, (_gelu_derivative,), keeps=True, reads=((0,),))
gelu_tanh = Primitive("gelu_tanh", _gelu_tanh, (_gelu_tanh_derivative,), keeps=True, reads=((0,),))
