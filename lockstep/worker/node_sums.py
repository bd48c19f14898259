"""The sums over a node of the tree, of micro-batches that are computed one after the other, or several in one pass.

Any model can be computed one micro-batch after the other. An engine may be able to compute several in one pass: what it
gives must equal that, bit by bit. The leaves summed here are gradients; `local_steps` has another kind of leaf.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple, Protocol

import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.quantization import RoundingKey
from lockstep.common.aggregation.tree import Node, Vector, VectorPool
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.job.tally import Tally
from lockstep.common.model.port import WARM_UP, Batch, DrawKey, Engine, OnePass, OnFinal
from lockstep.common.numerics.sums import over_tree
from lockstep.worker.batches import Batches
from lockstep.worker.gradient_sink import GradientSink, NotFiniteError, SendBucket


class StoppedError(Exception):
    """Computing a node was given up, before it was done, after so many micro-batches."""

    def __init__(self, computed: int) -> None:
        super().__init__(f"stopped after {computed} micro-batches")
        self.computed = computed


@dataclass
class Attempt:
    """The progress in the current node, and the question whether the rest of it is wanted."""

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

    def over(self, micro_batches: int, length: int) -> Callable[[], None]:
        """Return the function to call at each of `length` advances of a pass over several micro-batches.

        The micro-batches are counted as if they were computed one by one. The function raises `StoppedError` if the
        rest is not wanted.
        """
        self.count()
        advances, begun = 0, 1

        def advance() -> None:
            nonlocal advances, begun
            advances += 1
            while begun < micro_batches and begun * length <= advances * micro_batches:
                self.count()
                begun += 1

        return advance


class Vectors(NamedTuple):
    """The vectors that an engine reads from and writes to now, and the indices by which it knows them."""

    weights: Vector
    sums: Vector
    reads: int = 0
    writes: int = 0


class MicroBatchSums(Protocol):
    """Computes the sums of one micro-batch, which is a leaf of the tree."""

    def compute(self, step: int, micro_batch: int, at: Vectors, on_final: OnFinal | None) -> Tally:
        """Write the sums of a micro-batch into `at.sums`, and return their tally, whose sum of losses is a float32.

        `on_final` may be called as an engine's. Raises as `NodeSums.train`.
        """


@dataclass
class GradientSums:
    """The sum of the gradients of a micro-batch's losses."""

    engine: Engine
    layout: ParameterLayout
    batches: Batches

    def compute(self, step: int, micro_batch: int, at: Vectors, on_final: OnFinal | None) -> Tally:
        indices = self.batches.sampler.indices(step, micro_batch)
        count = len(indices)
        if count == 0:
            at.sums.fill(0.0)
            return Tally()
        size = self.layout.parameter_size
        if self.layout.statistics:
            # A statistic that this forward does not observe stays what it is: its sum is count times its value.
            np.multiply(at.weights[size:], np.float32(count), out=at.sums[size:])
        images, targets = self.batches.training(indices, step, micro_batch, is_kept=False)
        key = DrawKey(self.batches.job.seed, step, micro_batch)
        loss, outputs, weight = self.engine.forward(images, targets, key)
        if not math.isfinite(loss):
            raise not_finite(self.engine, micro_batch, images, key)
        tally = self.batches.objective.tally(loss, outputs, targets, weight)
        if self.layout.statistics and tally.divisor != count:
            # They are weighted by samples, and all sums are divided by the number of targets, or by their weight.
            at.sums[size:] *= np.float32(tally.divisor / count)
        self.engine.backward(on_final)
        return tally


