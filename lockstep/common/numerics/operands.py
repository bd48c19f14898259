"""Operands of leaves that are not arrays: a mean that is still sums, and the windows of convolutions and pools."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Vector = NDArray[Any]


class Mean(Struct, frozen=True):
    """A gradient that is divided where it is used: a sum of one or two vectors, a divisor, a factor of clipping."""

    terms: Sequence[Vector]
    divisor: float = 1.0
    scale: float | None = None
    #: Memory for the mean: new memory by default; one of the terms if that may be overwritten.
    memory: Vector | None = None

    @property
    def factor(self) -> float | None:
        """The number that the sum may be multiplied by instead: exact, as dividing by a power of two is, and faster."""
        return 1 / self.divisor if math.frexp(self.divisor)[0] == 0.5 else None

    def compute(self) -> Vector:
        """Return the mean, in its memory; zero if nothing counts, as where all labels are ignored."""
        first, *others = self.terms
        out = np.empty_like(first) if self.memory is None else self.memory
        if self.divisor == 0.0:
            out.fill(0.0)
            return out
        kind, total = out.dtype.type, np.add(first, others[0], out=out) if others else first
        if self.factor is not None:
            np.multiply(total, kind(self.factor), out=out)
        else:
            np.divide(total, kind(self.divisor), out=out)
        return out if self.scale is None else np.multiply(out, kind(self.scale), out=out)


class Geometry(NamedTuple):
    """The windows of a convolution over padded images, along (height, width)."""

    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    #: The padding of images at each side, which has no gradient.
    padding: tuple[int, int] = (0, 0)


class PoolWindows(NamedTuple):
    """The windows of a pool over images, along (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


#: Kinds of recurrent layers: how many times `hidden_size` rows the weights have.
GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
