"""The arithmetic of an update: from the sums of a step to new weights, in one pass over parts that stay in cache.

Knows no tree, process or schedule. Every operation is element by element, so that a slice of the result is the result
of the slice, in any process. Weights are written where they are not read, and slots of the optimizer as well if there
are two sets of them: then an update changes nothing that it reads, and any process may make any part of it again,
with the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from lockstep.common.aggregation.quantization import EXACT, Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.operands import Mean
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.optim.clipping import block_squares
from lockstep.common.optim.rules import CHUNK, BoundUpdate, Rule, SlotSets, bound

#: Both sets of something: the weights after step t are in set t % 2.
Pair = tuple[Vector, Vector]

#: The one or two vectors, as long as the part that is updated, whose sum is to be divided.
Terms = Sequence[Vector]

#: The optimizer's slots by name, each as long as the trained part of the slice.
Slots = Mapping[str, Vector]


class UpdateRule(msgspec.Struct, frozen=True, kw_only=True):
    """The rule by which the mean of a slice becomes its new weights."""

    #: Of each part of the trained values, with the place up to which it holds, the last one to the end of them; the
    #: slots of all are the same.
    rules: Sequence[tuple[int, Rule]]
    #: Number of trained values, which come first in the whole vector; running statistics follow.
    parameter_size: int
    #: Momentum of each running statistic, shape (size - parameter_size,).
    momenta: Vector
    #: How the weights are rounded that workers compute with.
    wire_weights: Quantization = EXACT

    def init(self, size: int) -> dict[str, Vector]:
        """Return the optimizer's slots, float32 and zero, for so many values."""
        return self.rules[0][1].init(size)


