"""Orders what a tape recorded: which calls are needed, which are made together, and which make a gradient.

Every result stays as it is. What makes a gradient is put together, so that it can be made for one batch after the other
and added up while it is in cache.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.common.autograd.capture import Capture
from lockstep.common.autograd.tape import Call, MemoryKind, Resource, Saved, UntapeableError, View

#: Calls that are made without a break.
MOST_CALLS = 8

#: Calls in their order, each with its place on the tape.
TapeIndices = Mapping[Call, int]


@dataclass(slots=True, eq=False)
class Part:
    """Calls that are made together."""

    calls: list[Call]
    is_backward: bool
    #: The gradient that they make, if they do: for one batch after the other, added over the tree.
    finishes: tuple[int, ...] = ()

    @property
    def is_summed(self) -> bool:
        """Whether they make a gradient."""
        return bool(self.finishes)

    def views(self) -> Iterator[View]:
        """Yield all that is read or written."""
        return (view for call in self.calls for view in call.views())

    def gradient(self) -> View:
        """Return the gradient that the part makes, as a vector."""
        memory = next(view.memory for view in self.views() if _is_gradient(view.memory))
        array = memory.array
        return View(memory, 0, (array.size,), (array.itemsize,), array.dtype)


def parts_of(capture: Capture) -> list[Part]:
    """Return the parts of the forward and of the backward pass. Raises `UntapeableError` if gradients cannot be summed
    one batch after the other.
    """
    places = _needed(capture)
    groups = _groups(places)
    grouped = {call for group in groups for call in group}
    units = sorted([*([call] for call in places if call not in grouped), *groups], key=lambda unit: places[unit[-1]])
    parts: list[Part] = []
    for unit in units:
        made = tuple(_gradients(unit))
        is_backward = places[unit[-1]] >= capture.forward
        if not parts or made or _is_full(parts[-1]) or parts[-1].is_backward is not is_backward:
            parts.append(Part([], is_backward, made))
        parts[-1].calls += unit
    return parts


def _is_full(part: Part) -> bool:
    return part.is_summed or len(part.calls) >= MOST_CALLS


def _needed(capture: Capture) -> TapeIndices:
    """Return the calls on which an output or a gradient depends."""
    wanted: set[Resource] = {view.memory for view in capture.outputs}
    found: dict[Call, int] = {}
    calls = capture.tape.calls
    for place, (call, has_effect) in reversed(list(enumerate(zip(calls, without_ones(calls), strict=True)))):
        if has_effect and any(each in wanted or _is_gradient(each) for each in call.written()):
            wanted.update(call.touched())
            found[call] = place
    return dict(reversed(found.items()))


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


def _is_gradient(resource: Resource) -> bool:
    return not isinstance(resource, Saved) and resource.kind is MemoryKind.GRADIENT


def _is_temporary(resource: Resource) -> bool:
    return isinstance(resource, Saved) or resource.kind is MemoryKind.TEMPORARY


def _gradients(calls: Iterable[Call]) -> list[int]:
    """Return the numbers of the gradients into which calls write."""
    written = (each for call in calls for each in call.written())
    return sorted({each.number for each in written if not isinstance(each, Saved) and _is_gradient(each)})


def _groups(places: TapeIndices) -> list[list[Call]]:
    """Return the calls that make gradients, in groups that share no memory but what all may read.

    A group holds the calls that write into one gradient, and those that prepare something for them alone. So it can be
    made for one batch after the other, on the same memory.
    """
    touching: dict[Resource, list[Call]] = {}
    for call in places:
        for each in dict.fromkeys(call.touched()):
            touching.setdefault(each, []).append(call)
    groups = []
    for number in dict.fromkeys(n for call in places for n in _gradients([call])):
        own = {call for call in places if number in _gradients([call])}
        if any(len(_gradients([call])) > 1 for call in own):
            raise UntapeableError("a call writes into several gradients")
        _add_preparations(own, touching, places)
        if not _is_ordered(own, places):
            raise UntapeableError("what a gradient is computed from changes meanwhile")
        groups.append([call for call in places if call in own])
    return groups


def _add_preparations(own: set[Call], touching: Mapping[Resource, list[Call]], places: TapeIndices) -> None:
    """Add to the calls of a group those whose results no other call reads."""
    private: set[Resource] = set()
    is_growing = True
    while is_growing:
        is_growing = False
        for each in dict.fromkeys(each for call in places if call in own for each in call.touched()):
            if each in private or not _is_temporary(each):
                continue
            others = {call for call in touching[each] if call not in own}
            is_made_for_it = all(list(call.written()) == [each] for call in others)
            # Memory that is filled again meanwhile needs all that fill and read it.
            if is_made_for_it and (_is_ordered(own | others, places) or not _is_ordered(own, places)):
                private.add(each)
                own.update(others)
                is_growing = True


def _is_ordered(own: set[Call], places: TapeIndices) -> bool:
    """Tell whether a group may be made where its last call is: nothing that it reads is overwritten before."""
    inside = [places[call] for call in own]
    first, last, read = min(inside), max(inside), set[Resource]()
    for call, place in places.items():
        if call in own:
            read.update(call.touched())
        elif first < place < last and not read.isdisjoint(call.written()):
            return False
    return True
