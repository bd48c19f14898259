"""Repeats what a tape recorded, for one batch or for a stack of several of one shape in one pass.

Each batch gets the bits that it would get alone. A stack has an axis in front of those of a single batch's arrays, and
within it each array has the strides that it would have alone. So an element-wise operation is called once for the whole
stack; a product of matrices is one call that multiplies matrix by matrix, each in its own shape; anything else is
called batch by batch. That pays while a stack stays in cache: `fits_in_cache` tells.

The gradients of the batches are summed over the tree as soon as they are computed. A product, as the gradient of large
weights is, is never there for each batch: a leaf adds products in registers. All memory is allocated beforehand, and
used again by later calls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.capture import Capture
from lockstep.common.autograd.primitives.primitive import Array, Sink
from lockstep.common.autograd.tape import Call, Memory, MemoryKind, Saved, View
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.kernels.calls import LINE_BYTES, aligned
from lockstep.common.numerics.leaves import CallKind, LeafFunction, joined, matrix_product, product_sum
from lockstep.common.numerics.random import Source
from lockstep.common.numerics.sums import over_tree


class Base(msgspec.Struct, frozen=True):
    """The place of a memory of the tape."""

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


def placed(uses: Mapping[Memory, tuple[int, int]], count: int) -> tuple[Array, dict[Memory, int]]:
    """Return new memory, and the offset of each one, for `count` batches: as low as it fits next to those in use.

    A memory is in use from its first call to its last, both included.
    """
    in_use: list[tuple[int, int, int]] = []  # (offset, end, last)
    offsets: dict[Memory, int] = {}
    whole = 0
    for memory, (first, last) in sorted(uses.items(), key=lambda use: (use[1][0], -use[0].size)):
        size, offset = -(-count * memory.size // LINE_BYTES) * LINE_BYTES, 0
        in_use = sorted(each for each in in_use if each[2] >= first)
        for begin, end, _ in in_use:
            if begin - offset >= size:
                break
            offset = max(offset, end)
        in_use.append((offset, offset + size, last))
        offsets[memory] = offset
        whole = max(whole, offset + size)
    return aligned(whole), offsets


#: Bytes of the largest array of a stack up to which it stays in a second-level cache of 1 MiB, as far as that matters.
#: LeNet in four micro-batches of 16 takes 5.2 ms one by one and 5.8 as a stack, whose windows have 5 MB; mlp, with 0.2
#: MB at 16 and 0.8 MB at 64, takes 3.6 and 2.8 ms, and 8.8 and 7.9 (the 30th of 100 times, in turns).
STACK_BYTES = 1 << 20

#: Calls that are made without a break.
MOST_CALLS = 8

#: A call with its arguments.
Instruction = Callable[[], Any]

#: Operands of which each batch has its own.
Own = Source | Sink | Saved


#: Instructions that are carried out without a break, and the gradients that are final after them.
CallList = tuple[list[Instruction], tuple[int, ...]]


def run(segments: Iterable[CallList], between: Callable[[Sequence[int]], None]) -> None:
    """Carry out segments; call `between` after each with the gradients that are final."""
    for instructions, finishes in segments:
        for instruction in instructions:
            instruction()
        between(finishes)


@dataclass(slots=True, eq=False)
class Part:
    """Calls that are made without a break."""

    is_backward: bool
    calls: list[Call] = field(default_factory=list)
    #: The gradients that are whole after them.
    finishes: tuple[Memory, ...] = ()


class Program:
    """Forward and backward over a stack of batches; weights and gradients may be anywhere."""

    def __init__(self, capture: Capture, count: int) -> None:
        """Make a program for so many batches."""
        self._count = count
        calls = capture.calls
        uses = _uses([call for call, _ in calls])
        self._parts = list(_parts(calls, {memory: last for memory, (_, last) in uses.items() if _is_gradient(memory)}))
        self._products = _sole_products(call for call, _ in calls)
        kept = {view.memory for view in capture.outputs}
        own = {
            memory: (first, len(calls) if memory in kept else last)
            for memory, (first, last) in uses.items()
            if memory.kind is MemoryKind.TEMPORARY or (_is_gradient(memory) and memory not in self._products)
        }
        self._memory, offsets = placed(own, count)
        self._bases = {memory: Base(self._memory, offset, memory.size) for memory, offset in offsets.items()}
        self._memories, self._is_reached = capture.memories, capture.is_reached
        given = [memory for memory in self._memories if memory.kind is MemoryKind.INPUT]
        self._inputs = {memory: Base(aligned(count * memory.size), step=memory.size) for memory in given}
        operands = [each for call, _ in calls for each in call.operands]
        self._own = {each: [_fresh(each) for _ in range(count)] for each in operands if isinstance(each, Own)}
        #: One array for each input, to be filled before each pass: the batches along the first axis.
        self.inputs = [base.stack(_whole_of(memory), count, memory.array.ndim) for memory, base in self._inputs.items()]
        #: The number of segments, and whether random numbers are drawn on the way.
        self.length, self.draws = len(self._parts), any(isinstance(each, Source) for each in self._own)
        #: One array for each output, with the batches along the first axis; valid until the next pass.
        self.outputs = [self._bases[view.memory].stack(view, count, len(view.shape)) for view in capture.outputs]

    @property
    def fits_in_cache(self) -> bool:
        """True if a stack is faster than its batches one by one: one alone always is."""
        largest = max(memory.size for memory in (*self._inputs, *self._bases))
        return self._count == 1 or self._count * largest <= STACK_BYTES

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self._memory.size + sum(base.array.size for base in self._inputs.values())

    def reseed(self, reseed: Callable[[int], None]) -> None:
        """Call `reseed` with the number of each batch, and draw for it from what the sources then have.

        To be called before each forward pass.
        """
        for batch in range(self._count):
            reseed(batch)
            for source, own in self._own.items():
                if isinstance(source, Source):
                    own[batch].rng = source.rng

    def observe(self, batch: int) -> None:
        """Give the sinks on the tape the statistics of a batch in the last forward pass."""
        for sink, own in self._own.items():
            if isinstance(sink, Sink):
                sink.observe(*own[batch].last)

    def forward(self, shared: Sequence[Array]) -> list[CallList]:
        """Return the forward pass that reads `shared`, in the order of the tape."""
        emitter = self._emitter(shared, ())
        return [(joined(list(emitter.stacked(part.calls))), ()) for part in self._parts if not part.is_backward]

    def backward(self, shared: Sequence[Array], gradients: Sequence[Array], *, adds: bool = False) -> list[CallList]:
        """Return the backward pass that reads `shared` and writes sums into `gradients`, in the order of the tape.

        Gradients that nothing reaches are zeros. If it adds, which a program for one batch can, its gradients are
        added to the values of the arrays.
        """
        assert not adds or self._count == 1
        emitter = self._emitter(shared, () if adds or self._count > 1 else gradients)
        made = [self._segment(part, emitter, gradients, adds=adds) for part in self._parts if part.is_backward]
        unreached = (each for each, is_reached in zip(gradients, self._is_reached, strict=True) if not is_reached)
        made[0][0].extend(partial(each.fill, 0) for each in unreached if not adds)
        return made

    def _emitter(self, shared: Sequence[Array], gradients: Sequence[Array]) -> "_Emitter":
        given = {MemoryKind.SHARED: shared, MemoryKind.GRADIENT: gradients}
        elsewhere = {
            memory: Base(given[memory.kind][memory.number])
            for memory in self._memories
            if memory.number < len(given.get(memory.kind, ()))
        }
        return _Emitter(self._count, {**self._bases, **self._inputs, **elsewhere}, self._own)

    def _segment(self, part: Part, emitter: "_Emitter", gradients: Sequence[Array], *, adds: bool) -> CallList:
        products = {call: gradients[memory.number] for memory, call in self._products.items()}
        instructions = list(emitter.stacked([call for call in part.calls if call not in products]))
        instructions += [emitter.product_sum(call, products[call], adds) for call in part.calls if call in products]
        for memory in part.finishes:
            if memory not in self._products and (adds or self._count > 1):
                instructions += self._summed(memory, gradients[memory.number], adds=adds)
        return joined(instructions), tuple(memory.number for memory in part.finishes)

    def _summed(self, memory: Memory, out: Array, *, adds: bool) -> list[Instruction]:
        """Write the sum over the tree of the batches' gradients, or add that of the only one to the values there."""
        whole, base = _whole_of(memory), self._bases[memory]
        target = Base(out).view(whole)
        if adds:
            return [partial(np.add, target, base.view(whole), out=target)]
        additions: list[tuple[Array, Array]] = []

        def add(left: Array, right: Array) -> Array:
            """Leave a sum where the first of its batches has its gradient."""
            additions.append((left, right))
            return left

        over_tree(self._count, partial(base.view, whole), add)
        *others, last = additions
        return [*(partial(np.add, *each, out=each[0]) for each in others), partial(np.add, *last, out=target)]


