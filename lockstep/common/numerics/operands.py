"""Operands of leaves that are not arrays: a mean that is still sums, and the windows of convolutions and pools."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

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


#: One offset of all windows: an index of the elements there, and one of the windows that see an element there.
Tap = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


class Window(Struct, frozen=True):
    """The windows of one kernel along one axis of `size` elements."""

    size: int
    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1
    #: Whether a last window may be cut off at the end, if it begins within the input or the padding before it.
    is_ceil: bool = False

    @property
    def reach(self) -> int:
        """The number of elements from the first to the last that one window sees."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def padded(self) -> int:
        """The number of elements with the padding at both sides."""
        return self.size + 2 * self.padding

    @property
    def inside(self) -> slice:
        """The elements that the padding surrounds, as a part of the padded ones."""
        return slice(self.padding, self.padding + self.size)

    @property
    def count(self) -> int:
        """The number of windows; the last elements are skipped if the stride does not divide (PyTorch's floor)."""
        steps, rest = divmod(self.padded - self.reach, self.stride)
        is_cut_off = self.is_ceil and rest > 0 and (steps + 1) * self.stride < self.size + self.padding
        return steps + 1 + is_cut_off

    def lengths(self, *, with_padding: bool) -> list[int]:
        """Return how many elements each window has in the input, or there and in the padding, but not beyond it."""
        if with_padding:
            return [min(self.kernel, self.padded - first * self.stride) for first in range(self.count)]
        seen = [range(*self.tap(offset)[1].indices(self.count)) for offset in range(self.kernel)]
        return [sum(window in each for each in seen) for window in range(self.count)]

    def tap(self, offset: int) -> tuple[slice, slice]:
        """Return (elements, windows): which elements are seen at `offset` of a window, and by which windows.

        Padding is left out, so that it need not exist in memory.
        """
        start = offset * self.dilation - self.padding
        first = max(0, -(start // self.stride))
        last = max(first, min(self.count, (self.size - 1 - start) // self.stride + 1))
        begin = start + first * self.stride
        return slice(begin, begin + (last - first) * self.stride, self.stride), slice(first, last)


#: The windows over images, along (height, width).
Windows = tuple[Window, Window]


@lru_cache(maxsize=1024)
def taps(rows: Window, columns: Window) -> tuple[Tap, ...]:
    """Return the offsets of a window in row-major order, as indices into (channels, height, width, batch).

    Offsets at which all windows see padding are left out: an array without elements cannot be recorded.
    """
    every = ([window.tap(offset) for offset in range(window.kernel)] for window in (rows, columns))
    along = ([(elements, seen) for elements, seen in each if seen.start < seen.stop] for each in every)
    whole = slice(None)
    return tuple(((whole, y, x), (whole, seen_y, seen_x)) for (y, seen_y), (x, seen_x) in product(*along))


#: Kinds of recurrent layers: how many times `hidden_size` rows the weights have.
GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
