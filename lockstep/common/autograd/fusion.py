"""Makes fewer calls of those on a tape, with the same bits: what a call costs beyond its arithmetic is saved.

NumPy takes up to a microsecond for a call before it computes anything; a step of a small model consists of that.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lockstep.common.autograd.tape import Call, View


def without_ones(calls: Sequence[Call]) -> list[bool]:
    """Tell for each call whether it is needed: not if it multiplies by ones, as by the gradient of the loss itself."""
    written = Counter(each for call in calls for each in call.written())
    ones = {
        call.operands[0].memory
        for call in calls
        if call.function is np.copyto
        and type(call.operands[1]) in (int, float)
        and call.operands[1] == 1
        and call.operands[0].nbytes == call.operands[0].memory.size
        and written[call.operands[0].memory] == 1
    }
    return [not any(view.memory in ones for view in _factors(call)) for call in calls]


def _factors(call: Call) -> Iterator[View]:
    """Yield what an array is multiplied by in place."""
    if call.function is np.multiply:
        left, right, result = call.operands
        if left == result and isinstance(right, View):
            yield right


def runs(calls: Sequence[Call], may_join: Callable[[Call], bool]) -> Iterator[slice]:
    """Cut calls into runs that `joined` can make one call of: products of matrices that lie at even distances."""
    start, step = 0, None
    for place in range(1, len(calls) + 1):
        distances = None
        if place < len(calls) and may_join(calls[place - 1]) and may_join(calls[place]):
            distances = _distances(calls[place - 1], calls[place])
        if distances is None or (step is not None and distances != step):
            yield slice(start, place)
            start, step = place, None
        else:
            step = distances


def joined(run: Sequence[Call]) -> Call:
    """Return one call for a run: a product of stacks, each matrix in its own shape and so with its own bits."""
    first = run[0]
    if len(run) == 1:
        return first
    distances = _distances(first, run[1])
    assert distances is not None
    operands = (_stack(view, len(run), distance) for view, distance in zip(first.operands, distances, strict=True))
    return Call(first.function, tuple(operands), first.writes, first.kind, first.holds)


def _distances(one: Call, other: Call) -> tuple[int, ...] | None:
    """Return how far the operands of two products lie apart; None if one call cannot make both."""
    if one.function is not np.matmul or other.function is not np.matmul:
        return None
    distances = []
    for here, there in zip(one.operands, other.operands, strict=True):
        if not (isinstance(here, View) and isinstance(there, View) and len(here.shape) == 2 and _is_alike(here, there)):
            return None
        distances.append(there.offset - here.offset)
    left, right, result = (view.memory for view in one.operands)
    return tuple(distances) if distances[2] > 0 and result not in (left, right) else None


def _is_alike(one: View, other: View) -> bool:
    return (one.memory, one.shape, one.strides, one.dtype) == (other.memory, other.shape, other.strides, other.dtype)


def _stack(view: View, count: int, distance: int) -> View:
    if distance == 0:
        return view
    return View(view.memory, view.offset, (count, *view.shape), (distance, *view.strides), view.dtype)
