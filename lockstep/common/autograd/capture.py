"""Captures a function of tensors: the calls of NumPy by which its value and its gradients are computed.

The function runs once, as it always does, on arrays whose memory a tape knows. An observer of the engine gives them to
the primitives as arrays that record their own use.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.graph import Leaf, backward, observe
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tape import (
    Call,
    Memory,
    MemoryKind,
    OfBatch,
    Resource,
    Tape,
    UntapeableError,
    View,
    plain,
)
from lockstep.common.autograd.tensor import Tensor


class Capture(msgspec.Struct, frozen=True):
    """The calls of NumPy that a function of arrays consists of, and those of its backward pass."""

    #: Those on which an output or a gradient depends, in their order, each with whether it is of the backward pass.
    calls: list[tuple[Call, bool]]
    memories: list[Memory]
    outputs: tuple[View, ...]
    #: For each tensor, whether a gradient reaches it.
    is_reached: tuple[bool, ...]


def capture(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Array],
    tensors: Sequence[Tensor],
    frozen: Sequence[Array] = (),
) -> Capture:
    """Return the calls of NumPy that `function(*inputs)` makes, and those for the gradients of its first result.

    `function` must apply the same primitives with the same options each time, to its inputs, to `tensors`, to the
    `frozen` arrays, which need no gradient, to numbers and to what results from them. The first result must be a single
    number. Neither the tensors nor their gradients change. Raises `UntapeableError` if something cannot be recorded.
    """
    leaves = [_leaf_of(tensor) for tensor in tensors]
    before = [(leaf.grad, leaf.buffer) for leaf in leaves]
    tape = Tape()
    given = [plain(tape.know(np.array(each), MemoryKind.INPUT)) for each in inputs]
    for array in (*(tensor.data for tensor in tensors), *frozen):
        tape.know(array, MemoryKind.SHARED)
    try:
        for leaf in leaves:
            leaf.grad, leaf.buffer = None, tape.know(np.empty(leaf.shape, leaf.dtype), MemoryKind.GRADIENT)
        with observe(partial(_record, tape)):
            results = function(*given)
            forward = len(tape.calls)
            _walk_back(tape, results[0])
        is_reached = tuple(leaf.grad is not None for leaf in leaves)
    finally:
        for leaf, known in zip(leaves, before, strict=True):
            leaf.grad, leaf.buffer = known
    outputs = tuple(_computed(tape, result) for result in results)
    return Capture(_needed(tape.calls, forward, outputs), tape.memories, outputs, is_reached)


def _needed(calls: Sequence[Call], forward: int, outputs: Sequence[View]) -> list[tuple[Call, bool]]:
    """Return the calls of a capture, of which so many are the forward pass."""
    wanted: set[Resource] = {view.memory for view in outputs}
    found = list[tuple[Call, bool]]()
    for place, call in reversed(list(enumerate(calls))):
        written = set(call.written())
        if written & wanted or any(isinstance(each, Memory) and each.kind is MemoryKind.GRADIENT for each in written):
            wanted.update(call.touched())
            found.append((call, place >= forward))
    return found[::-1]


def _leaf_of(tensor: Tensor) -> Leaf:
    if not tensor.data.flags.c_contiguous:
        raise UntapeableError("a tensor is not in C order")
    if tensor.leaf is None:
        raise UntapeableError("a tensor requires no gradient")
    return tensor.leaf


def _walk_back(tape: Tape, loss: Tensor) -> None:
    if loss.grad_fn is None or loss.size != 1:
        raise UntapeableError("the result is not a single number that requires a gradient")
    seed = tape.empty(loss.data)
    tape.copy(seed, 1)
    backward(loss.grad_fn, seed, retain_graph=False)


def _computed(tape: Tape, result: Tensor) -> View:
    view = tape.view_of(result.data)
    if view is None or view.memory.kind is not MemoryKind.TEMPORARY:
        raise UntapeableError("an output was not computed, or in a way that is not recorded")
    return view


def _record(
    tape: Tape, primitive: Primitive, direction: str, function: Callable[..., Any], *arrays: Any, **options: Any
) -> Any:
    """Record the calls of a primitive, and an opaque one as one call.

    The engine continues with an ordinary array, whose memory the tape knows. Gradients stay what they are: the engine
    computes with them too.
    """
    arrays, is_forward = tuple(map(tape.seen, arrays)), direction == "forward"
    if primitive.is_opaque:
        result = _whole(tape, primitive, function, arrays, options, keeps=primitive.keeps and is_forward)
    else:
        result = function(*arrays, **options)
    if not is_forward:
        return result
    return (plain(result[0]), result[1]) if primitive.keeps else plain(result)


def _whole(
    tape: Tape,
    primitive: Primitive,
    function: Callable[..., Any],
    arrays: tuple[Any, ...],
    options: dict[str, Any],
    *,
    keeps: bool,
) -> Any:
    """Call a function whose own calls are not recorded."""
    if isinstance(options.get("rng"), np.random.Generator):
        raise UntapeableError(f"{primitive.name!r} draws from a generator that cannot be replaced")
    out = options.pop("out", None)
    # An option that differs by batch must be an operand: it comes before the arrays.
    own = {name: options.pop(name) for name in list(options) if isinstance(options[name], OfBatch)}
    call = partial(_with_options, tuple(own), partial(function, **options))
    result = tape.call_whole(call, (*own.values(), *arrays), keeps=keeps)
    if out is None:
        return result
    tape.copy(out, result)
    return out


def _with_options(names: tuple[str, ...], function: Callable[..., Any], *operands: Any) -> Any:
    """Call a function, the first operands of which are options."""
    return function(*operands[len(names) :], **dict(zip(names, operands, strict=False)))
