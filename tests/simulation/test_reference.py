"""A loop in one process, of the library's plain calls alone, arrives at the same bits; two planted mistakes do not."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler
from lockstep.common.job.job import Job
from lockstep.common.nn.models import MODELS
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.shard.shard import Shard
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import digits, job_of

#: Pieces of different sizes: 40 samples are two batches of 17 and one of 6, cut into five.
JOB = job_of(model="mlp", steps=5, global_batch=17, micro_batches=5, lr=0.1, momentum=0.9, weight_decay=0.001)


#: Makes the value of a node of a step of its sum.
Rounding = Callable[[Vector, int, Node], Vector]


def keep(sums: Vector, step: int, node: Node) -> Vector:
    return sums


def reference(job: Job, rounded: Rounding = keep, served: Callable[[Vector], Vector] = np.copy) -> str:
    """Return the digest of the weights after momentum SGD on micro-batches, added over halves.

    `rounded` makes a node's value of a sum, `served` what is computed with of the weights.
    """
    assert isinstance(job.model, str)
    train, model = digits().train, MODELS[job.model]().initialize(job.seed)
    sampler, preparation = Sampler(len(train), job.global_batch, job.micro_batches, job.seed), Preparation.of(train)
    parameters = list(model.parameters())
    weights = np.concatenate([parameter.data.ravel() for parameter in parameters])
    velocity, ends = np.zeros_like(weights), np.cumsum([parameter.data.size for parameter in parameters])

    def gradients(step: int, lo: int, hi: int) -> Vector:
        if hi - lo > 1:
            middle = lo + max(2**k for k in range(9) if 2**k < hi - lo)
            return rounded(gradients(step, lo, middle) + gradients(step, middle, hi), step, Node(lo, hi))
        rows = sampler.indices(step, lo)
        model.zero_grad()
        logits = model(Tensor(preparation.images(train.images[rows])))
        F.cross_entropy(logits, train.labels[rows], reduction="sum").backward()
        found = [parameter.grad.ravel() for parameter in parameters if parameter.grad is not None]
        return rounded(np.concatenate(found), step, Node(lo, hi))

    for step in range(job.steps or 0):
        for parameter, values in zip(parameters, np.split(served(weights), ends[:-1]), strict=True):
            parameter.data[...] = values.reshape(parameter.shape)
        sums = gradients(step, 0, job.micro_batches)
        g = sums / np.float32(sampler.batch_size(step)) + np.float32(job.weight_decay) * weights
        velocity = np.float32(job.momentum) * velocity + g
        weights = weights - np.float32(job.lr) * velocity
    return weights_digest(weights)


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_a_loop_of_plain_calls_arrives_at_the_same_bits(workers: int) -> None:
    assert digest_of(Shard, seed=7, workers=workers) == reference(JOB)


def test_the_loop_notices_another_learning_rate() -> None:
    other = job_of(model="mlp", steps=5, global_batch=17, micro_batches=5, lr=0.1000001, momentum=0.9)
    assert reference(other) != reference(JOB)


@dataclass
class SumInArrivalOrder(Shard):
    """A planted mistake: gradients are added as they come."""

    running: dict[int, Vector] = field(default_factory=dict)

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        self.running[frame] = self.running[frame] + sums if frame in self.running else sums.copy()

    def terms(self) -> list[list[Vector]]:
        for frame, running in self.running.items():
            super().add_frame(frame, Node(0, self.micro_batches), running)
        self.running = {}
        return super().terms()


@dataclass
class MeanOfMeans(Shard):
    """A planted mistake: each result is divided by its own share of the batch, as if all shares were equal."""

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        low, high = (bound * 17 // self.micro_batches for bound in (node.lo, node.hi))
        super().add_frame(frame, node, sums / np.float32(high - low) * np.float32(len(node) * 17 / self.micro_batches))


@dataclass
class HalvesInTheMiddle(Shard):
    """A planted mistake: the tree splits in the middle and not at a power of two."""

    leaves: dict[tuple[int, int], Vector] = field(default_factory=dict)

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        assert len(node) == 1
        self.leaves[frame, node.lo] = sums.copy()

    def terms(self) -> list[list[Vector]]:
        for frame in range(len(self.frames)):
            super().add_frame(frame, Node(0, self.micro_batches), self._sum(frame, 0, self.micro_batches))
        return super().terms()

    def _sum(self, frame: int, lo: int, hi: int) -> Vector:
        middle = (lo + hi) // 2
        if hi - lo == 1:
            return self.leaves[frame, lo]
        return self._sum(frame, lo, middle) + self._sum(frame, middle, hi)


def digest_of(kind: type[Shard], seed: int, workers: int = 5) -> str:
    """Return the digest of a run with a shard of that kind; with as many workers as pieces, each lease is one piece."""
    simulation = Simulation(
        JOB,
        seed,
        RunOptions(min_workers=workers),
        parts=Parts(shard=lambda it: kind(slots=it.slots, policy=it.policy, micro_batches=it.micro_batches)),
    )
    for _ in range(workers):
        simulation.add_worker()
    return simulation.finish()


def test_sums_in_the_order_of_arrival_differ_from_run_to_run() -> None:
    digests = {digest_of(SumInArrivalOrder, seed) for seed in range(4)}
    assert len(digests) > 1
    assert digests != {reference(JOB)}


@pytest.mark.parametrize("mistake", [MeanOfMeans, HalvesInTheMiddle])
def test_a_mean_of_means_and_another_tree_have_other_bits(mistake: type[Shard]) -> None:
    assert digest_of(mistake, seed=1) != reference(JOB)
