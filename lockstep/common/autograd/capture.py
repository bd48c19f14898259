"""Captures a computation once and repeats it on other arrays without building its graph again.

The first call records which primitives were applied to what. Later calls run the same primitives in the same order on
plain arrays and walk the same nodes backward, so the bits are the same. It pays off for small models, where creating
tensors and nodes takes as long as the arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lockstep.common.autograd.graph import (
    GraphNode,
    Leaf,
    OnFinal,
    Parent,
    backward_over,
    latest_first,
    needed,
    observe,
    observing,
    record,
)
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.autograd.tape import MemoryKind, OfBatch, Tape, UntapeableError, View
from lockstep.common.autograd.tensor import Tensor

#: A position among the values of a capture.
Slot = int


@dataclass(slots=True)
class Application:
    """One primitive applied to values: where they are, and where the result goes."""

    primitive: Primitive
    sources: list[Slot]
    options: dict[str, Any]
    result: Slot
    #: Its node in the graph; None if no gradient flows through it.
    node: GraphNode | None = None
    #: For each source, whether the backward pass reads it.
    is_held: tuple[bool, ...] = ()
    #: Whether the backward pass reads the result, or what the primitive saved.
    is_saved: bool = False
    #: Values that nothing reads after this step.
    spent: tuple[Slot, ...] = ()


class Capture:
    """A function of arrays that was recorded while it ran once; `capture` makes it."""

    def __init__(self, values: list[Any], inputs: int, tensors: list[Tensor], steps: list[Application]) -> None:
        #: The inputs, then the tensors' arrays, then constants and results in the order of their use.
        self._values = values
        self._inputs = inputs
        self._tensors = tensors
        self._steps = steps
        self._seed = np.ones(())
        #: The nodes in the order of the backward pass.
        self._nodes: list[GraphNode] = []
        self._outputs: list[Slot] = []
        #: Of each value, an array of its shape and dtype and without memory; None if it is not an array.
        self._shapes: list[Array | None] = []

    def forward(self, *inputs: Array) -> list[Array]:
        """Return the outputs for inputs of the captured shapes and dtypes; `backward` may be called next."""
        values, start = self._values, self._inputs
        values[:start] = inputs
        values[start : start + len(self._tensors)] = [tensor.data for tensor in self._tensors]
        for step in self._steps:
            _apply(step, step.primitive.forward, values)
            for slot in step.spent:
                values[slot] = None
        return [values[slot] for slot in self._outputs]

    def backward(self, on_final: OnFinal | None = None) -> None:
        """Add the gradient of the first output, a single number, to each leaf; `on_final` as in `Tensor.backward`."""
        backward_over(self._nodes, self._seed, retain_graph=False, on_final=on_final)

    def taped(self, inputs: Sequence[Array]) -> "TapedCapture":
        """Compute once with inputs of the captured shapes; return the calls of NumPy by which it was done.

        Neither the tensors nor their gradients change. Raises `UntapeableError` if something cannot be recorded.
        """
        if not all(tensor.data.flags.c_contiguous for tensor in self._tensors):
            raise UntapeableError("a tensor is not in C order")
        tape = Tape()
        leaves = [Leaf(tensor.shape, tensor.dtype) for tensor in self._tensors]
        for leaf in leaves:
            leaf.buffer = tape.know(np.empty(leaf.shape, leaf.dtype), MemoryKind.GRADIENT)
        values = list(self._values)
        given = self._inputs + len(leaves)
        values[: self._inputs] = [tape.know(np.array(each), MemoryKind.INPUT) for each in inputs]
        values[self._inputs : given] = [tape.know(tensor.data, MemoryKind.SHARED) for tensor in self._tensors]
        # With leaves of its own: the graph of the model's is in use.
        steps = [replace(step, node=None, spent=()) for step in self._steps]
        nodes = _graph_of(steps, dict(enumerate(leaves, self._inputs)), self._shapes, self._outputs[0])
        recorder = _TapeRecorder(tape)
        with observe(recorder):
            for step in steps:
                _apply(step, partial(recorder, step.primitive, "forward", step.primitive.forward), values)
            forward = len(tape.calls)
            seed = tape.empty(self._seed)
            tape.copy(seed, 1)
            backward_over(nodes, seed, retain_graph=True)
        outputs = [tape.view_of(values[slot]) for slot in self._outputs]
        if any(each is None or each.memory.kind is not MemoryKind.TEMPORARY for each in outputs):
            raise UntapeableError("an output was not computed, or in a way that is not recorded")
        is_reached = tuple(leaf.grad is not None for leaf in leaves)
        return TapedCapture(tape, forward, tuple(each for each in outputs if each is not None), is_reached)


@dataclass(frozen=True, slots=True)
class TapedCapture:
    """The calls of NumPy that a capture consists of."""

    tape: Tape
    #: How many of the calls are the forward pass.
    forward: int
    outputs: tuple[View, ...]
    #: For each tensor, whether a gradient reaches it.
    is_reached: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class _TapeRecorder:
    """An observer of the engine that records the calls of primitives that say that they can be, others as one call."""

    tape: Tape

    def __call__(
        self, primitive: Primitive, direction: str, function: Callable[..., Any], *arrays: Any, **options: Any
    ) -> Any:
        if primitive.is_taped:
            return function(*arrays, **options)
        out = options.pop("out", None)
        is_forward = direction == "forward"
        if is_forward:
            if isinstance(options.get("rng"), np.random.Generator):
                raise UntapeableError(f"{primitive.name!r} draws from a generator that cannot be replaced")
            own = {name: options.pop(name) for name in list(options) if isinstance(options[name], OfBatch)}
            arrays, function = (*own.values(), *arrays), partial(_with_options, tuple(own), function)
        result = self.tape.call_whole(partial(function, **options), arrays, keeps=primitive.keeps and is_forward)
        if out is None:
            return result
        self.tape.copy(out, result)
        return out


def _with_options(names: tuple[str, ...], function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """Call a function, the first operands of which are options."""
    return function(*operands[len(names) :], **dict(zip(names, operands, strict=False)), **options)


class _Recorder:
    """An observer of the engine that records what is applied to what, by the identity of the arrays."""

    def __init__(self, inputs: Sequence[Array], tensors: Sequence[Tensor]) -> None:
        self.values: list[Any] = [*inputs, *(tensor.data for tensor in tensors)]
        #: `values` keeps every array alive meanwhile, so that no other gets its identity.
        self.slots: dict[int, Slot] = {id(value): slot for slot, value in enumerate(self.values)}
        self.steps: list[Application] = []
        self.is_repeatable = True

    def __call__(
        self, primitive: Primitive, direction: str, function: Callable[..., Any], *arrays: Any, **options: Any
    ) -> Any:
        sources = [self._slot_of(array) for array in arrays]
        result, saved = function(*arrays, **options), None
        if primitive.keeps:
            result, saved = result
        result = np.asarray(result)  # as the engine does: it continues with the very array recorded here
        self.values.append(result)
        self.slots[id(result)] = len(self.values) - 1
        self.steps.append(Application(primitive, sources, options, len(self.values) - 1))
        return (result, saved) if primitive.keeps else result

    def _slot_of(self, operand: Any) -> Slot:
        slot = self.slots.get(id(operand)) if isinstance(operand, np.ndarray) else None
        if slot is None:
            # An array from elsewhere was computed outside the engine: it would be a different one next time.
            self.is_repeatable &= not isinstance(operand, np.ndarray)
            self.values.append(operand)
            slot = len(self.values) - 1
        return slot


def capture(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Array], tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Capture | None]:
    """Return `function(*inputs)` and its capture, or None if repeating it might compute something else.

    `function` must apply the same primitives with the same options each time, to its inputs, to `tensors`, to numbers
    and to what results from them. The caller promises this for the options; operands from elsewhere are detected here.
    The first result must be a single number, whose gradient is wanted.
    """
    if observing.get() is not None:
        return function(*inputs), None
    recorder = _Recorder(inputs, tensors)
    with observe(recorder):
        results = function(*inputs)
    outputs = [recorder.slots.get(id(result.data)) for result in results]
    if not recorder.is_repeatable or None in outputs or results[0].data.size != 1:
        return results, None
    captured = Capture(recorder.values, len(inputs), list(tensors), recorder.steps)
    captured._outputs = [slot for slot in outputs if slot is not None]
    _rebuild_graph(captured, tensors)
    return results, captured if captured._nodes else None


def _apply(step: Application, forward: Callable[..., Any], values: list[Any]) -> None:
    """Compute a step, and let its node keep what the backward pass reads."""
    arrays = [values[slot] for slot in step.sources]
    result = saved = forward(*arrays, **step.options)
    if step.primitive.keeps:
        result, saved = result
    values[step.result] = result if type(result) is np.ndarray else np.asanyarray(result)
    if step.node is not None:
        step.node.arrays = [each if held else None for each, held in zip(arrays, step.is_held, strict=True)]
        step.node.saved = saved if step.is_saved else None


def _rebuild_graph(captured: Capture, tensors: Sequence[Tensor]) -> None:
    """Make the nodes that the engine made in the recorded run, and find after which step a value is no longer read."""
    values, start = captured._values, captured._inputs
    leaves = {start + index: tensor.leaf for index, tensor in enumerate(tensors)}
    captured._shapes = [
        np.broadcast_to(np.zeros((), each.dtype), each.shape) if isinstance(each, np.ndarray) else None
        for each in values
    ]
    captured._nodes = _graph_of(captured._steps, leaves, values, captured._outputs[0])
    if not captured._nodes:
        return
    root = values[captured._outputs[0]]
    captured._seed = np.ones(root.shape, root.dtype)
    captured._seed.flags.writeable = False
    variable = {step.result for step in captured._steps} | set(range(start + len(tensors)))
    read_later = set(captured._outputs)
    for step in reversed(captured._steps):
        step.spent = tuple(variable.intersection((*step.sources, step.result)) - read_later)
        read_later.update(step.spent)
    for slot in variable:
        values[slot] = None


def _graph_of(
    steps: Sequence[Application], leaves: Mapping[Slot, Parent], values: Sequence[Any], root: Slot
) -> list[GraphNode]:
    """Make the node of each step through which a gradient flows; return those under a slot, as backward takes them."""
    parents = dict(leaves)
    for step in steps:
        own = [parents.get(slot) for slot in step.sources]
        if own.count(None) != len(own):
            step.node = parents[step.result] = record(step.primitive, own, step.options, values[step.result])
    node = parents.get(root)
    nodes = latest_first(node) if isinstance(node, GraphNode) else []
    reached = set(nodes)
    for step in steps:
        _mark_reads(step, reached)
    return nodes


def _mark_reads(step: Application, reached: set[GraphNode]) -> None:
    """Find out what the backward pass reads of a step."""
    if step.node not in reached:
        step.node = None
        return
    read = set(needed(step.primitive, step.node.parents))
    step.is_held = tuple(index in read for index in range(len(step.sources)))
    step.is_saved = step.primitive.keeps or RESULT in read
