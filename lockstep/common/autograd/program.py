"""Repeats what a tape recorded, for one batch or for a stack of several of one shape in one pass.

Each batch gets the bits that it would get alone. A stack has an axis in front of those of a single batch's arrays, and
within it everything lies as it would alone. So whatever computes elements from elements is called once for the whole
stack; a product of matrices is one call that multiplies matrix by matrix, each in its own shape; anything else is
called batch by batch. That pays while a stack stays in cache: `fits_in_cache` tells.

The gradients of the batches are summed, over a tree that the caller gives, as soon as they are computed and a block at
a time: memory is written once, and the number of gradients that exist at once grows with the depth of the tree alone.
All memory is allocated beforehand, and used again by what comes later.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from lockstep.common.autograd.capture import Capture, TapedCapture
from lockstep.common.autograd.fusion import joined, runs, without_ones
from lockstep.common.autograd.primitives.primitive import Array, Sink
from lockstep.common.autograd.tape import Call, CallKind, Memory, MemoryKind, Saved, UntapeableError, View
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.random import Source

#: In which order gradients are summed: a batch's number, or two trees that are summed, each on its own, and then added.
Tree = int | tuple["Tree", "Tree"]

#: Bytes of the largest array of a stack up to which it stays in a second-level cache of 1 MiB, as far as that matters.
#: LeNet in four micro-batches of 16 takes 5.2 ms one by one and 5.8 as a stack, whose windows have 5 MB; mlp, with 0.2
#: MB at 16 and 0.8 MB at 64, takes 3.6 and 2.8 ms, and 8.8 and 7.9 (the 30th of 100 times, in turns).
STACK_BYTES = 1 << 20

#: Calls that are made without a break.
STRETCH = 8

#: Where arrays may begin.
_ALIGNMENT = 64

#: A call with its arguments.
Instruction = Callable[[], Any]


@dataclass(slots=True)
class Part:
    """Calls that are made together."""

    calls: list[Call]
    is_backward: bool
    #: Whether they make gradients: for one batch after the other, added over the tree.
    is_summed: bool = False
    #: The gradients whose sums are final with this part.
    finishes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Instructions that are carried out without a break, and the gradients that are final after them."""

    instructions: list[Instruction]
    finishes: tuple[int, ...] = ()


def run(stretches: Iterable[Stretch], between: Callable[[Sequence[int]], None]) -> None:
    """Carry out stretches; call `between` after each with the gradients that are final."""
    for stretch in stretches:
        for instruction in stretch.instructions:
            instruction()
        between(stretch.finishes)


