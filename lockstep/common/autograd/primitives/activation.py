"""Smooth functions and activations of one array; none overflows for any finite argument it is defined on."""

import math

import numpy as np

from lockstep.common.autograd.primitives.elementwise import masked
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.numerics import leaves


def _softplus(x: Array, beta: float) -> Array:
    """Return `log(1 + exp(beta x)) / beta` as `max(x, 0)` and a bounded rest."""
    rest: Array = leaves.log1p(leaves.exp(-beta * np.abs(x))) / beta
    return np.maximum(x, 0) + rest


def _leaky_relu(x: Array, negative_slope: float) -> Array:
    return np.maximum(x, 0) + np.minimum(x, 0) * negative_slope


def _leaky_relu_derivative(gradient: Array, _: None, x: Array, negative_slope: float) -> Array:
    rises = x > 0
    return masked(gradient, rises) + masked(gradient * negative_slope, ~rises)


def _gelu(x: Array) -> tuple[Array, Array]:
    """Return `x Phi(x)` and `Phi(x)`, the normal distribution function (Hendrycks & Gimpel, arXiv:1606.08415)."""
    distribution: Array = 0.5 * (1 + leaves.erf(x * math.sqrt(0.5)))
    return x * distribution, distribution


def _gelu_derivative(gradient: Array, distribution: Array, x: Array) -> Array:
    density = leaves.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    result: Array = gradient * (distribution + x * density)
    return result


#: Constants of the tanh form, in section 2 of the paper above.
_SCALE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    """Return the tanh form of GELU and the tanh in it."""
    curve: Array = leaves.tanh(_SCALE * (x + _CUBIC * x * x * x))
    return 0.5 * x * (1 + curve), curve


def _gelu_tanh_derivative(gradient: Array, curve: Array, x: Array) -> Array:
    slope = _SCALE * (1 + 3 * _CUBIC * x * x)
    result: Array = gradient * (0.5 * (1 + curve) + 0.5 * x * (1 - curve * curve) * slope)
    return result


exp = Primitive("exp", leaves.exp, (lambda g, result, x: g * result,), reads=((RESULT,),))
log = Primitive("log", leaves.log, (lambda g, _, x: g / x,), reads=((0,),))
sqrt = Primitive("sqrt", np.sqrt, (lambda g, root, x: 0.5 * g / root,), reads=((RESULT,),))
tanh = Primitive("tanh", leaves.tanh, (lambda g, result, x: g * (1 - result * result),), reads=((RESULT,),))
sigmoid = Primitive("sigmoid", leaves.sigmoid, (lambda g, result, x: g * result * (1 - result),), reads=((RESULT,),))
# By the result, so that a pre-activation is not kept alive; 0 has derivative 0, as in PyTorch.
relu = Primitive("relu", leaves.relu, (lambda g, result, x: leaves.relu_gradient(g, result),), reads=((RESULT,),))
leaky_relu = Primitive("leaky_relu", _leaky_relu, (_leaky_relu_derivative,), reads=((0,),))
softplus = Primitive("softplus", _softplus, (lambda g, _, x, beta: g * leaves.sigmoid(beta * x),), reads=((0,),))
gelu = Primitive("gelu", _gelu, (_gelu_derivative,), keeps=True, reads=((0,),))
gelu_tanh = Primitive("gelu_tanh", _gelu_tanh, (_gelu_tanh_derivative,), keeps=True, reads=((0,),))
