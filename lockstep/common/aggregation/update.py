"""The arithmetic of an update: from the sums of a step to new weights, in one pass over parts that stay in cache.

Knows no tree, process or schedule. Every operation is element by element, so that a slice of the result is the result
of the slice, whoever makes it. Weights are written where they are not read, and slots of the optimizer as well if there
are two sets of them: then an update changes nothing that it reads, and any part of it may be made again, by anybody,
with the same bits.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.finiteness import first_not_finite
from lockstep.common.aggregation.quantization.quantization import EXACT, Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.optim.clipping import block_squares
from lockstep.common.optim.rules import CHUNK, Rule, SlotSets

#: Parts whose chunks are kept: who updates what changes now and then.
MOST_PARTS = 128

#: Both sets of something: the weights after step t are in set t % 2.
Pair = tuple[Vector, Vector]

#: By frame, the one or two vectors of its length whose sum is to be divided.
Terms = Sequence[Sequence[Vector]] | Mapping[int, Sequence[Vector]]

#: The optimizer's slots by name, each as long as the trained part of the slice.
Slots = Mapping[str, Vector]


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """How the mean of a slice becomes its new weights."""

    rule: Rule
    #: Number of trained values, which come first in the whole vector; running statistics follow.
    parameter_size: int
    #: Momentum of each running statistic, shape (size - parameter_size,).
    momenta: Vector
    #: How the weights are rounded that workers compute with.
    wire_weights: Quantization = EXACT


@dataclass(frozen=True, kw_only=True)
class UpdateVectors:
    """The memory of a slice of the vector, all float32."""

    #: The weights, each as long as the slice.
    weights: Pair
    #: What workers are served: the weights rounded, or `weights` itself.
    served: Pair
    #: Two sets of the optimizer's slots, or one set twice, which is then updated in place.
    slots: tuple[Slots, Slots]
    #: Where the slice begins in the whole vector.
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class UpdateStep:
    """What is the same for all values in the update of one step."""

    step: int
    #: What the sums are divided by: the number of targets of all samples.
    count: int
    #: The learning rate, and the factor of clipping, None if nothing is clipped.
    rate: float
    scale: float | None = None
    #: The sets of slots that are read and written: the same for an update in place.
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class UpdateChunk:
    """What goes through an update together, to stay in cache: views that are made once. It lies within a frame."""

    #: The frame's index, and the part of it.
    frame: int
    part: slice
    #: Where it begins in the whole vector.
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


@dataclass
class UpdatePass:
    """Updates any part of one slice."""

    rule: UpdateRule
    vectors: UpdateVectors
    #: The frames of the slice, in which its sums lie.
    frames: Sequence[Slice]
    #: By part, its chunks.
    _chunks: dict[Slice, list[UpdateChunk]] = field(default_factory=dict)
    _memory: Vector = field(init=False)

    def __post_init__(self) -> None:
        self._memory = np.empty(min(CHUNK, self.frames[-1].stop - self.frames[0].start), np.float32)

    def chunks(self, part: Slice) -> list[UpdateChunk]:
        """Return the chunks of a part of the slice, in order: none has trained values and statistics both."""
        known = self._chunks.get(part)
        if known is None:
            if len(self._chunks) == MOST_PARTS:
                self._chunks.clear()
            known = self._chunks[part] = [chunk for frame in range(len(self.frames)) for chunk in self._of(frame, part)]
        return known

    def _of(self, frame: int, part: Slice) -> Iterator[UpdateChunk]:
        whole, trained = self.frames[frame], self.rule.parameter_size
        start, stop = max(whole.start, part.start), min(whole.stop, part.stop)
        for low, high in ((start, min(stop, trained)), (max(start, trained), stop)):
            if low < high:
                yield from (self._chunk(frame, cut) for cut in Slice(low, high).cut_evenly(CHUNK))

    def _chunk(self, frame: int, part: Slice) -> UpdateChunk:
        vectors, trained, begin = self.vectors, self.rule.parameter_size, self.frames[frame].start
        here = slice(part.start - vectors.start, part.stop - vectors.start)
        is_trained, is_served = part.start < trained, vectors.served is not vectors.weights
        first, second = ({name: slot[here] for name, slot in slots.items()} for slots in vectors.slots)
        return UpdateChunk(
            frame=frame,
            part=slice(part.start - begin, part.stop - begin),
            start=part.start,
            mean=self._memory[: len(part)],
            weights=(vectors.weights[0][here], vectors.weights[1][here]),
            served=(vectors.served[0][here], vectors.served[1][here]) if is_served else None,
            slots=(first, second) if is_trained else ({}, {}),
            momenta=None if is_trained else self.rule.momenta[part.start - trained : part.stop - trained],
        )

    def mean(self, chunk: UpdateChunk, terms: Terms, count: int) -> Vector:
        """Return a chunk's part of the mean, in the chunk's memory for it; `terms` as in `run`."""
        parts = [term[chunk.part] for term in terms[chunk.frame]]
        total = parts[0] if len(parts) == 1 else np.add(parts[0], parts[1], out=chunk.mean)
        if count > 0 and count & (count - 1) == 0:
            # Exact, as dividing by a power of two is, and takes half the time.
            return np.multiply(total, np.float32(1 / count), out=chunk.mean)
        return np.divide(total, np.float32(count), out=chunk.mean)

    def squares(self, part: Slice, terms: Terms, count: int) -> NDArray[np.float64]:
        """Return the sums of squares of the blocks of a part's mean gradient, as clipping adds them up."""
        with np.errstate(all="ignore"):  # as in `run`
            trained = (chunk for chunk in self.chunks(part) if chunk.momenta is None)
            blocks = [block_squares(self.mean(chunk, terms, count)) for chunk in trained]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float64)

    def run(self, at: UpdateStep, part: Slice, terms: Terms) -> int | None:
        """Write the new weights and slots of a part; return the first place that is not finite, None if all are.

        `terms` are, for each frame, the one or two vectors of its length whose sum is to be divided (rule R1). The
        place is that in the whole vector.
        """
        total = 0.0
        with np.errstate(all="ignore"):  # what overflows is found here, or shows in the next loss with its place
            for chunk in self.chunks(part):
                mean = self.mean(chunk, terms, at.count)
                if at.scale is not None and chunk.momenta is None:
                    mean *= np.float32(at.scale)
                new = self._write(at, chunk, mean)
                total += float(np.dot(new, new))
        return None if math.isfinite(total) else self._find(at, part)

    def _find(self, at: UpdateStep, part: Slice) -> int | None:
        """Return the first place that is not finite: none if only squares are not."""
        for chunk in self.chunks(part):
            place = first_not_finite(chunk.weights[(at.step + 1) % 2])
            if place is not None:
                return chunk.start + place
        return None

    def _write(self, at: UpdateStep, chunk: UpdateChunk, mean: Vector) -> Vector:
        """Write a chunk of the new weights, and return it."""
        writes = (at.step + 1) % 2
        old, new = chunk.weights[1 - writes], chunk.weights[writes]
        if chunk.momenta is None:
            slots = SlotSets(chunk.slots[at.reads], chunk.slots[at.writes])
            self.rule.rule.update(old, mean, slots, at.step, at.rate, new)
        else:
            # Running statistics follow the mean over the micro-batches, weighted by their samples (rule R8).
            mean -= old
            mean *= chunk.momenta
            np.add(old, mean, out=new)
        if chunk.served is not None:
            served = chunk.served[writes]
            served[:] = new
            self.rule.wire_weights.round(served, RoundingKey(at.step + 1, Node(0, 1), chunk.start))
        return new
