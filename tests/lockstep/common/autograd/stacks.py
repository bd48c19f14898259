"""Functions, batches and trees for tests of tapes and programs."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.autograd.capture import capture
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import Program, Tree, proven, run
from lockstep.common.autograd.tensor import Tensor

Function = Callable[..., tuple[Tensor, ...]]


@lru_cache
def tree_of(count: int) -> Tree:
    """The tree of sums over so many micro-batches."""
    return _tree(Node(0, count))


def _tree(node: Node) -> Tree:
    return node.lo if len(node) == 1 else (_tree(node.halves()[0]), _tree(node.halves()[1]))


def program_of(function: Function, batches: Sequence[Sequence[Array]], tensors: Sequence[Tensor]) -> Program | None:
    """Return the program of a function for as many batches, if it was proven."""
    captured = capture(function, batches[0], tensors)
    return proven(function, captured, tensors, tree_of(len(batches)), batches)


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

    def added(tree: Tree) -> list[Array]:
        if isinstance(tree, int):
            return gradients[tree]
        return [one + other for one, other in zip(added(tree[0]), added(tree[1]), strict=True)]

    return outputs, added(tree_of(len(batches)))
