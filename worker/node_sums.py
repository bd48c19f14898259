"""The sums over a node of the tree: the port, and the way of any model, which is one micro-batch after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from common.aggregation.layout import ParameterLayout
from common.aggregation.quantization.quantization import RoundingKey
from common.aggregation.tree import Node, Vector, VectorPool
from common.autograd.primitives.primitive import Array
from common.job.tally import Tally
from common.model.port import DrawKey, Engine
from worker.batches import Batches
from worker.gradient_sink import GradientSink, NotFiniteError, SendBucket


class StoppedError(Exception):
    """Computing a node was given up, before it was done, after so many micro-batches."""

    def __init__(self, computed: int) -> None:
        super().__init__(f"stopped after {computed} micro-batches")
        self.computed = computed


@dataclass
class Attempt:
    """How far the node at hand is, and whether the rest of it is wanted."""

    #: Asked before each micro-batch of a node but the first.
    is_wanted: Callable[[], bool]
    #: Micro-batches of the node that were computed.
    computed: int = 0
    #: The sum of losses of each, in order; float32 each.
    losses: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Begin with another node."""
        self.computed = 0
        self.losses.clear()

    def count(self) -> None:
        """Begin with the next micro-batch; raise `StoppedError` if it is not wanted any more."""
        if self.computed and not self.is_wanted():
            raise StoppedError(self.computed)
        self.computed += 1


class Vectors(NamedTuple):
    """What an engine reads from and writes to at the moment."""

    weights: Vector
    sums: Vector


class NodeSums(Protocol):
    """Computes the sums over nodes of a step's tree, whose micro-batches are its leaves."""

    def train(self, step: int, node: Node, at: Vectors, send: SendBucket | None) -> Tally:
        """Write the sums over a node into `at.sums`, added and rounded over the tree, and return their tally.

        The engine has turned to `at` before. `send` gets each frame of the sums once. Raises `NotFiniteError`: for a
        loss before anything is sent, for a gradient before its frame is. Raises `StoppedError` with nothing sent.
        """


@dataclass
class SumsByMicroBatch:
    """One micro-batch after the other, added over the tree: what any other way has to equal, bit by bit."""

    engine: Engine
    layout: ParameterLayout
    batches: Batches
    sink: GradientSink
    attempt: Attempt
    pool: VectorPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = VectorPool(self.layout.size)

    def train(self, step: int, node: Node, at: Vectors, send: SendBucket | None) -> Tally:
        return self._sum(step, node, at, at.sums, send)

    def _sum(self, step: int, node: Node, at: Vectors, out: Vector, send: SendBucket | None = None) -> Tally:
        """Write the sums over a node into `out`; whatever that is, backward writes into `at.sums`."""
        if len(node) == 1:
            self.attempt.count()
            self.sink.begin(at.sums, RoundingKey(step, node), send)
            tally = self._micro_batch(step, node.lo, at)
            self.sink.end()
            if out is not at.sums:
                np.copyto(out, at.sums)
            return tally
        first, second = node.halves()
        with self.pool.lent() as left:
            tally = self._sum(step, first, at, left)
            # The tally is a floating-point sum too, so it is added over the same tree.
            tally = tally + self._sum(step, second, at, at.sums)
            self.sink.merge(left, at.sums, out, RoundingKey(step, node), send)
        return tally

    def _micro_batch(self, step: int, micro_batch: int, at: Vectors) -> Tally:
        """Compute one micro-batch into the vector of sums."""
        indices = self.batches.sampler.indices(step, micro_batch)
        count = len(indices)
        if count == 0:
            self.attempt.losses.append(0.0)
            at.sums.fill(0.0)
            return Tally()
        size = self.layout.parameter_size
        if self.layout.statistics:
            # A statistic that this forward does not observe stays what it is: its sum is count times its value.
            np.multiply(at.weights[size:], np.float32(count), out=at.sums[size:])
        images, targets = self.batches.training(indices, step, micro_batch)
        key = DrawKey(self.batches.job.seed, step, micro_batch)
        loss, outputs = self.engine.forward(images, targets, key)
        if not math.isfinite(loss):
            raise not_finite(self.engine, micro_batch, images, key)
        self.attempt.losses.append(loss)
        if self.layout.statistics and self.batches.data.train.targets != 1:
            # They are weighted by samples, and all sums are divided by the number of targets.
            at.sums[size:] *= np.float32(self.batches.data.train.targets)
        self.engine.backward(self.sink.on_final)
        return self.batches.objective.tally(loss, outputs, targets)


def not_finite(engine: Engine, micro_batch: int, images: Array, key: DrawKey | None) -> NotFiniteError:
    """Return the error of a loss that is not finite, of a micro-batch or, without a key, of an evaluation's chunk."""
    return NotFiniteError(micro_batch, engine.first_nonfinite_layer(images, key) or "the loss itself")