@dataclass
class Passes:
    """Computes several micro-batches in one pass of the engine."""

    engine: Engine
    batches: Batches
    attempt: Attempt
    has_statistics: bool

    def made_for(self, step: int, node: Node) -> OnePass | None:
        """Return what computes a node of micro-batches at once; None if the engine does not."""
        batches = self.batches
        if not batches.is_stackable:
            return None
        counts = batches.sampler.sizes(step, node.lo, node.hi)
        if len(counts) > 1 or not all(counts):
            return None
        return self.engine.one_pass(len(node), counts.pop(), lambda: self._batches(step, node))

    def _batches(self, step: int, node: Node) -> list[Batch]:
        batches = self.batches
        return [batches.training(batches.sampler.indices(step, each), step, each) for each in range(node.lo, node.hi)]

    def compute(
        self, made: OnePass, step: int, node: Node, out: Vector, on_final: OnFinal | None = None, *, adds: bool = False
    ) -> Tally:
        """Write the sums over a node into `out` in one pass, or add them to the sums that `out` holds."""
        attempt, batches = self.attempt, self.batches
        advance = attempt.over(len(node), made.length)
        batches.fill(step, node, made.images, made.targets)
        if made.draws:
            made.reseed([DrawKey(batches.job.seed, step, each) for each in range(node.lo, node.hi)])
        sums, outputs = made.forward(advance)
        losses = sums.tolist()
        if not all(map(math.isfinite, losses)):
            raise NotFiniteError(node.lo, "the loss itself")
        attempt.losses.extend(losses)
        objective = batches.objective
        weights = [objective.weight(each) for each in made.targets]
        tally = self._tally(losses, outputs, made.targets, weights)
        if self.has_statistics:
            samples = made.images.shape[1]
            divisors = [
                float(each.size - objective.ignored(each)) if weight is None else weight
                for each, weight in zip(made.targets, weights, strict=True)
            ]
            made.observe(out, [divisor / samples for divisor in divisors], adds=adds)
        made.backward(out, advance, on_final, adds=adds)
        return tally

    def _tally(self, losses: list[float], outputs: Array, targets: Array, weights: Sequence[float | None]) -> Tally:
        """Return the tally of micro-batches with these sums of losses, and of weights."""
        objective = self.batches.objective
        known = [weight for weight in weights if weight is not None]
        if objective.metrics.is_whole:
            # Whole numbers add up in any order, sums of losses and of weights do not.
            of_all = (each.reshape(-1, *each.shape[2:]) for each in (outputs, targets))
            metrics = objective.metric_sums(*of_all)
        else:
            of_each = zip(*map(objective.metric_sums, outputs, targets), strict=True)
            metrics = tuple(map(_added, of_each))
        return Tally(
            _added(losses),
            targets.size,
            objective.ignored(targets),
            _added(known) if known else None,
            metrics,
        )


class WantedSums(NamedTuple):
    """The node to compute, the vectors to use, and the function that sends the sums."""

    step: int
    node: Node
    at: Vectors
    send: SendBucket | None


