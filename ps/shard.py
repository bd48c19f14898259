"""A shard holds a slice of the weights: it adds sums over the tree and steps the optimizer. Arithmetic only.

Knows nothing of workers, leases or messages. For now one shard holds the whole vector.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.layout import weights_digest
from common.optim.clipping import add_blocks, block_squares, scale_for
from common.optim.rules import CHUNK, Rule
from common.optim.schedules import Schedule
from common.reduction import Node, Vector, VectorPool, VectorTree

#: Weights with the number of updates that led to them.
Kept = tuple[Vector, int]


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


@dataclass(frozen=True, slots=True)
class Chunk:
    """What goes through an update together, to stay in cache: views that are made once."""

    part: slice
    #: Room for the mean gradient.
    mean: Vector
    state: dict[str, Vector]
    #: This part of both slots of weights.
    slots: tuple[Vector, Vector]


@dataclass
class Shard:
    """The weights, the optimizer's state, and the tree of the step at hand.

    The weights after step t are in slot t % 2: an update reads the one slot and writes the other, so that the weights
    that it began with stay whole, whatever interrupts it and whoever still reads them.
    """

    slots: tuple[Vector, Vector]
    policy: UpdatePolicy
    micro_batches: int
    state: dict[str, Vector] = field(init=False)
    sums: VectorTree = field(init=False)
    #: Number of updates made so far.
    updates: int = 0
    _chunks: list[Chunk] = field(init=False)

    def __post_init__(self) -> None:
        size, trained = self.weights.size, self.policy.parameter_size
        self.state = self.policy.rule.init(trained)
        self.sums = VectorTree(self.micro_batches, VectorPool(size))
        room = np.empty(min(CHUNK, trained), np.float32)
        parts = (slice(start, min(start + CHUNK, trained)) for start in range(0, trained, CHUNK))
        self._chunks = [self._chunk(part, room) for part in parts]

    def _chunk(self, part: slice, room: Vector) -> Chunk:
        first, second = self.slots
        state = {name: slot[part] for name, slot in self.state.items()}
        return Chunk(part, room[: part.stop - part.start], state, (first[part], second[part]))

    @property
    def weights(self) -> Vector:
        """The vector in use."""
        return self.slots[self.updates % 2]

    def add(self, node: Node, sums: Vector) -> None:
        """Take the sums of a node, which must stay unchanged until the update."""
        with np.errstate(all="ignore"):  # what overflows shows in the next loss, which is told with its place
            self.sums.add(node, sums)

    def add_at_once(self, node: Node, sums: Vector) -> None:
        """Take the sums of a node out of memory that may change after this."""
        with np.errstate(all="ignore"):  # as in `add`
            self.sums.add_copy(node, sums)

    def squares(self, count: int) -> NDArray[np.float64]:
        """Return what clipping adds up, of all shards, to the squared norm of the mean gradient."""
        total = self.sums.total()
        with np.errstate(all="ignore"):  # as in `add`
            return np.concatenate([block_squares(_mean(total, chunk, count)) for chunk in self._chunks])

    def update(self, step: int, count: int, scale: float | None = None) -> float:
        """Step the optimizer with the whole sum over `count` samples; return the learning rate used.

        `scale` is the factor of clipping; without it, a shard that holds the whole vector finds it itself. The sum is
        divided once, here (rule R1). Updates of a slice are element by element, so that any slice of the result is the
        result of that slice.
        """
        if scale is None and self.policy.clip_norm is not None:
            scale = scale_for(add_blocks(self.squares(count)), self.policy.clip_norm)
        rate, total = self.policy.schedule.rate(step), self.sums.total()
        with np.errstate(all="ignore"):  # as in `add`
            for chunk in self._chunks:
                gradient = _mean(total, chunk, count)
                if scale is not None:
                    gradient *= np.float32(scale)
                self._follow(chunk, gradient, step, rate)
            if self.policy.momenta.size:
                self._follow_statistics(total, step, count)
        self.updates = step + 1
        self.sums.reset()
        return rate

    def _follow(self, chunk: Chunk, gradient: Vector, step: int, rate: float) -> None:
        old, new = chunk.slots[step % 2], chunk.slots[(step + 1) % 2]
        self.policy.rule.update(old, gradient, chunk.state, step, rate, new)

    def _follow_statistics(self, total: Vector, step: int, count: int) -> None:
        # Running statistics follow the mean over the micro-batches, weighted by their samples (rule R8).
        old, new = (self.slots[at % 2][self.policy.parameter_size :] for at in (step, step + 1))
        mean = total[self.policy.parameter_size :] / np.float32(count)
        np.add(old, self.policy.momenta * (mean - old), out=new)

    def whole(self) -> Kept:
        """Return the weights after the last update that was made to its end."""
        return self.weights, self.updates

    def before_last(self) -> Kept:
        """Return the weights that the last update began with: those now in use give a loss that is not finite."""
        updates = max(0, self.updates - 1)
        return self.slots[updates % 2], updates

    def digest(self) -> str:
        """Return the SHA-256 of the weights in use, in hex."""
        return weights_digest(self.weights)


def _mean(total: Vector, chunk: Chunk, count: int) -> Vector:
    """Return a chunk's part of the mean gradient, in the chunk's room for it."""
    return np.divide(total[chunk.part], np.float32(count), out=chunk.mean)
