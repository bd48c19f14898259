"""A shard holds a slice of the weights: it adds sums over the tree and steps the optimizer. Arithmetic only.

Knows nothing of workers, leases or messages. Sums are added frame by frame, each over a tree of its own, as they come.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.quantization import RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Addition, Node, Vector, VectorPool, VectorTree, new_vector
from lockstep.common.aggregation.update import Pair, Slots, UpdatePass, UpdateStep, UpdateVectors
from lockstep.common.job.optimizer import UpdatePolicy
from lockstep.common.optim.clipping import add_blocks, scale_for

#: Weights with the number of updates that led to them.
WeightsAfter = tuple[Vector, int]


@dataclass
class Shard:
    """The weights, the optimizer's state, and the tree of the current step.

    The weights after step t are in slot t % 2. An update reads one slot and writes the other, so the weights that it
    began with stay whole if it is interrupted, or if other processes still read them.
    """

    #: Each as long as the slice.
    slots: Pair
    policy: UpdatePolicy
    micro_batches: int
    #: The place of the slice's first value in the whole vector: a multiple of clipping's BLOCK.
    start: int = 0
    #: Memory for the weights as the policy rounds them for workers, slot by slot; by default new vectors, if it does.
    rounded: Pair | None = None
    frames: list[Slice] = field(init=False)
    #: The weights that workers compute with, slot by slot: rounded, or the slots themselves.
    served: Pair = field(init=False)
    #: The optimizer's slots of the trained values, as they are now.
    state: Slots = field(init=False)
    #: One for each frame.
    trees: list[VectorTree] = field(init=False)
    #: Number of updates made so far.
    updates: int = 0
    #: The place in the whole vector of the first weight that is not finite since the last update, None if all are.
    not_finite: int | None = None
    #: Makes updates of any part.
    updating: UpdatePass = field(init=False)
    #: Both sets of the optimizer's slots, the same one twice as long as all updates are made here: these are in place.
    _sets: tuple[Slots, Slots] = field(init=False)

    def __post_init__(self) -> None:
        self.frames = self.owned.frames()
        self.state = self.policy.init(len(self.owned.until(self.policy.parameter_size)))
        self._sets = self.state, self.state
        self.served = self.slots
        if not self.policy.wire_weights.is_exact:
            self.served = self.rounded or (new_vector(self.weights.size), new_vector(self.weights.size))
        self.refresh_served()
        pools = {len(frame): VectorPool(len(frame)) for frame in self.frames}
        self.trees = [VectorTree(self.micro_batches, pools[len(frame)], self._addition(frame)) for frame in self.frames]
        self._begin_in_memory()

    def _begin_in_memory(self) -> None:
        vectors = UpdateVectors(weights=self.slots, served=self.served, slots=self._sets, start=self.start)
        self.updating = UpdatePass(self.policy, vectors)

    @property
    def owned(self) -> Slice:
        """The slice of the whole vector."""
        return Slice(self.start, self.start + self.slots[0].size)

    @property
    def weights(self) -> Vector:
        """The vector in use."""
        return self.slots[self.updates % 2]

    @property
    def reads(self) -> int:
        """The index of the set of the optimizer's slots that is in use, 0 or 1."""
        return 0 if self.state is self._sets[0] else 1

    @property
    def served_weights(self) -> Vector:
        """The vector that workers compute with at the current step."""
        return self.served[self.updates % 2]

    def refresh_served(self) -> None:
        """Round the weights for workers again, after other code has written the slots."""
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
        """Add the sums of a node over the whole slice, which must stay unchanged until the update."""
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

    def squares(self, divisor: float) -> NDArray[np.float64]:
        """Return what clipping adds up, of all shards, to the squared norm of the mean gradient."""
        return self._squares(self.terms(), divisor)

    def _squares(self, terms: list[list[Vector]], divisor: float) -> NDArray[np.float64]:
        squares = (self.updating.squares(*each, divisor) for each in zip(self.frames, terms, strict=True))
        return np.concatenate(list(squares))

    def is_whole(self) -> bool:
        """Tell whether all sums of the current step have come."""
        return all(tree.tree.is_whole() for tree in self.trees)

    def terms(self) -> list[list[Vector]]:
        """Return, for each frame, the one or two vectors whose sum is the whole, to be read until the update."""
        return [tree.terms() for tree in self.trees]

    def update(self, step: int, divisor: float, scale: float | None = None) -> UpdateStep:
        """Step the optimizer with the whole sum, divided by `divisor`; return a record of the step.

        `scale` is the factor of clipping; without it, a shard that holds the whole vector finds it itself.
        """
        return self._update(step, divisor, scale, self.terms())

    def update_by(self, sums: Vector, step: int, divisor: float) -> UpdateStep:
        """Do the same with the sums over all micro-batches, a vector of the slice's length.

        Of these there is no tree. Nothing else of the step may have been added.
        """
        terms = [[sums[frame.start - self.start : frame.stop - self.start]] for frame in self.frames]
        return self._update(step, divisor, None, terms)

    def _update(self, step: int, divisor: float, scale: float | None, terms: list[list[Vector]]) -> UpdateStep:
        if scale is None and self.policy.clip_norm is not None:
            scale = scale_for(add_blocks(self._squares(terms, divisor)), self.policy.clip_norm)
        reads, rate = self.reads, self.policy.schedule.rate(step)
        at = UpdateStep(step=step, divisor=divisor, rate=rate, scale=scale, reads=reads, writes=reads)
        places = [self.updating.run(at, *each) for each in zip(self.frames, terms, strict=True)]
        self.end_update(at, next((place for place in places if place is not None), None))
        return at

    def end_update(self, at: UpdateStep, not_finite: int | None) -> None:
        """Let the new weights be the ones in use, after all of them were written."""
        self.updates, self.not_finite = at.step + 1, not_finite
        for tree in self.trees:
            tree.reset()

    def skip_to(self, updates: int) -> None:
        """Continue after so many updates, which others have made in this memory since the last one that is known here.

        They have used both sets of slots in turn.
        """
        self.state = self._sets[(self.reads + updates - self.updates) % 2]
        self.updates, self.not_finite = updates, None
        for tree in self.trees:
            tree.reset()

    def move(self, slots: Pair, served: Pair, sets: tuple[Slots, Slots]) -> None:
        """Continue in other memory, with two sets of slots: copy all values, except into vectors in use.

        `served` is `slots` if workers compute with the weights themselves, as it was before.
        """
        assert (served is slots) == (self.served is self.slots)
        # Both of each: if the current weights turn out to be useless, the previous ones are still there.
        for old, new in zip((*self.slots, *self.served), (*slots, *served), strict=True):
            if new is not old:
                new[:] = old
        for name, values in self.state.items():
            sets[0][name][:] = values
        self.slots, self.served, self._sets, self.state = slots, served, sets, sets[0]
        self._begin_in_memory()

    def kept_weights(self, *, is_diverged: bool = False) -> WeightsAfter:
        """Return the weights after the last complete update, or of a run that has diverged, those it began with."""
        updates = max(0, self.updates - is_diverged)
        return self.slots[updates % 2], updates

    def digest(self) -> str:
        """Return the SHA-256 of the weights in use, in hex."""
        return weights_digest(self.weights)