class Program:
    """Forward and backward over a stack of batches; weights and gradients may be anywhere."""

    def __init__(self, capture: TapedCapture, tree: Tree) -> None:
        """Make a program for the batches in `tree`, from 0 on. Raises `UntapeableError` if they cannot be a stack."""
        self.tree = tree
        self._count = len(list(_leaves(tree)))
        calls = _joined(_needed_calls(capture))
        self._parts = list(_parts(calls, capture))
        self._outputs = capture.outputs
        memories = {id(view.memory): view.memory for part in self._parts for view in _views(part.calls)}
        inputs = sorted(
            (each for each in capture.tape.memories if each.kind is MemoryKind.INPUT), key=lambda m: m.number
        )
        self._inputs = [_aligned(self._count * each.size) for each in inputs]
        self._layout = _Layout.of(self._parts, list(memories.values()), capture.outputs, self._count, tree)
        self._arena = _aligned(self._layout.size)
        #: What functions whose calls are not recorded saved, by batch: for the next pass in the same place.
        self._saved: dict[tuple[int, int], Saved] = {}
        operands = [each for part in self._parts for call in part.calls for each in call.operands]
        #: In place of each source, and of each sink, on the tape: those of the batches.
        self._sources = {
            each: [Source(each.rng) for _ in range(self._count)] for each in operands if isinstance(each, Source)
        }
        self._sinks = {each: [Sink() for _ in range(self._count)] for each in operands if isinstance(each, Sink)}
        #: One array for each input, to be filled before each pass: the batches along the first axis.
        self.inputs = [
            _array(memory, (self._count, *each.array.shape), each.array.dtype, (each.size, *each.array.strides))
            for memory, each in zip(self._inputs, inputs, strict=True)
        ]
        #: One array for each output, with the batches along the first axis; valid until the next pass.
        self.outputs = [self._stack(view, self._arena, len(view.shape)) for view in capture.outputs]

    @property
    def fits_in_cache(self) -> bool:
        """Whether a stack is faster than its batches one by one: one alone always is."""
        calls = (call for part in self._parts if not part.is_summed for call in part.calls)
        return (
            self._count == 1
            or self._count * max(each.nbytes for each in _views(calls) if _is_stacked(each)) <= STACK_BYTES
        )

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self._arena.size + sum(each.size for each in self._inputs)

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn on the way."""
        return bool(self._sources)

    def reseed(self, reseed: Callable[[int], None]) -> None:
        """Call `reseed` with the number of each batch, and draw for it from what the sources then have.

        To be called before each forward pass.
        """
        for batch in range(self._count):
            reseed(batch)
            for source, own in self._sources.items():
                own[batch].rng = source.rng

    def observe(self, batch: int) -> None:
        """Put what was observed of a batch in the last forward pass where the sinks on the tape put it."""
        for sink, own in self._sinks.items():
            seen = own[batch].last
            assert seen is not None
            sink.observe(*seen)

    def poison(self) -> None:
        """Overwrite all that is computed on the way, so that nothing is right that the program does not compute."""
        self._arena.fill(0xFF)

    def forward(self, shared: Sequence[Array]) -> list[Stretch]:
        """Return the forward pass that reads `shared`, in the order of the tape."""
        return self._stretches(_Emitter(self, shared, ()), is_backward=False)

    def backward(self, shared: Sequence[Array], gradients: Sequence[Array], *, adds: bool = False) -> list[Stretch]:
        """Return the backward pass that reads `shared` and writes sums into `gradients`, in the order of the tape.

        If it adds, which a program for one batch can, its gradients are added to what is there, block by block; one
        that nothing reaches stays in any case.
        """
        assert not adds or self._count == 1
        return self._stretches(_Emitter(self, shared, gradients, adds), is_backward=True)

    def _stretches(self, emitter: "_Emitter", *, is_backward: bool) -> list[Stretch]:
        parts: Iterable[Part] = (part for part in self._parts if part.is_backward is is_backward)
        if self._count == 1 and not emitter.adds:
            parts = _whole_gradients(parts)
        return [emitter.stretch(part) for part in parts]

    @property
    def length(self) -> int:
        """The number of stretches."""
        return len(self._parts)

    def _stack(self, view: View, memory: Array, dimensions: int) -> Array:
        """Return the views of all batches as one array: the batches in front, then axes of size 1, then its own."""
        place, step = self._layout.places[id(view.memory)], view.memory.size
        missing = dimensions - len(view.shape)
        shape = (self._count, *(1,) * missing, *view.shape)
        return _array(memory, shape, view.dtype, (step, *(0,) * missing, *view.strides), place.offset + view.offset)


def _is_stacked(view: View) -> bool:
    """Tell whether each batch has its own."""
    return view.memory.kind in (MemoryKind.INPUT, MemoryKind.TEMPORARY)


def _leaves(tree: Tree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        for each in tree:
            yield from _leaves(each)


def _depth(tree: Tree) -> int:
    """Return how many gradients exist next to the sum while a tree is added up."""
    return 0 if isinstance(tree, int) else max(_depth(tree[0]), 1 + _depth(tree[1]))


def _aligned(size: int) -> Array:
    """Return so many bytes, the first of them where a vector may begin."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[start : start + size]


def _array(memory: Array, shape: Any, dtype: Any, strides: Any, offset: int = 0) -> Array:
    return np.ndarray(shape, dtype, memory.data, offset, strides)


def _views(calls: Iterable[Call]) -> Iterator[View]:
    return (view for call in calls for view in call.views())


def _touched(call: Call) -> Iterator[Any]:
    """Yield the memories that a call reads or writes, and what functions have saved."""
    yield from (view.memory for view in call.views())
    yield from (each for each in call.operands if isinstance(each, Saved))


def _written(call: Call) -> list[Any]:
    return [each if isinstance(each, Saved) else each.memory for each in (call.operands[at] for at in call.writes)]


def _needed_calls(capture: TapedCapture) -> list[tuple[int, Call]]:
    """Return the calls on which an output or a gradient depends, with their places on the tape."""
    wanted = {id(view.memory) for view in capture.outputs}
    found = []
    calls = capture.tape.calls
    for place, (call, has_effect) in reversed(list(enumerate(zip(calls, without_ones(calls), strict=True)))):
        written = _written(call)
        if has_effect and any(id(each) in wanted or _is_gradient(each) for each in written):
            wanted.update(id(each) for each in _touched(call))
            found.append((place, call))
    return found[::-1]


