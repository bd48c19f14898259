"""Initial values of parameters, drawn from an explicit generator and written in place; knows no layer.

Names, arguments and formulas are those of `torch.nn.init`. Each takes a tensor of any shape unless it says otherwise,
overwrites its `.data`, and returns it. The same generator state gives the same bits.
"""

import math
from typing import Literal

import numpy as np

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.random import normal, uniform

Mode = Literal["fan_in", "fan_out"]
Nonlinearity = Literal["linear", "conv1d", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4.0,
}


def calculate_gain(nonlinearity: Nonlinearity, negative_slope: float = 0.01) -> float:
    """Return the factor by which weights before `nonlinearity` are scaled; `negative_slope` is for leaky_relu.

    Raises ValueError for an unknown nonlinearity.

    Differs from PyTorch: `negative_slope` is called `param` there.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + negative_slope * negative_slope))
    if nonlinearity not in _GAINS:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}: expected one of {', '.join([*_GAINS, 'leaky_relu'])}")
    return _GAINS[nonlinearity]


def calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """Return the number of inputs and outputs of one unit.

    For a weight of shape (out, in, kernel...), they are in and out, each times the elements of the kernel. Raises
    ValueError for a tensor with fewer than two axes.

    Differs from PyTorch: the function has no underscore in front of its name.
    """
    if tensor.ndim < 2:
        raise ValueError(f"a tensor of shape {tensor.shape} has no fan: expected at least two axes, (out, in, *kernel)")
    outputs, inputs, *kernel = tensor.shape
    receptive_field = math.prod(kernel)
    return inputs * receptive_field, outputs * receptive_field


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill a tensor of any shape with one value, and return it.

    Differs from PyTorch: `value` is called `val` there.
    """
    tensor.data[...] = value
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill a tensor of any shape with zeros, and return it."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill a tensor of any shape with ones, and return it."""
    return constant_(tensor, 1.0)


def uniform_(tensor: Tensor, rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw a tensor of any shape from U(low, high), and return it. Raises OverflowError for an infinite range.

    Differs from PyTorch: the generator is an argument; `low` and `high` are called `a` and `b` there.
    """
    tensor.data[...] = uniform(rng, low, high, tensor.shape)
    return tensor


def normal_(tensor: Tensor, rng: np.random.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw a tensor of any shape from N(mean, std²), and return it. Raises ValueError for an `std` below 0.

    Differs from PyTorch: the generator is an argument.
    """
    tensor.data[...] = normal(rng, mean, std, tensor.shape)
    return tensor


def xavier_uniform_(tensor: Tensor, rng: np.random.Generator, gain: float = 1.0) -> Tensor:
    """Draw from U(-b, b), b = gain·√(6 / (fan_in + fan_out)), for a weight of shape (out, in, kernel...), and return
    it.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, eq.
    16. Raises ValueError for a tensor with fewer than two axes.

    Differs from PyTorch: the generator is an argument.
    """
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, rng, -bound, bound)


def xavier_normal_(tensor: Tensor, rng: np.random.Generator, gain: float = 1.0) -> Tensor:
    """Draw from N(0, σ²), σ = gain·√(2 / (fan_in + fan_out)), for a weight of shape (out, in, kernel...), and return
    it.

    Glorot and Bengio, 2010, as `xavier_uniform_`: the variance of their eq. 12. Raises ValueError for a tensor with
    fewer than two axes.

    Differs from PyTorch: the generator is an argument.
    """
    return normal_(tensor, rng, 0.0, _xavier_std(tensor, gain))


def kaiming_uniform_(
    tensor: Tensor,
    rng: np.random.Generator,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
) -> Tensor:
    """Draw from U(-b, b), b = gain·√(3 / fan), for a weight of shape (out, in, kernel...); `a` is the slope of
    leaky_relu.

    He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015, eq. 10 and 14 (with `mode="fan_in"`). Raises
    ValueError for another `mode` than "fan_in" and "fan_out", an unknown nonlinearity, and fewer than two axes.

    Differs from PyTorch: the generator is an argument.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, rng, -bound, bound)


def kaiming_normal_(
    tensor: Tensor,
    rng: np.random.Generator,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
) -> Tensor:
    """Draw from N(0, σ²), σ = gain / √fan, for a weight of shape (out, in, kernel...); `a` is the slope of leaky_relu.

    He, Zhang, Ren and Sun, 2015, as `kaiming_uniform_`. Raises ValueError for another `mode` than "fan_in" and
    "fan_out", an unknown nonlinearity, and fewer than two axes.

    Differs from PyTorch: the generator is an argument.
    """
    return normal_(tensor, rng, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def default_weight_(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw a weight of shape (out, in, kernel...) as Linear and Conv do by default: U(-1/√fan_in, 1/√fan_in).

    Written as PyTorch writes it; the √5 is historical and gives just that bound. Raises ValueError for fewer than two
    axes.

    Differs from PyTorch: PyTorch has this in its layers alone.
    """
    return kaiming_uniform_(weight, rng, a=math.sqrt(5.0))


def default_bias_(bias: Tensor, weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw the bias (out,) that belongs to a weight of shape (out, in, kernel...): U(-1/√fan_in, 1/√fan_in), as
    PyTorch.

    Raises ValueError for a weight with fewer than two axes.

    Differs from PyTorch: PyTorch has this in its layers alone.
    """
    fan_in, _ = calculate_fan_in_and_fan_out(weight)
    bound = 1.0 / math.sqrt(fan_in) if fan_in else 0.0
    return uniform_(bias, rng, -bound, bound)


def _xavier_std(tensor: Tensor, gain: float) -> float:
    fan_in, fan_out = calculate_fan_in_and_fan_out(tensor)
    return gain * math.sqrt(2.0 / (fan_in + fan_out))


def _kaiming_std(tensor: Tensor, a: float, mode: Mode, nonlinearity: Nonlinearity) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"unknown mode {mode!r}: expected 'fan_in' or 'fan_out'")
    fan_in, fan_out = calculate_fan_in_and_fan_out(tensor)
    return calculate_gain(nonlinearity, a) / math.sqrt(fan_in if mode == "fan_in" else fan_out)
