"""A shard holds a slice of the weights: it adds sums over the tree and steps the optimizer. Arithmetic only.

Knows nothing of workers, leases or messages. For now one shard holds the whole vector.
"""

from dataclasses import dataclass, field

import numpy as np

from common.layout import weights_digest
from common.optim.clipping import scale_for, squared_norm
from common.optim.rules import Rule
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


@dataclass
class Shard:
    """The weights, the optimizer's state, and the tree of the step at hand."""

    #: The flat vector in use; changed by `update` only.
    weights: Vector
    policy: UpdatePolicy
    micro_batches: int
    #: The weights one update ago: what is kept when those in use turn out not to give a finite loss.
    previous: Vector = field(init=False)
    #: Whether `weights` are half old and half new, as after an interrupt in the middle of an update.
    is_torn: bool = False
    state: dict[str, Vector] = field(init=False)
    sums: VectorTree = field(init=False)
    #: Number of updates made so far.
    updates: int = 0
    #: Room for the mean gradient.
    _mean: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.previous = self.weights.copy()
        self.state = self.policy.rule.init(self.policy.parameter_size)
        self.sums = VectorTree(self.micro_batches, VectorPool(self.weights.size))
        self._mean = np.empty_like(self.weights)

    def add(self, node: Node, sums: Vector) -> None:
        """Take the sums of a node, which must stay unchanged until the update."""
        with np.errstate(all="ignore"):  # what overflows shows in the next loss, which is told with its place
            self.sums.add(node, sums)

    def update(self, step: int, count: int) -> float:
        """Step the optimizer with the whole sum over `count` samples; return the learning rate used.

        The sum is divided once, here (rule R1). Updates of a slice are element by element, so that any slice of the
        result is the result of that slice.
        """
        np.copyto(self.previous, self.weights)
        self.is_torn = True
        with np.errstate(all="ignore"):  # as in `add`
            rate = self._follow(np.divide(self.sums.total(), np.float32(count), out=self._mean), step)
        self.is_torn = False
        self.updates += 1
        self.sums.reset()
        return rate

    def _follow(self, mean: Vector, step: int) -> float:
        policy, size = self.policy, self.policy.parameter_size
        gradient = mean[:size]
        if policy.clip_norm is not None:
            gradient *= np.float32(scale_for(squared_norm(gradient), policy.clip_norm))
        rate = policy.schedule.rate(step)
        policy.rule.update(self.weights[:size], gradient, self.state, step, rate)
        if policy.momenta.size:
            # Running statistics follow the mean over the micro-batches, weighted by their samples (rule R8).
            statistics = self.weights[size:]
            statistics += policy.momenta * (mean[size:] - statistics)
        return rate

    def whole(self) -> Kept:
        """Return the weights after the last update that was made to its end."""
        return (self.previous if self.is_torn else self.weights), self.updates

    def before_last(self) -> Kept:
        """Return the weights that the last update began with: those now in use give a loss that is not finite."""
        return self.previous, max(0, self.updates - 1)

    def digest(self) -> str:
        """Return the SHA-256 of the weights in use, in hex."""
        return weights_digest(self.weights)