def _joined(calls: list[tuple[int, Call]]) -> list[tuple[int, Call]]:
    """Join products into fewer calls, but for those that make gradients, which are summed block by block."""
    made = [call for _, call in calls]
    cuts = runs(made, lambda call: not _gradients([call]))
    return [(calls[cut.start][0], joined(made[cut])) for cut in cuts]


def _whole_gradients(parts: Iterable[Part]) -> Iterator[Part]:
    """Put the blocks of each gradient together: where there is one batch alone, nothing is added between them."""
    for is_summed, group in groupby(parts, key=lambda part: part.is_summed):
        blocks: list[Call] = []
        for part in group:
            blocks += part.calls
            if not is_summed:
                yield part
            elif part.finishes:
                yield _whole(blocks, part.finishes)
                blocks = []
        if is_summed and blocks:
            yield _whole(blocks, ())


def _whole(blocks: list[Call], finishes: tuple[int, ...]) -> Part:
    calls = [joined(blocks[cut]) for cut in runs(blocks, lambda call: True)]
    return Part(calls, is_backward=True, is_summed=True, finishes=finishes)


def _is_gradient(memory: Any) -> bool:
    return isinstance(memory, Memory) and memory.kind is MemoryKind.GRADIENT


def _parts(calls: list[tuple[int, Call]], capture: TapedCapture) -> Iterator[Part]:
    """Cut the program into parts, in an order that leaves every result as it is."""
    summed = _summed(calls)
    inside = {id(call) for group in summed for _, call in group}
    units = [(place, [call]) for place, call in calls if id(call) not in inside]
    units += [(group[-1][0], [call for _, call in group]) for group in summed]
    units.sort(key=lambda unit: unit[0])
    last = {number: place for place, made in units for number in _gradients(made)}
    part = Part([], is_backward=False)
    for place, made in units:
        numbers = _gradients(made)
        is_backward = place >= capture.forward
        is_whole = part.is_summed or len(part.calls) >= STRETCH
        if part.calls and (numbers or is_whole or part.is_backward is not is_backward):
            yield part
            part = Part([], is_backward)
        finishes = tuple(number for number in numbers if last[number] == place)
        part = Part(part.calls + made, is_backward, bool(numbers), finishes)
    if part.calls:
        yield part


def _gradients(calls: Iterable[Call]) -> list[int]:
    return sorted({each.number for call in calls for each in _written(call) if _is_gradient(each)})


def _summed(calls: list[tuple[int, Call]]) -> list[list[tuple[int, Call]]]:
    """Return the calls that make gradients, in groups that share no memory but what all may read.

    A group holds the calls that write into one gradient, or a block of it, and those that prepare something for them
    alone, as the windows of a convolution are. So it can be made for one batch after the other, on the same memory.
    """
    touching: dict[int, list[tuple[int, Call]]] = {}
    for place, call in calls:
        for each in {id(each): each for each in _touched(call)}:
            touching.setdefault(each, []).append((place, call))
    groups = []
    for number in dict.fromkeys(n for _, call in calls for n in _gradients([call])):
        own = {place: call for place, call in calls if number in _gradients([call])}
        if any(len(_gradients([call])) > 1 for call in own.values()):
            raise UntapeableError("a call writes into several gradients")
        private = _add_preparations(own, touching, calls)
        if not _is_ordered(own, calls):
            raise UntapeableError("what a gradient is computed from changes meanwhile")
        groups += _components(own, private)
    return groups


def _add_preparations(
    own: dict[int, Call], touching: Mapping[int, list[tuple[int, Call]]], calls: list[tuple[int, Call]]
) -> set[int]:
    """Add to the calls of a group those whose results nobody else reads; return the memories of these results."""
    private: set[int] = set()
    is_growing = True
    while is_growing:
        is_growing = False
        for key in {id(each) for call in own.values() for each in _touched(call) if _is_temporary(each)} - private:
            others = [(place, call) for place, call in touching[key] if place not in own]
            is_made_for_it = all([id(each) for each in _written(call)] == [key] for _, call in others)
            # Memory that is filled again meanwhile, as a convolution's windows are, needs all that fill and read it.
            if is_made_for_it and (_is_ordered({**own, **dict(others)}, calls) or not _is_ordered(own, calls)):
                private.add(key)
                own.update(others)
                is_growing = True
    return private


