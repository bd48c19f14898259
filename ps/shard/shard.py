"""A shard holds a slice of the weights: it adds sums over the tree and steps the optimizer. Arithmetic only.

Knows nothing of workers, leases or messages. Sums are added frame by frame, each over a tree of its own, as they come.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.aggregation.finiteness import first_not_finite
from common.aggregation.layout import weights_digest
from common.aggregation.quantization.quantization import EXACT, Quantization, RoundingKey
from common.aggregation.slices import Slice
from common.aggregation.tree import Addition, Node, Vector, VectorPool, VectorTree
from common.optim.clipping import add_blocks, block_squares, scale_for
from common.optim.rules import CHUNK, Rule
from common.optim.schedules import Schedule

#: Weights with the number of updates that led to them.
WeightsAfter = tuple[Vector, int]


@dataclass(frozen=True, kw_only=True)
class UpdatePolicy:
    """How sums become new weights."""

    rule: Rule
    schedule: Schedule
    clip_norm: float | None
    #: Number of trained values, which come first in the vector; running statistics follow.
    parameter_size: int
    #: Momentum of each running statistic, shape (size - parameter_size,).
    momenta: Vector
    #: How sums are rounded over the tree, and how the weights are that workers compute with.
    wire: Quantization = EXACT
    wire_weights: Quantization = EXACT


@dataclass(frozen=True, slots=True)
class UpdateChunk:
    """What goes through an update together, to stay in cache: views that are made once. It lies within a frame."""

    #: The frame's index, and the part of it.
    frame: int
    part: slice
    #: Memory for the mean.
    mean: Vector
    #: This part of both slots of weights.
    slots: tuple[Vector, Vector]
    #: The same of what workers are served, None if that is the weights themselves.
    served: tuple[Vector, Vector] | None
    #: For trained values, the optimizer's slots; empty for a rule without any.
    state: dict[str, Vector]
    #: For running statistics, their momenta; None for trained values.
    momenta: Vector | None


@dataclass
class Shard:
    """The weights, the optimizer's state, and the tree of the step at hand.

    The weights after step t are in slot t % 2: an update reads one slot and writes the other, so that the weights that
    it began with stay whole, whatever interrupts it and whoever still reads them.
    """

    #: Each as long as the slice.
    slots: tuple[Vector, Vector]
    policy: UpdatePolicy
    micro_batches: int
    #: Where the slice begins in the whole vector: a multiple of clipping's BLOCK.
    start: int = 0
    #: Memory for the weights as the policy rounds them for workers, slot by slot; by default new vectors, if it does.
    rounded: tuple[Vector, Vector] | None = None
    frames: list[Slice] = field(init=False)
    #: What workers compute with, slot by slot: the weights rounded, or the weights themselves.
    served: tuple[Vector, Vector] = field(init=False)
    #: Of the trained values.
    state: dict[str, Vector] = field(init=False)
    #: One for each frame.
    trees: list[VectorTree] = field(init=False)
    #: Number of updates made so far.
    updates: int = 0
    _chunks: list[UpdateChunk] = field(init=False)

    def __post_init__(self) -> None:
        owned = Slice(self.start, self.start + self.weights.size)
        self.frames = owned.frames()
        self.state = self.policy.rule.init(max(0, min(owned.stop, self.policy.parameter_size) - owned.start))
        self.served = self.slots
        if not self.policy.wire_weights.is_exact:
            self.served = self.rounded or (np.zeros_like(self.weights), np.zeros_like(self.weights))
        self.refresh_served()
        pools = {len(frame): VectorPool(len(frame)) for frame in self.frames}
        self.trees = [VectorTree(self.micro_batches, pools[len(frame)], self._addition(frame)) for frame in self.frames]
        memory = np.empty(min(CHUNK, len(owned)), np.float32)
        self._chunks = [chunk for frame in range(len(self.frames)) for chunk in self._chunks_of(frame, memory)]

    def _chunks_of(self, frame: int, memory: Vector) -> Iterator[UpdateChunk]:
        """Yield the chunks of a frame: none has trained values and statistics both."""
        whole, trained = self.frames[frame], self.policy.parameter_size
        if whole.start < trained:
            for part in Slice(whole.start, min(whole.stop, trained)).cut(CHUNK):
                yield self._chunk(frame, part, memory)
        if trained < whole.stop:
            for part in Slice(max(whole.start, trained), whole.stop).cut(CHUNK):
                yield self._chunk(frame, part, memory)

    def _chunk(self, frame: int, part: Slice, memory: Vector) -> UpdateChunk:
        (first, second), served = self.slots, self.served
        trained, in_slice = self.policy.parameter_size, slice(part.start - self.start, part.stop - self.start)
        is_trained = part.start < trained
        return UpdateChunk(
            frame=frame,
            part=slice(part.start - self.frames[frame].start, part.stop - self.frames[frame].start),
            mean=memory[: len(part)],
            slots=(first[in_slice], second[in_slice]),
            served=None if served is self.slots else (served[0][in_slice], served[1][in_slice]),
            state={name: slot[in_slice] for name, slot in self.state.items()} if is_trained else {},
            momenta=None if is_trained else self.policy.momenta[part.start - trained : part.stop - trained],
        )

    @property
    def weights(self) -> Vector:
        """The vector in use."""
        return self.slots[self.updates % 2]

    @property
    def served_weights(self) -> Vector:
        """The vector that workers compute with at the step at hand."""
        return self.served[self.updates % 2]

    def refresh_served(self) -> None:
        """Round the weights for workers again, after somebody else has written the slots."""
        if self.served is self.slots:
            return
        for slot, served in zip(self.slots, self.served, strict=True):
            served[:] = slot
            self.policy.wire_weights.round(served, RoundingKey(self.updates, Node(0, 1), self.start))

    def _addition(self, frame: Slice) -> Addition | None:
        """Return how two halves of a node result in its value in this frame: None if they are only added."""
        wire = self.policy.wire

        def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
            wire.add(left, right, out, RoundingKey(self.updates, node, frame.start))

        return None if wire.is_exact else add

    def add(self, node: Node, sums: Vector) -> None:
        """Add the sums of a node over the whole slice, which must stay unchanged until the update or `settle`."""
        with np.errstate(all="ignore"):  # as in `add_frame`
            for tree, frame in zip(self.trees, self.frames, strict=True):
                tree.add(node, sums[frame.start - self.start : frame.stop - self.start])

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        """Add one frame of the sums of a node, which must stay unchanged until the update.

        Sums of a node that the tree has are ignored, those of one that it has in parts replace the parts: the bits are
        the same.
        """
        with np.errstate(all="ignore"):  # what overflows shows in the next loss, which is reported with its place
            self.trees[frame].add(node, sums)

    def receive(self, frame: int, node: Node, words: Vector) -> None:
        """Add one frame of the sums of a node as it travelled; as `add_frame`."""
        if self.policy.wire.is_exact:
            self.add_frame(frame, node, words)
            return
        sums = self.trees[frame].pool.take()
        with np.errstate(all="ignore"):  # as in `add_frame`
            self.policy.wire.unpack(words, self.frames[frame].start, sums)
            self.trees[frame].add_own(node, sums)

    def is_finite(self, frame: int, words: Vector) -> bool:
        """Tell whether one frame of sums, as it travelled, holds finite values only."""
        part = self.frames[frame]
        return self.policy.wire.is_finite(words, part.start, len(part))

    def settle(self, memory: Vector) -> None:
        """Copy what is still to be read from some memory, since other sums will be written there after this."""
        for tree in self.trees:
            tree.settle(memory)

    def squares(self, count: int) -> NDArray[np.float64]:
        """Return what clipping adds up, of all shards, to the squared norm of the mean gradient."""
        terms, trained = self._terms(), (chunk for chunk in self._chunks if chunk.momenta is None)
        with np.errstate(all="ignore"):  # as in `add_frame`
            blocks = [block_squares(_mean(terms, chunk, np.float32(count))) for chunk in trained]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float64)

    def is_whole(self) -> bool:
        """Tell whether all sums of the step at hand have come."""
        return all(tree.tree.is_whole() for tree in self.trees)

    def _terms(self) -> list[list[Vector]]:
        return [tree.terms() for tree in self.trees]

    def update(self, step: int, count: int, scale: float | None = None) -> float:
        """Step the optimizer with the whole sum over `count` samples; return the learning rate used.

        `scale` is the factor of clipping; without it, a shard that holds the whole vector finds it itself. The sum is
        divided once, here (rule R1). Updates of a slice are element by element, so that any slice of the result is the
        result of that slice.
        """
        if scale is None and self.policy.clip_norm is not None:
            scale = scale_for(add_blocks(self.squares(count)), self.policy.clip_norm)
        rate, terms, samples = self.policy.schedule.rate(step), self._terms(), np.float32(count)
        with np.errstate(all="ignore"):  # as in `add_frame`
            for chunk in self._chunks:
                mean = _mean(terms, chunk, samples)
                if scale is not None and chunk.momenta is None:
                    mean *= np.float32(scale)
                self._update_chunk(chunk, mean, step, rate)
        self.updates = step + 1
        for tree in self.trees:
            tree.reset()
        return rate

    def _update_chunk(self, chunk: UpdateChunk, mean: Vector, step: int, rate: float) -> None:
        """Write a chunk of the new weights."""
        old, new = chunk.slots[step % 2], chunk.slots[(step + 1) % 2]
        if chunk.momenta is None:
            self.policy.rule.update(old, mean, chunk.state, step, rate, new)
        else:
            # Running statistics follow the mean over the micro-batches, weighted by their samples (rule R8).
            mean -= old
            mean *= chunk.momenta
            np.add(old, mean, out=new)
        if chunk.served is not None:
            served, start = chunk.served[(step + 1) % 2], self.frames[chunk.frame].start + chunk.part.start
            served[:] = new
            self.policy.wire_weights.round(served, RoundingKey(step + 1, Node(0, 1), start))

    def first_not_finite(self) -> int | None:
        """Return the place in the whole vector of the first weight in use that is not finite, None if all are."""
        place = first_not_finite(self.weights)
        return None if place is None else self.start + place

    def current_weights(self) -> WeightsAfter:
        """Return the weights after the last complete update."""
        return self.weights, self.updates

    def previous_weights(self) -> WeightsAfter:
        """Return the weights that the last update began with, for a run whose current ones are not finite."""
        updates = max(0, self.updates - 1)
        return self.slots[updates % 2], updates

    def digest(self) -> str:
        """Return the SHA-256 of the weights in use, in hex."""
        return weights_digest(self.weights)


def _mean(terms: list[list[Vector]], chunk: UpdateChunk, count: np.float32) -> Vector:
    """Return a chunk's part of the mean, in the chunk's memory for it."""
    parts = [term[chunk.part] for term in terms[chunk.frame]]
    total = parts[0] if len(parts) == 1 else np.add(parts[0], parts[1], out=chunk.mean)
    return np.divide(total, count, out=chunk.mean)