@dataclass
class NodeSums:
    """Computes the sums over nodes of a step's tree: as many micro-batches in one pass as the engine computes at once.

    Other micro-batches, whose leaf is computed alone, are added over the tree. A value that is not finite stays so in
    exact sums, so those of passes are checked at the end. If one is not finite, the micro-batches are computed again
    one by one, to find the first that is not.
    """

    leaf: MicroBatchSums
    layout: ParameterLayout
    sink: GradientSink
    attempt: Attempt
    #: None to compute one micro-batch after the other, which is what any pass has to equal.
    passes: Passes | None = None
    pool: VectorPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = VectorPool(self.layout.size)

    def train(self, step: int, node: Node, at: Vectors, send: SendBucket | None) -> Tally:
        """Write the sums over a node into `at.sums`, added and rounded over the tree, and return their tally.

        The engine has turned to `at` before. `send` gets each frame of the sums once. Raises `NotFiniteError`: for a
        loss before anything is sent, for a gradient before its frame is. Raises `StoppedError` with nothing sent.
        """
        try:
            return self._sum(WantedSums(step, node, at, send), node, at.sums, self.passes)
        except NotFiniteError:
            if self.passes is None:
                raise
            self.attempt.begin()
            return self._sum(WantedSums(step, node, at, None), node, at.sums, None)

    def prove(self, step: int, node: Node) -> None:
        """Let the engine make now what it would make for such a node once that is wanted often."""
        passes = self.passes
        if passes is None or any(self._one_pass(passes, step, node) is not None for _ in range(1 + WARM_UP)):
            return
        if len(node) > 1:
            for half in node.halves():
                self.prove(step, half)

    def _sum(self, wanted: WantedSums, node: Node, out: Vector, passes: Passes | None) -> Tally:
        """Write the sums over a node into `out`; those over the whole are sent. Without passes, all are checked."""
        sink, step, at = self.sink, wanted.step, wanted.at
        is_whole, key = node == wanted.node, RoundingKey(step, node)
        send = wanted.send if is_whole else None
        is_checked = is_whole or passes is None or not sink.is_exact
        if passes is not None and (made := self._one_pass(passes, step, node)) is not None:
            sink.begin(out, key, send)
            # Sums over several are sent at the end: until then they can be given up, while nothing was sent.
            tally = passes.compute(made, step, node, out, sink.on_final if len(node) == 1 else None)
            if is_checked:
                sink.end()
            return tally
        if len(node) == 1:
            return self._compute_alone(step, node, at, out, send)
        first, second = node.halves()
        is_added = passes is not None and len(second) == 1 and sink.is_exact
        if passes is not None and is_added and (made := self._one_pass(passes, step, second)) is not None:
            tally = self._sum(wanted, first, out, passes)
            tally = tally + passes.compute(made, step, second, out, adds=True)
            if is_checked:
                sink.begin(out, key, send)
                sink.end()
            return tally
        with self.pool.lent() as left:
            # The tally is a floating-point sum too, so it is added over the same tree.
            tally = self._sum(wanted, first, left, passes)
            tally = tally + self._sum(wanted, second, at.sums, passes)
            if is_checked:
                sink.merge(left, at.sums, out, key, send)
            else:
                np.add(left, at.sums, out=out)
        return tally

    def _compute_alone(self, step: int, node: Node, at: Vectors, out: Vector, send: SendBucket | None) -> Tally:
        """Write the sums of a micro-batch into `out`; whatever that is, backward writes into `at.sums`."""
        self.attempt.count()
        self.sink.begin(at.sums, RoundingKey(step, node), send)
        tally = self.leaf.compute(step, node.lo, at, self.sink.on_final)
        self.attempt.losses.append(tally.loss_sum)
        self.sink.end()
        if out is not at.sums:
            np.copyto(out, at.sums)
        return tally

    def _one_pass(self, passes: Passes, step: int, node: Node) -> OnePass | None:
        """Return what computes a node at once; None if it has to be computed by its halves."""
        # If sums are rounded, they are rounded at every node, so each node needs a whole vector of them.
        return None if len(node) > 1 and not self.sink.is_exact else passes.made_for(step, node)


def gradient_sums(
    engine: Engine, layout: ParameterLayout, batches: Batches, sink: GradientSink, attempt: Attempt
) -> NodeSums:
    """Return what computes the sums of gradients, in passes if the engine may make some."""
    # Otherwise a step of one micro-batch would ask in vain.
    passes = None if engine.obstacle else Passes(engine, batches, attempt, bool(layout.statistics))
    return NodeSums(GradientSums(engine, layout, batches), layout, sink, attempt, passes)


def _added(values: Sequence[float]) -> float:
    """Return the sum of the micro-batches' values over the tree."""
    added: float = over_tree(len(values), values.__getitem__, add)
    return added


def not_finite(engine: Engine, micro_batch: int, images: Array, key: DrawKey | None) -> NotFiniteError:
    """Return the error of a loss that is not finite, of a micro-batch or, without a key, of an evaluation's chunk."""
    return NotFiniteError(micro_batch, engine.first_nonfinite_layer(images, key) or "the loss itself")
