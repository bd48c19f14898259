"""Makes a run's steps in one process: computes on the very vectors that the shard updates, so that nothing is sent."""

from dataclasses import dataclass, field

from common.clock import Clock
from common.reduction import Node
from common.tally import Tally
from ps.opening import Opening
from worker.compute import Compute


@dataclass(frozen=True, kw_only=True, slots=True)
class LoneStep:
    """What one step came to."""

    tally: Tally
    rate: float
    #: Seconds in forward and backward, and in the update.
    compute_s: float
    update_s: float


@dataclass
class LoneTrainer:
    """A worker and a shard that share their memory."""

    opening: Opening
    clock: Clock
    compute: Compute = field(init=False)
    #: Whether the optimizer's state may be half old and half new, as after an interrupt in the middle of an update.
    is_updating: bool = False

    def __post_init__(self) -> None:
        opening = self.opening
        self.compute = Compute(opening.facts.job, opening.model, opening.data, opening.shard.slots)

    def step(self, step: int) -> LoneStep:
        """Make a step: forward, loss, backward, sum, update. Raises what the model raises, and `NotFiniteError`."""
        whole, shard = Node(0, self.opening.facts.job.micro_batches), self.opening.shard
        began = self.clock.now()
        self.compute.turn(step)
        sums, tally = self.compute.train(step, whole)
        computed = self.clock.now()
        self.is_updating = True
        shard.add(whole, sums)
        rate = shard.update(step, tally.count)
        self.is_updating = False
        return LoneStep(tally=tally, rate=rate, compute_s=computed - began, update_s=self.clock.now() - computed)