class UpdateVectors(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a slice of the vector, all float32."""

    #: The weights, each as long as the slice.
    weights: Pair
    #: The weights that workers are served: rounded, or `weights` itself.
    served: Pair
    #: Two sets of the optimizer's slots, or one set twice, which is then updated in place.
    slots: tuple[Slots, Slots]
    #: The index in the whole vector at which the slice begins.
    start: int = 0


class UpdateStep(Struct, frozen=True, kw_only=True):
    """The part of the update of one step that is the same for all values."""

    step: int
    #: The divisor of the sums: the number of targets of all samples, or the sum of their weights.
    divisor: float
    #: The learning rate, and the factor of clipping, None if nothing is clipped.
    rate: float
    scale: float | None = None
    #: The sets of slots that are read and written: the same for an update in place.
    reads: int = 0
    writes: int = 0


class UpdateChunk(msgspec.Struct, frozen=True):
    """Values that are updated together, to stay in cache: views that are made once."""

    #: Their place in the part that is updated.
    place: slice
    #: The index in the whole vector at which it begins.
    start: int
    #: Memory for the mean.
    mean: Vector
    #: This part of both vectors of weights.
    weights: Pair
    #: The same of what workers are served, None if that is the weights themselves.
    served: Pair | None
    #: For trained values, both sets of the optimizer's slots; empty for a rule without any.
    slots: tuple[Slots, Slots]
    #: For running statistics, their momenta; None for trained values.
    momenta: Vector | None
    #: For trained values, how they follow the gradient.
    rule: Rule | None
    #: That rule in one pass, if it can: by the weights that are written, and the slots that are read and written.
    bound: dict[tuple[int, int, int], BoundUpdate | None] = msgspec.field(default_factory=dict)


@dataclass
class UpdatePass:
    """Updates any part of one slice; it is always cut into the same parts, whose chunks are kept."""

    rule: UpdateRule
    vectors: UpdateVectors
    #: By part, its chunks.
    _chunks: dict[Slice, list[UpdateChunk]] = field(default_factory=dict)
    _memory: Vector = field(init=False)

    def __post_init__(self) -> None:
        self._memory = np.empty(min(CHUNK, self.vectors.weights[0].size), np.float32)

    def chunks(self, part: Slice) -> list[UpdateChunk]:
        """Return the chunks of a part of the slice, in order: none has values that are updated by two rules."""
        known = self._chunks.get(part)
        if known is None:
            *rules, (_, last) = self.rule.rules
            known = self._chunks[part] = list(self._of(part, [*rules, (self.rule.parameter_size, last)]))
        return known

    def trained_chunks(self, part: Slice) -> Iterator[UpdateChunk]:
        """Yield those of the trained values, whatever their rules: cut where clipping's blocks are."""
        chunks = self._of(part, [(self.rule.parameter_size, self.rule.rules[0][1])])
        return (chunk for chunk in chunks if chunk.momenta is None)

    def _of(self, part: Slice, rules: Sequence[tuple[int, Rule]]) -> Iterator[UpdateChunk]:
        trained, begin = self.rule.parameter_size, 0
        for end, rule in rules:
            low, high = max(part.start, begin), min(part.stop, trained, end)
            if low < high:
                yield from (self._chunk(part, cut, rule) for cut in Slice(low, high).cut_evenly(CHUNK))
            begin = end
        if max(part.start, trained) < part.stop:
            observed = Slice(max(part.start, trained), part.stop)
            yield from (self._chunk(part, cut, None) for cut in observed.cut_evenly(CHUNK))

    def _chunk(self, part: Slice, cut: Slice, rule: Rule | None) -> UpdateChunk:
        vectors, trained = self.vectors, self.rule.parameter_size
        here = slice(cut.start - vectors.start, cut.stop - vectors.start)
        is_trained, is_served = cut.start < trained, vectors.served is not vectors.weights
        first, second = ({name: slot[here] for name, slot in slots.items()} for slots in vectors.slots)
        return UpdateChunk(
            place=slice(cut.start - part.start, cut.stop - part.start),
            start=cut.start,
            mean=self._memory[: len(cut)],
            weights=(vectors.weights[0][here], vectors.weights[1][here]),
            served=(vectors.served[0][here], vectors.served[1][here]) if is_served else None,
            slots=(first, second) if is_trained else ({}, {}),
            momenta=None if is_trained else self.rule.momenta[cut.start - trained : cut.stop - trained],
            rule=rule,
        )

    def mean(self, chunk: UpdateChunk, terms: Terms, divisor: float) -> Vector:
        """Return a chunk's part of the mean, in the chunk's memory for it; `terms` as in `run`."""
        return self._mean(chunk, terms, divisor).compute()

    def _mean(self, chunk: UpdateChunk, terms: Terms, divisor: float, scale: float | None = None) -> Mean:
        return Mean([term[chunk.place] for term in terms], divisor, scale, chunk.mean)

    def squares(self, part: Slice, terms: Terms, divisor: float) -> NDArray[np.float64]:
        """Return the sums of squares of the blocks of a part's mean gradient, as clipping adds them up."""
        with np.errstate(all="ignore"):  # as in `run`
            blocks = [block_squares(self.mean(chunk, terms, divisor)) for chunk in self.trained_chunks(part)]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float64)

    @np.errstate(all="ignore")  # what overflows is found here, or shows in the next loss with its place
    def run(self, at: UpdateStep, part: Slice, terms: Terms) -> int | None:
        """Write the new weights and slots of a part; return the first place that is not finite, None if all are.

        The sum of the `terms`, which stay as they are, is divided (rule R1). The place is that in the whole vector.
        """
        are_finite = True
        for chunk in self.chunks(part):
            scale, change = (None, self._observe) if chunk.rule is None else (at.scale, self._follow)
            are_finite &= change(at, chunk, self._mean(chunk, terms, at.divisor, scale))
            if chunk.served is not None:
                self._serve(at, chunk.served, chunk)
        return None if are_finite else self._find(at, part)

    def _find(self, at: UpdateStep, part: Slice) -> int | None:
        """Return the first place that is not finite: none if only squares are not."""
        for chunk in self.chunks(part):
            place = first_not_finite(chunk.weights[(at.step + 1) % 2])
            if place is not None:
                return chunk.start + place
        return None

    def _follow(self, at: UpdateStep, chunk: UpdateChunk, mean: Mean) -> bool:
        """Let trained values follow the gradient; tell whether the new ones are finite."""
        writes = (at.step + 1) % 2
        old, new = chunk.weights[1 - writes], chunk.weights[writes]
        assert chunk.rule is not None
        key = writes, at.reads, at.writes
        update = chunk.bound.get(key)
        if update is not None:
            return update(mean, at.rate)
        slots = SlotSets(chunk.slots[at.reads], chunk.slots[at.writes])
        if key not in chunk.bound:
            chunk.bound[key] = bound(chunk.rule, old, slots, new)
            return self._follow(at, chunk, mean)
        chunk.rule.update(old, mean.compute(), slots, at.step, at.rate, new)
        return first_not_finite(new) is None

    def _observe(self, at: UpdateStep, chunk: UpdateChunk, mean: Mean) -> bool:
        """Let running statistics follow the mean over the micro-batches, weighted as their losses are (rule R8)."""
        writes = (at.step + 1) % 2
        old, new = chunk.weights[1 - writes], chunk.weights[writes]
        if at.divisor == 0.0 or chunk.momenta is None:
            np.copyto(new, old)
        else:
            change = mean.compute()
            change -= old
            change *= chunk.momenta
            np.add(old, change, out=new)
        return first_not_finite(new) is None

    def _serve(self, at: UpdateStep, places: Pair, chunk: UpdateChunk) -> None:
        """Write the new weights, rounded, to the places where workers are served."""
        writes = (at.step + 1) % 2
        served = places[writes]
        served[:] = chunk.weights[writes]
        self.rule.wire_weights.round(served, RoundingKey(at.step + 1, Node(0, 1), chunk.start))
