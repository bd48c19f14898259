"""Places arrays in one piece of memory: one that is needed no longer makes room for those that come later."""

from collections.abc import Iterable

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import Memory, View

#: Where arrays may begin.
_ALIGNMENT = 64


class Base(msgspec.Struct, frozen=True):
    """Where a memory of the tape is now."""

    array: Array
    #: In bytes, of the first batch.
    offset: int = 0
    #: How far apart the batches are; 0 if there is one for all.
    step: int = 0

    def view(self, view: View, batch: int = 0) -> Array:
        """Return what a batch has for a view."""
        start = self.offset + batch * self.step + view.offset
        return np.ndarray(view.shape, view.dtype, self.array.data, start, view.strides)

    def stack(self, view: View, count: int, dimensions: int) -> Array:
        """Return the views of all batches as one array: the batches in front, then axes of size 1, then its own."""
        missing = dimensions - len(view.shape)
        shape, strides = (count, *(1,) * missing, *view.shape), (self.step, *(0,) * missing, *view.strides)
        return np.ndarray(shape, view.dtype, self.array.data, self.offset + view.offset, strides)


def aligned(size: int) -> Array:
    """Return so many bytes, the first of them where a vector may begin."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[start : start + size]


class Stay(msgspec.Struct, frozen=True):
    """How much memory is wanted, from one call to another, both included."""

    memory: Memory
    size: int
    first: int
    last: int


def placed(stays: Iterable[Stay]) -> tuple[Array, dict[Memory, int]]:
    """Return new memory, and where in it each one begins: as low as it fits next to those in use meanwhile."""
    in_use: list[tuple[int, int, int]] = []  # (offset, end, last)
    offsets: dict[Memory, int] = {}
    whole = 0
    for stay in sorted(stays, key=lambda each: (each.first, -each.size)):
        size, offset = -(-stay.size // _ALIGNMENT) * _ALIGNMENT, 0
        in_use = sorted(each for each in in_use if each[2] >= stay.first)
        for begin, end, _ in in_use:
            if begin - offset >= size:
                break
            offset = max(offset, end)
        in_use.append((offset, offset + size, stay.last))
        offsets[stay.memory] = offset
        whole = max(whole, offset + size)
    return aligned(whole), offsets
