"""Orders what a tape recorded: which calls are needed, which are made together, and which make a gradient.

Every result stays as it is. What makes a gradient, or a block of it, is put together, so that it can be made for one
batch after the other and added up while it is in cache.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from lockstep.common.autograd.capture import Capture
from lockstep.common.autograd.fusion import joined, runs, without_ones
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
    #: Whether they make gradients: for one batch after the other, added over the tree.
    is_summed: bool = False
    #: The gradients whose sums are final with this part.
    finishes: tuple[int, ...] = ()

    def views(self) -> Iterator[View]:
        """Yield all that is read or written."""
        return (view for call in self.calls for view in call.views())

    def gradient(self) -> View:
        """Return the block of a gradient that the part makes, as a vector."""
        views = [view for view in self.views() if _is_gradient(view.memory)]
        low, high = min(view.bounds[0] for view in views), max(view.bounds[1] for view in views)
        dtype = views[0].dtype
        return View(views[0].memory, low, ((high - low) // dtype.itemsize,), (dtype.itemsize,), dtype)


def parts_of(capture: Capture) -> list[Part]:
    """Return the parts of the forward and of the backward pass. Raises `UntapeableError` if gradients cannot be summed
    one batch after the other.
    """
    places = _joined(_needed(capture))
    groups = _groups(places)
    grouped = {call for group in groups for call in group}
    units = sorted([*([call] for call in places if call not in grouped), *groups], key=lambda unit: places[unit[-1]])
    last = {number: unit[-1] for unit in units for number in _gradients(unit)}
    parts: list[Part] = []
    for unit in units:
        numbers = _gradients(unit)
        is_backward = places[unit[-1]] >= capture.forward
        if not parts or numbers or _is_full(parts[-1]) or parts[-1].is_backward is not is_backward:
            parts.append(Part([], is_backward, bool(numbers)))
        parts[-1].calls += unit
        parts[-1].finishes = tuple(number for number in numbers if last[number] is unit[-1])
    return parts


def _is_full(part: Part) -> bool:
    return part.is_summed or len(part.calls) >= MOST_CALLS


def whole_gradients(parts: Iterable[Part]) -> Iterator[Part]:
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


def _joined(places: TapeIndices) -> TapeIndices:
    """Join products into fewer calls, but for those that make gradients, which are summed block by block."""
    calls = list(places)
    cuts = runs(calls, lambda call: not _gradients([call]))
    return {joined(calls[cut]): places[calls[cut.start]] for cut in cuts}


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

    A group holds the calls that write into one gradient, or a block of it, and those that prepare something for them
    alone, as the windows of a convolution are. So it can be made for one batch after the other, on the same memory.
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
        private = _add_preparations(own, touching, places)
        if not _is_ordered(own, places):
            raise UntapeableError("what a gradient is computed from changes meanwhile")
        groups += _components([call for call in places if call in own], private, places)
    return groups


def _add_preparations(own: set[Call], touching: Mapping[Resource, list[Call]], places: TapeIndices) -> set[Resource]:
    """Add to the calls of a group those whose results no other call reads; return what these write."""
    private: set[Resource] = set()
    is_growing = True
    while is_growing:
        is_growing = False
        for each in dict.fromkeys(each for call in places if call in own for each in call.touched()):
            if each in private or not _is_temporary(each):
                continue
            others = {call for call in touching[each] if call not in own}
            is_made_for_it = all(list(call.written()) == [each] for call in others)
            # Memory that is filled again meanwhile, as a convolution's windows are, needs all that fill and read it.
            if is_made_for_it and (_is_ordered(own | others, places) or not _is_ordered(own, places)):
                private.add(each)
                own.update(others)
                is_growing = True
    return private


def _components(own: list[Call], private: set[Resource], places: TapeIndices) -> list[list[Call]]:
    """Cut a group where its calls have nothing in common: neither memory of their own nor a part of the gradient."""
    components: list[tuple[set[Resource], list[tuple[int, int]], list[Call]]] = []
    for call in own:
        shared = private.intersection(call.touched())
        bounds = [view.bounds for view in call.views() if _is_gradient(view.memory)]
        members, apart = [call], []
        for component in components:
            if component[0] & shared or any(_overlap(one, other) for one in component[1] for other in bounds):
                shared, bounds, members = shared | component[0], bounds + component[1], component[2] + members
            else:
                apart.append(component)
        components = [*apart, (shared, bounds, members)]
    return [sorted(members, key=places.__getitem__) for _, _, members in components]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


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
