"""The same computation again, on other numbers, without making its graph anew: for steps of a few microseconds.

The first time is watched: which primitives were applied to what. From then on the same primitives run in the same
order on plain arrays, and the same nodes are walked backward, so that the bits are those of the first way. It
is worth it for small nets: there the making of tensors and nodes takes as long as the arithmetic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.autograd.graph import (
    GraphNode,
    Leaf,
    Parent,
    backward_over,
    latest_first,
    needed,
    observe,
    observing,
    record,
)
from common.autograd.primitives.primitive import RESULT, Array, Primitive
from common.autograd.tensor import Tensor

#: Positions among the values of a replay.
Slot = int


@dataclass(slots=True)
class Application:
    """One primitive applied to values: where they are found, and where the result goes."""

    primitive: Primitive
    sources: list[Slot]
    options: dict[str, Any]
    result: Slot
    #: Its place in the graph; None where no gradient comes this way.
    node: GraphNode | None = None
    #: For each source, whether the walk back reads it.
    is_held: tuple[bool, ...] = ()
    #: Whether it reads the result, or what the primitive saved.
    is_saved: bool = False
    #: Values that nothing reads after this.
    spent: tuple[Slot, ...] = ()


class Capture:
    """A function of arrays whose first application was watched; `capture_of` makes it."""

    def __init__(self, values: list[Any], inputs: int, tensors: list[Tensor], steps: list[Application]) -> None:
        #: The inputs, then the tensors' arrays, then constants and results as they came.
        self._values = values
        self._inputs = inputs
        self._tensors = tensors
        self._steps = steps
        self._seed = np.ones(())
        #: The nodes in the order of the walk back.
        self._nodes: list[GraphNode] = []
        self._outputs: list[Slot] = []

    def forward(self, *inputs: Array) -> list[Array]:
        """Return the outputs for inputs of the shapes and dtypes of the first ones; a call of `backward` may follow."""
        values, start = self._values, self._inputs
        values[:start] = inputs
        values[start : start + len(self._tensors)] = [tensor.data for tensor in self._tensors]
        for step in self._steps:
            primitive, arrays = step.primitive, [values[slot] for slot in step.sources]
            result = saved = primitive.forward(*arrays, **step.options)
            if primitive.keeps:
                result, saved = result
            values[step.result] = result if type(result) is np.ndarray else np.asarray(result)
            if step.node is not None:
                step.node.arrays = [each if held else None for each, held in zip(arrays, step.is_held, strict=True)]
                step.node.saved = saved if step.is_saved else None
            for slot in step.spent:
                values[slot] = None
        return [values[slot] for slot in self._outputs]

    def backward(self) -> None:
        """Add to the gradient of each leaf that of the first output, which is one number."""
        backward_over(self._nodes, self._seed, retain_graph=False)


class _Watcher:
    """An observer of the engine that notes what it sees applied, by the identity of the arrays."""

    def __init__(self, inputs: Sequence[Array], tensors: Sequence[Tensor]) -> None:
        self.values: list[Any] = [*inputs, *(tensor.data for tensor in tensors)]
        #: Every array is kept alive in `values` meanwhile, so that no other gets its identity.
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
        result = np.asarray(result)  # as the engine will: it goes on with the very array that is noted here
        self.values.append(result)
        self.slots[id(result)] = len(self.values) - 1
        self.steps.append(Application(primitive, sources, options, len(self.values) - 1))
        return (result, saved) if primitive.keeps else result

    def _slot_of(self, operand: Any) -> Slot:
        slot = self.slots.get(id(operand)) if isinstance(operand, np.ndarray) else None
        if slot is None:
            # An array from elsewhere was computed past the engine: it would be another one the next time.
            self.is_repeatable &= not isinstance(operand, np.ndarray)
            self.values.append(operand)
            slot = len(self.values) - 1
        return slot


def capture_of(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Array], tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Capture | None]:
    """Return `function(*inputs)`, and how to do it again; None where that is not known to be the same.

    `function` must apply the same primitives with the same options each time, to its inputs, to `tensors`, to numbers
    and to what came of them: the caller's promise for the options, what else it computes with is found out here. The
    first of its results is one number, whose gradient is wanted.
    """
    if observing.get() is not None:
        return function(*inputs), None
    watcher = _Watcher(inputs, tensors)
    with observe(watcher):
        results = function(*inputs)
    outputs = [watcher.slots.get(id(result.data)) for result in results]
    if not watcher.is_repeatable or None in outputs or results[0].data.size != 1:
        return results, None
    replay = Capture(watcher.values, len(inputs), list(tensors), watcher.steps)
    replay._outputs = [slot for slot in outputs if slot is not None]
    _rebuild_graph(replay, tensors)
    return results, replay if replay._nodes else None


def _rebuild_graph(replay: Capture, tensors: Sequence[Tensor]) -> None:
    """Make the nodes of a replay, as the engine made those of the first time, and find what is spent when."""
    values, start = replay._values, replay._inputs
    parents: dict[Slot, Parent] = {start + index: tensor.leaf for index, tensor in enumerate(tensors)}
    for step in replay._steps:
        own = [parents.get(slot) for slot in step.sources]
        if own.count(None) != len(own):
            step.node = parents[step.result] = record(step.primitive, own, step.options, values[step.result])
    root = parents.get(replay._outputs[0])
    if isinstance(root, Leaf) or root is None:
        return
    replay._nodes, replay._seed = latest_first(root), np.ones(root.shape, root.dtype)
    replay._seed.flags.writeable = False
    reached = set(replay._nodes)
    variable = {step.result for step in replay._steps} | set(range(start + len(tensors)))
    read_later = set(replay._outputs)
    for step in reversed(replay._steps):
        _settle(step, reached)
        step.spent = tuple(variable.intersection((*step.sources, step.result)) - read_later)
        read_later.update(step.spent)
    for slot in variable:
        values[slot] = None


def _settle(step: Application, reached: set[GraphNode]) -> None:
    """Find out what the walk back reads of a step."""
    if step.node not in reached:
        step.node = None
        return
    read = set(needed(step.primitive, step.node.parents))
    step.is_held = tuple(index in read for index in range(len(step.sources)))
    step.is_saved = step.primitive.keeps or RESULT in read