def _is_gradient(memory: Memory) -> bool:
    return memory.kind is MemoryKind.GRADIENT


def _sole_products(calls: Iterable[Call]) -> dict[Memory, Call]:
    """Return the products that are gradients: a leaf adds them over the tree while they are in registers."""
    touching: dict[Memory, list[Call]] = {}
    for call in calls:
        for memory in dict.fromkeys(view.memory for view in call.views() if _is_gradient(view.memory)):
            touching.setdefault(memory, []).append(call)
    return {
        memory: found[0]
        for memory, found in touching.items()
        if len(found) == 1 and found[0].function is matrix_product and len(found[0].operands) == 3
    }


def _uses(calls: Sequence[Call]) -> dict[Memory, tuple[int, int]]:
    """Return the first and the last call that touches each memory."""
    uses: dict[Memory, tuple[int, int]] = {}
    for place, call in enumerate(calls):
        for view in call.views():
            uses[view.memory] = uses.get(view.memory, (place, place))[0], place
    return uses


def _parts(calls: Sequence[tuple[Call, bool]], ends: Mapping[Memory, int]) -> Iterator[Part]:
    """Cut calls into parts, by the last call of each gradient."""
    finished: dict[int, list[Memory]] = {}
    for memory, last in ends.items():
        finished.setdefault(last, []).append(memory)
    part = Part(is_backward=False)
    for place, (call, is_backward) in enumerate(calls):
        if part.calls and (part.finishes or len(part.calls) == MOST_CALLS or part.is_backward is not is_backward):
            yield part
            part = Part(is_backward)
        part.calls.append(call)
        part.finishes = tuple(finished.get(place, ()))
    yield part