def _is_temporary(memory: Any) -> bool:
    return isinstance(memory, Saved) or memory.kind is MemoryKind.TEMPORARY


def _components(own: Mapping[int, Call], private: set[int]) -> list[list[tuple[int, Call]]]:
    """Cut a group where its calls have nothing in common: neither memory of their own nor a part of the gradient."""
    components: list[tuple[set[int], list[tuple[int, int]], list[tuple[int, Call]]]] = []
    for place, call in sorted(own.items()):
        keys = {id(each) for each in _touched(call)} & private
        bounds = [view.bounds for view in call.views() if view.memory.kind is MemoryKind.GRADIENT]
        members = [(place, call)]
        apart = []
        for component in components:
            if component[0] & keys or any(_overlap(one, other) for one in component[1] for other in bounds):
                keys, bounds, members = keys | component[0], bounds + component[1], component[2] + members
            else:
                apart.append(component)
        components = [*apart, (keys, bounds, members)]
    return [sorted(members, key=lambda member: member[0]) for _, _, members in components]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _is_ordered(own: Mapping[int, Call], calls: list[tuple[int, Call]]) -> bool:
    """Tell whether a group may be made where its last call is: nothing that it reads is overwritten before."""
    first, last, read = min(own), max(own), set[int]()
    for place, call in calls:
        if place in own:
            read.update(id(each) for each in _touched(call))
        elif first < place < last and any(id(each) in read for each in _written(call)):
            return False
    return True


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a memory lies in the arena."""

    offset: int
    #: Whether each batch has its own; else one serves them all, one after the other.
    is_stacked: bool


@dataclass
class _Layout:
    """Where everything that is computed lies: what is not needed any more makes room for what comes later."""

    places: dict[int, _Place] = field(default_factory=dict)
    #: For each part that sums gradients, where those lie that are to be added.
    addends: dict[int, list[int]] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def of(
        cls, parts: list[Part], memories: list[Memory], outputs: Sequence[View], count: int, tree: Tree
    ) -> "_Layout":
        layout = cls()
        kept = {id(view.memory) for view in outputs}
        stacked = _Packing()
        local: list[list[Memory]] = [[] for _ in parts]
        touched = [{id(view.memory) for view in _views(part.calls)} for part in parts]
        for memory in memories:
            if memory.kind is not MemoryKind.TEMPORARY:
                continue
            uses = [index for index, each in enumerate(touched) if id(memory) in each]
            if len(uses) == 1 and (parts[uses[0]].is_summed or count == 1) and id(memory) not in kept:
                local[uses[0]].append(memory)
            else:
                last = len(parts) if id(memory) in kept else uses[-1]
                stacked.add(id(memory), count * memory.size, uses[0], last)
        layout.places = {key: _Place(offset, is_stacked=True) for key, offset in stacked.pack().items()}
        start = layout.size = stacked.size
        for index, part in enumerate(parts):
            layout.size = max(layout.size, start + layout._place_local(index, part, local[index], start, tree))
        return layout

    def _place_local(self, index: int, part: Part, memories: list[Memory], start: int, tree: Tree) -> int:
        """Place what a part alone uses, and what it adds up; return how much that takes."""
        packing = _Packing()
        for memory in memories:
            uses = [at for at, call in enumerate(part.calls) if any(view.memory is memory for view in call.views())]
            packing.add(id(memory), memory.size, uses[0], uses[-1])
        if part.is_summed:
            low, high = gradient_bounds(part)
            for number in range(max(1, _depth(tree))):  # one batch may be added to what is there
                packing.add(-1 - number, high - low, 0, len(part.calls))
        offsets = packing.pack()
        self.addends[index] = [start + offsets[-1 - number] for number in range(len(offsets) - len(memories))]
        self.places |= {key: _Place(start + at, is_stacked=False) for key, at in offsets.items() if key >= 0}
        return packing.size


def gradient_bounds(part: Part) -> tuple[int, int]:
    """Return the range of bytes of the gradient that a part computes."""
    bounds = [view.bounds for view in _views(part.calls) if view.memory.kind is MemoryKind.GRADIENT]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


@dataclass
class _Packing:
    """Places ranges of bytes such that no two overlap that are in use at once: each as low as it fits, by birth."""

    size: int = 0
    _wanted: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, key: int, size: int, first: int, last: int) -> None:
        """Want `size` bytes in use from `first` to `last`, both included."""
        self._wanted.append((first, last, -(-size // _ALIGNMENT) * _ALIGNMENT, key))

    def pack(self) -> dict[int, int]:
        """Return where each begins."""
        placed: list[tuple[int, int, int]] = []  # (offset, end, last)
        offsets: dict[int, int] = {}
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


@dataclass
class _Emitter:
    """Turns the calls of a program into instructions on arrays."""

    program: Program
    shared: Sequence[Array]
    gradients: Sequence[Array]
    #: Whether sums are added to what is in the gradients.
    adds: bool = False

    def stretch(self, part: Part) -> Stretch:
        """Return a part as it is carried out."""
        if part.is_summed:
            tree = self.program.tree
            made = self._added(part, tree, None, 0) if self.adds else self._summed(part, tree, None, 0)
            return Stretch(list(made), part.finishes)
        return Stretch([made for call in part.calls for made in self._stacked(call)])

    def _stacked(self, call: Call) -> list[Instruction]:
        views = list(call.views())
        is_vector = call.kind is CallKind.PRODUCT and any(len(view.shape) < 2 for view in views)
        count = self.program._count
        if call.kind is CallKind.ALONE or is_vector or count == 1:
            return [self._single(call, batch) for batch in range(count)]
        if call.kind is CallKind.REDUCTION:
            return [self._reduction(call)]
        dimensions = max(each.ndim for each in map(self._shape_of, call.operands) if each is not None)
        operands = [self._stack(each, dimensions) if isinstance(each, View) else each for each in call.operands]
        return [_instruction(call, operands)]

    def _reduction(self, call: Call) -> Instruction:
        array, axis, dtype, target, *options = call.operands
        axes = range(len(array.shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        behind = tuple(each + 1 if each >= 0 else each for each in axes)
        stacked = [self._stack(each, len(each.shape)) for each in (array, target)]
        return partial(call.function, stacked[0], behind, dtype, stacked[1], *options)

    @staticmethod
    def _shape_of(operand: Any) -> Any:
        return np.broadcast_to(0, operand.shape) if isinstance(operand, View | np.ndarray) else None

    def _stack(self, view: View, dimensions: int) -> Array:
        program = self.program
        if view.memory.kind is MemoryKind.TEMPORARY:
            return program._stack(view, program._arena, dimensions)
        if view.memory.kind is MemoryKind.INPUT:
            missing = dimensions - len(view.shape)
            shape, strides = (1,) * missing + view.shape, (0,) * missing + view.strides
            memory, step = program._inputs[view.memory.number], view.memory.size
            return _array(memory, (program._count, *shape), view.dtype, (step, *strides), view.offset)
        return self._view(view, 0, None)

    def _single(self, call: Call, batch: int, addend: tuple[int, int] | None = None) -> Instruction:
        return _instruction(call, [self._operand(each, batch, addend) for each in call.operands])

    def _operand(self, operand: Any, batch: int, addend: tuple[int, int] | None) -> Any:
        if isinstance(operand, Saved):
            return self.program._saved.setdefault((id(operand), batch), Saved(None))
        if isinstance(operand, Source):
            return self.program._sources[operand][batch]
        if isinstance(operand, Sink):
            return self.program._sinks[operand][batch]
        return self._view(operand, batch, addend) if isinstance(operand, View) else operand

    def _view(self, view: View, batch: int, addend: tuple[int, int] | None) -> Array:
        """Return what a batch has for a view; its gradient is the addend that begins there, or the sum itself."""
        program, memory = self.program, view.memory
        start, source = batch * memory.size, program._arena
        if memory.kind is MemoryKind.TEMPORARY:
            place = program._layout.places[id(memory)]
            start = place.offset + (start if place.is_stacked else 0)
        elif memory.kind is MemoryKind.INPUT:
            source = program._inputs[memory.number]
        elif memory.kind is MemoryKind.GRADIENT and addend is not None:
            start = addend[0] - addend[1]
        else:
            start, arrays = 0, self.shared if memory.kind is MemoryKind.SHARED else self.gradients
            source = arrays[memory.number]
        return _array(source, view.shape, view.dtype, view.strides, start + view.offset)

    def _summed(self, part: Part, tree: Tree, into: int | None, depth: int) -> Iterator[Instruction]:
        """Write the sum over a tree into the gradient, or into the addend that begins at `into`."""
        if isinstance(tree, int):
            addend = None if into is None else (into, gradient_bounds(part)[0])
            yield from (self._single(call, tree, addend) for call in part.calls)
            return
        yield from self._summed(part, tree[0], into, depth)
        yield from self._added(part, tree[1], into, depth)

    def _added(self, part: Part, tree: Tree, into: int | None, depth: int) -> Iterator[Instruction]:
        """Add the sum over a tree to the gradient, or to the addend that begins at `into`."""
        low, high = gradient_bounds(part)
        other = self.program._layout.addends[self.program._parts.index(part)][depth]
        yield from self._summed(part, tree, other, depth + 1)
        first = next(view for view in _views(part.calls) if view.memory.kind is MemoryKind.GRADIENT)
        whole = View(first.memory, low, ((high - low) // first.dtype.itemsize,), (first.dtype.itemsize,), first.dtype)
        left = self._view(whole, 0, None if into is None else (into, low))
        yield partial(np.add, left, self._view(whole, 0, (other, low)), out=left)


def _instruction(call: Call, operands: list[Any]) -> Instruction:
    """Return the call, in the form that NumPy begins with soonest."""
    if isinstance(call.function, np.ufunc):
        return partial(call.function, *_as_arrays(call.function, operands[:-1]), out=operands[-1])
    if call.function is np.take:
        return partial(operands[0].take, *operands[1:])
    if call.function is np.copyto and not isinstance(operands[1], np.ndarray):
        return partial(np.copyto, operands[0], np.array(operands[1], operands[0].dtype))
    return partial(call.function, *operands)


def _as_arrays(function: np.ufunc, operands: list[Any]) -> list[Any]:
    """Return operands with numbers as arrays of the type that NumPy would turn them into, each time anew."""
    kinds = [each.dtype if isinstance(each, np.ndarray) else type(each) for each in operands]
    if not {int, float} & set(kinds):
        return operands
    types = function.resolve_dtypes((*kinds, None))
    return [
        np.array(each, dtype) if type(each) in (int, float) else each
        for each, dtype in zip(operands, types, strict=False)
    ]


def proven(
    captured: Capture,
    taped: TapedCapture,
    tensors: Sequence[Tensor],
    tree: Tree,
    batches: Sequence[Sequence[Array]],
    reseed: Callable[[int], None] = lambda batch: None,
) -> Program | None:
    """Return the program for a tree of batches if it gives the bits of the capture, None if it does not.

    What a tape recorded may miss something: so the program is carried out on memory where nothing is right that it does
    not compute, and all that it computes for `batches` is compared. The tensors' gradients change. `reseed` gets a
    batch's number before it is computed, to replace what is drawn from.
    """
    program = Program(taped, tree)
    if not program.fits_in_cache:
        return None
    sums = [np.full(tensor.shape, np.nan, tensor.dtype) for tensor in tensors]
    weights = [tensor.data for tensor in tensors]
    program.poison()
    program.reseed(reseed)
    for index, array in enumerate(program.inputs):
        for place, batch in enumerate(batches):
            array[place] = batch[index]
    run([*program.forward(weights), *program.backward(weights, sums)], lambda finishes: None)
    outputs: list[list[Array]] = []
    expected = _sums_one_by_one(captured, tensors, tree, batches, outputs, reseed)
    is_equal = all(
        made[place].tobytes() == array.tobytes()
        for place, arrays in enumerate(outputs)
        for made, array in zip(program.outputs, arrays, strict=True)
    )
    is_equal &= all(
        (right is not None) is is_reached and (right is None or made.tobytes() == right.tobytes())
        for made, right, is_reached in zip(sums, expected, taped.is_reached, strict=True)
    )
    return program if is_equal else None


def _sums_one_by_one(
    captured: Capture,
    tensors: Sequence[Tensor],
    tree: Tree,
    batches: Sequence[Sequence[Array]],
    outputs: list[list[Array]],
    reseed: Callable[[int], None],
) -> list[Array | None]:
    """Return the sums of the gradients of the tensors, None where there is none; append each batch's outputs."""
    if not isinstance(tree, int):
        left, right = (_sums_one_by_one(captured, tensors, each, batches, outputs, reseed) for each in tree)
        return [None if one is None or other is None else one + other for one, other in zip(left, right, strict=True)]
    for tensor in tensors:
        tensor.grad = None
    reseed(tree)
    outputs.append([np.array(each) for each in captured.forward(*batches[tree])])
    captured.backward()
    return [None if tensor.grad is None else np.array(tensor.grad) for tensor in tensors]
