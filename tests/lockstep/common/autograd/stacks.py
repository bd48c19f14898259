"""Functions, batches and trees for tests of tapes and programs."""

from collections.abc import Callable, Sequence

import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.autograd.capture import capture
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import Program, proven, run
from lockstep.common.autograd.tensor import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def program_of(function: Function, batches: Sequence[Sequence[Array]], tensors: Sequence[Tensor]) -> Program | None:
    """Return the program of a function for as many batches, if it was proven."""
    captured = capture(function, batches[0], tensors)
    return proven(function, captured, tensors, batches)


def computed(
    program: Program, batches: Sequence[Sequence[Array]], tensors: Sequence[Tensor]
) -> tuple[list[bytes], list[Array]]:
    """Return the outputs of all batches, one after the other, and the sums of gradients."""
    for index, array in enumerate(program.inputs):
        array[...] = np.stack([batch[index] for batch in batches])
    weights, sums = (
        [tensor.data for tensor in tensors],
        [np.full(tensor.shape, np.nan, tensor.dtype) for tensor in tensors],
    )
    run([*program.forward(weights), *program.backward(weights, sums)], lambda finishes: None)
    return [each[place].tobytes() for place in range(len(batches)) for each in program.outputs], sums


def one_by_one(
    function: Function, batches: Sequence[Sequence[Array]], tensors: Sequence[Tensor]
) -> tuple[list[bytes], list[Array]]:
    """Return the same by the engine, one batch after the other: what every program has to equal."""
    outputs = []
    gradients = []
    for batch in batches:
        for tensor in tensors:
            tensor.zero_grad()
        results = function(*batch)
        results[0].backward()
        outputs += [result.data.tobytes() for result in results]
        gradients.append([np.zeros_like(t.data) if t.grad is None else t.grad.copy() for t in tensors])

    def added(node: Node) -> list[Array]:
        if len(node) == 1:
            return gradients[node.lo]
        return [one + other for one, other in zip(*map(added, node.halves()), strict=True)]

    return outputs, added(Node(0, len(batches)))