def _whole_of(memory: Memory) -> View:
    array = memory.array
    return View(memory, 0, array.shape, array.strides, array.dtype)


def _fresh(operand: Own) -> Any:
    """Return what a batch has of its own in place of an operand."""
    if isinstance(operand, Source):
        return Source(operand.rng)
    return Sink() if isinstance(operand, Sink) else Saved(None)


class _Emitter(msgspec.Struct, frozen=True):
    """Turns calls into instructions on arrays."""

    count: int
    bases: Mapping[Memory, Base]
    #: In place of each operand of which the batches have their own, that of each batch.
    own: Mapping[Own, list[Any]]

    def stacked(self, calls: Iterable[Call]) -> Iterator[Instruction]:
        """Yield calls for all batches."""
        for call in calls:
            if call.kind is CallKind.ALONE or self.count == 1 or self._has_own_vector(call):
                yield from (self.single(call, batch) for batch in range(self.count))
            elif call.kind is CallKind.REDUCTION:
                yield self._reduction(call)
            else:
                dimensions = max(len(each.shape) for each in call.operands if isinstance(each, View | np.ndarray))
                yield _instruction(
                    call,
                    [
                        self._operand(each, 0) if _is_vector_of(call, each) else self._stack(each, dimensions)
                        for each in call.operands
                    ],
                )

    def _has_own_vector(self, call: Call) -> bool:
        """Tell whether a product has a vector of which each batch has its own: a bias is the same for all."""
        return any(_is_vector_of(call, each) and self.bases[each.memory].step for each in call.operands)

    def single(self, call: Call, batch: int) -> Instruction:
        """Return a call for one batch."""
        return _instruction(call, [self._operand(each, batch) for each in call.operands])

    def product_sum(self, call: Call, out: Array, adds: bool) -> Instruction:
        """Return the sum of the products of all batches, over the tree, in place of a gradient."""
        left, right, target = call.operands
        stacks = [self.bases[each.memory].stack(each, self.count, 2) for each in (left, right)]
        return product_sum.bind(*stacks, Base(out).view(target), adds)

    def _reduction(self, call: Call) -> Instruction:
        if isinstance(call.function, LeafFunction):
            *arrays, axes, keepdims = call.operands
            stacks = [self._stack(each, len(each.shape)) for each in arrays]
            return call.function.bind(*stacks, tuple(each + 1 for each in axes), keepdims)
        array, axis, dtype, target, keepdims = call.operands
        axes = range(len(array.shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        behind = tuple(each + 1 if each >= 0 else each for each in axes)
        stacked = [self._stack(each, len(each.shape)) for each in (array, target)]
        return partial(call.function, stacked[0], behind, dtype, stacked[1], keepdims)

    def _stack(self, operand: Any, dimensions: int) -> Any:
        if not isinstance(operand, View):
            return operand
        return self.bases[operand.memory].stack(operand, self.count, dimensions)

    def _operand(self, operand: Any, batch: int) -> Any:
        if isinstance(operand, View):
            return self.bases[operand.memory].view(operand, batch)
        return self.own[operand][batch] if isinstance(operand, Own) else operand


def _is_vector_of(call: Call, operand: Any) -> bool:
    """Tell whether an operand is a vector of a product of matrices."""
    return call.kind is CallKind.PRODUCT and isinstance(operand, View) and len(operand.shape) < 2


def _instruction(call: Call, operands: list[Any]) -> Instruction:
    """Return the call, in the form that it begins with soonest."""
    if isinstance(call.function, LeafFunction):
        return call.function.bind(*operands)
    if isinstance(call.function, np.ufunc):
        return partial(call.function, *_as_arrays(call.function, operands[:-1]), out=operands[-1])
    if call.function is np.copyto and not isinstance(operands[1], np.ndarray):
        return partial(np.copyto, operands[0], np.array(operands[1], operands[0].dtype))
    return partial(call.function, *operands)


def _as_arrays(function: np.ufunc, operands: list[Any]) -> list[Any]:
    """Return operands with numbers as arrays of the type into which NumPy would convert them in each call."""
    kinds = [each.dtype if isinstance(each, np.ndarray) else type(each) for each in operands]
    if not {int, float} & set(kinds):
        return operands
    types = function.resolve_dtypes((*kinds, None))
    return [
        np.array(each, dtype) if type(each) in (int, float) else each
        for each, dtype in zip(operands, types, strict=False)
    ]


def proven(
    function: Callable[..., tuple[Tensor, ...]],
    captured: Capture,
    tensors: Sequence[Tensor],
    batches: Sequence[Sequence[Array]],
    reseed: Callable[[int], None] = lambda batch: None,
    frozen: Sequence[Array] = (),
) -> Program | None:
    """Return the program for as many batches if it gives the bits of `function`, None if it does not.

    A tape may miss a call: so the program runs on memory full of NaN, and all that it computes for `batches` is
    compared. The tensors' gradients change. `reseed` gets the number of each batch before that is computed, so that it
    can replace the generators. `frozen` is that of the capture; a program takes them after the weights.
    """
    program = Program(captured, len(batches))
    if not program.fits_in_cache:
        return None
    sums = [np.full(tensor.shape, np.nan, tensor.dtype) for tensor in tensors]
    weights = [*(tensor.data for tensor in tensors), *frozen]
    program._memory.fill(0xFF)  # NaN
    program.reseed(reseed)
    for index, array in enumerate(program.inputs):
        for place, batch in enumerate(batches):
            array[place] = batch[index]
    run([*program.forward(weights), *program.backward(weights, sums)], lambda finishes: None)
    is_equal = True

    def gradients(batch: int) -> list[Array | None]:
        """Return the gradients, None for tensors without one; compare the outputs on the way."""
        nonlocal is_equal
        for tensor in tensors:
            tensor.zero_grad()
        reseed(batch)
        results = function(*batches[batch])
        is_equal &= all(_is_same(made[batch], one.data) for made, one in zip(program.outputs, results, strict=True))
        results[0].backward(retain_graph=False)
        return [None if tensor.grad is None else np.array(tensor.grad) for tensor in tensors]

    def add(left: list[Array | None], right: list[Array | None]) -> list[Array | None]:
        return [None if a is None or b is None else a + b for a, b in zip(left, right, strict=True)]

    expected = over_tree(len(batches), gradients, add)
    for made, right, is_reached in zip(sums, expected, captured.is_reached, strict=True):
        is_equal &= (right is not None) is is_reached and (right is None or _is_same(made, right))
    return program if is_equal else None


def _is_same(one: Array, other: Array) -> bool:
    return one.tobytes() == other.tobytes()
