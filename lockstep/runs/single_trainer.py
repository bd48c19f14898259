"""Makes a run's steps in one process: computes on the very vectors that the shard updates, so that nothing is sent."""

from dataclasses import dataclass, field

from common.aggregation.tree import Node, Vector
from common.job.tally import Tally
from common.runtime.clock import Clock
from ps.setup import RunSetup
from worker.compute import Compute


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleProcessSums:
    """The sums of a step: where they are, what they came to, and the seconds of forward and backward."""

    sums: Vector
    tally: Tally
    compute_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleProcessUpdate:
    """The learning rate of an update, and the seconds that it took."""

    rate: float
    update_s: float


@dataclass
class SingleProcessTrainer:
    """A worker and a shard that share their memory."""

    opening: RunSetup
    clock: Clock
    compute: Compute = field(init=False)

    def __post_init__(self) -> None:
        opening = self.opening
        self.compute = Compute(opening.facts.job, opening.model, opening.data, opening.shard.served)

    def step(self, step: int) -> None:
        """Make a step: forward, loss, backward, sum, update. Raises what the model raises, and `NotFiniteError`."""
        self.update(step, self.sums(step))

    def sums(self, step: int) -> SingleProcessSums:
        """Compute the sums of a step; raises as `step`."""
        began = self.clock.now()
        self.compute.turn(step)
        sums, tally = self.compute.train(step, self._whole)
        return SingleProcessSums(sums=sums, tally=tally, compute_s=self.clock.now() - began)

    def update(self, step: int, done: SingleProcessSums) -> SingleProcessUpdate:
        """Change the weights by the sums of a step."""
        shard, began = self.opening.shard, self.clock.now()
        shard.add(self._whole, done.sums)
        rate = shard.update(step, done.tally.count)
        return SingleProcessUpdate(rate=rate, update_s=self.clock.now() - began)

    @property
    def _whole(self) -> Node:
        return Node(0, self.opening.facts.job.micro_batches)
