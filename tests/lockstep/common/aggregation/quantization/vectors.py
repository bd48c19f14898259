"""Vectors to be rounded, and what is the same for all types of the wire."""

import numpy as np

from lockstep.common.aggregation.quantization import CHUNK, NumberFormat, StochasticRounding
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.random import Purpose, generator

#: Names of the types that round.
NAMES = ("float16", "bfloat16", "int8")


def spread(count: int, seed: int = 0, low: int = -9, high: int = 4) -> Vector:
    """Return values of very different sizes, some of them 0."""
    rng = generator(seed, Purpose.CANARY, at=count)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(low, high, count)
    values[rng.random(count) < 0.05] = 0.0
    return values.astype(np.float32)


def of_bits(*bits: int) -> Vector:
    """Return the float32 values that have these bits."""
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(values: Vector) -> list[int]:
    return [int(bits) for bits in values.view(np.uint32)]


def rounded(form: NumberFormat, values: Vector, seed: int = 7, step: int = 0) -> Vector:
    """Return the values as a type rounds them, those of the beginning of a vector."""
    result, rounding = values.copy(), StochasticRounding(seed, step, Node(0, 1), 0)
    for start in range(0, values.size, CHUNK):
        form.round(result[start : start + CHUNK], rounding)
    return result


def sent(form: NumberFormat, values: Vector) -> Vector:
    """Return what comes of rounded values when they have travelled as bytes."""
    data = np.empty(form.size(values.size), np.uint8)
    form.encode(values, data)
    received = np.empty_like(values)
    form.decode(data, received)
    return received
