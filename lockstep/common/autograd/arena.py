"""Places what a program computes in one piece of memory: what is needed no longer makes room for what comes later."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.common.autograd.parts import Part
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import Memory, MemoryKind, View

#: Where arrays may begin.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Base:
    """Where a memory of the tape is now."""

    array: Array
    #: In bytes, of the first batch.
    offset: int = 0
    #: How far apart the batches are; 0 if there is one for all, or for one after the other.
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


class Arena:
    """The memory of all that is computed on the way, for so many batches."""

    def __init__(self, parts: Sequence[Part], outputs: Iterable[View], count: int, addends: int) -> None:
        """Place what the parts use; `addends` are the gradients that exist at once next to the sum."""
        kept = {view.memory for view in outputs}
        stacked, local = _Packing(), {part: list[Memory]() for part in parts}
        for memory, uses in _uses([part.views() for part in parts]).items():
            if len(uses) == 1 and (parts[uses[0]].is_summed or count == 1) and memory not in kept:
                local[parts[uses[0]]].append(memory)
            else:
                stacked.add(memory, count * memory.size, uses[0], len(parts) if memory in kept else uses[-1])
        stacks, start = stacked.pack(), stacked.size
        ranges = {part: _within(part, local[part], addends) for part in parts}
        offsets = {part: packing.pack() for part, packing in ranges.items()}
        self.memory = aligned(start + max((packing.size for packing in ranges.values()), default=0))
        #: Where each memory is: of a stack, or of what a part uses for one batch after the other.
        self.bases = {memory: Base(self.memory, offset, memory.size) for memory, offset in stacks.items()}
        #: For each part that sums gradients, where those are that are to be added.
        self.addends: dict[Part, list[Base]] = {}
        for part, found in offsets.items():
            bases = {key: Base(self.memory, start + offset) for key, offset in found.items()}
            self.bases |= {key: base for key, base in bases.items() if isinstance(key, Memory)}
            self.addends[part] = [bases[number] for number in range(len(bases) - len(local[part]))]


def _uses(views: Sequence[Iterable[View]]) -> dict[Memory, list[int]]:
    """Return where in a sequence each temporary memory is used."""
    uses: dict[Memory, list[int]] = {}
    for place, each in enumerate(views):
        for memory in dict.fromkeys(view.memory for view in each if view.memory.kind is MemoryKind.TEMPORARY):
            uses.setdefault(memory, []).append(place)
    return uses


def _within(part: Part, memories: Iterable[Memory], addends: int) -> "_Packing":
    """Return what a part alone uses, and what it adds up."""
    packing, uses = _Packing(), _uses([call.views() for call in part.calls])
    for memory in memories:
        packing.add(memory, memory.size, uses[memory][0], uses[memory][-1])
    for number in range(addends if part.is_summed else 0):
        packing.add(number, part.gradient().nbytes, 0, len(part.calls))
    return packing


@dataclass
class _Packing:
    """Places ranges of bytes such that no two overlap that are in use at once: each as low as it fits, by birth."""

    size: int = 0
    _wanted: list[tuple[int, int, int, Any]] = field(default_factory=list)

    def add(self, key: Memory | int, size: int, first: int, last: int) -> None:
        """Want `size` bytes in use from `first` to `last`, both included."""
        self._wanted.append((first, last, -(-size // _ALIGNMENT) * _ALIGNMENT, key))

    def pack(self) -> dict[Any, int]:
        """Return where each begins."""
        placed: list[tuple[int, int, int]] = []  # (offset, end, last)
        offsets: dict[Any, int] = {}
        for first, last, size, key in sorted(self._wanted, key=lambda want: (want[0], -want[2])):
            offset = 0
            for begin, end, until in sorted(placed):
                if until < first:
                    continue
                if begin - offset >= size:
                    break
                offset = max(offset, end)
            placed = [each for each in placed if each[2] >= first]
            placed.append((offset, offset + size, last))
            offsets[key] = offset
            self.size = max(self.size, offset + size)
        return offsets
