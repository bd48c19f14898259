"""The work of a lease: (weights, step, micro-batch) to sums. Each process that computes it gets the same bits.

It has no state of the run. An evaluation is leased in the same way: the chunks of a held-out set take the place of the
micro-batches of a step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.quantization import Quantization, quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.job.tally import Tally
from lockstep.common.model.port import Engine, Model
from lockstep.common.protocol.messages import Work
from lockstep.worker.batches import Batches
from lockstep.worker.gradient_sink import GradientSink, SendBucket
from lockstep.worker.local_steps import LocalStepSums, Replica
from lockstep.worker.node_sums import (
    Attempt,
    GradientSums,
    NodeSums,
    SumsByMicroBatch,
    SumsInOnePass,
    Vectors,
    not_finite,
)

#: Two vectors of weights, or none.
Slots = tuple[Vector, Vector] | tuple[()]


@dataclass
class Compute:
    """A model bound to flat vectors, with the data it learns from."""

    job: Job
    model: Model
    data: TrainTest
    #: Two vectors of the layout's size: the weights after step t are in slot t % 2. By default new ones.
    slots: Slots = ()
    #: Vectors for sums, each of the layout's size: by default one new vector.
    sums: tuple[Vector, ...] = ()
    #: Asked before each micro-batch of a node but the first whether the rest is still wanted.
    is_wanted: Callable[[], bool] = lambda: True
    #: Called with the outputs of each chunk of an evaluation; they are valid until the next.
    on_outputs: Callable[[Array], None] = lambda outputs: None
    #: Frames in which sums are sent: by default those of one server.
    frames: Sequence[Slice] = ()
    #: Mean and deviation of the training set if not all of it is here; by default they are computed.
    moments: tuple[float, float] | None = None
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE
    #: The slot that the model computes with, and the vector of sums that it writes into.
    weights: Vector = field(init=False)
    into: Vector = field(init=False)
    #: How sums, and weights, are rounded and travel.
    wire: Quantization = field(init=False)
    wire_weights: Quantization = field(init=False)
    batches: Batches = field(init=False)
    engine: Engine = field(init=False)
    #: Takes the local steps of a micro-batch; None in a job that has only one of them.
    local: LocalStepSums | None = field(init=False)
    _replica: Replica | None = field(init=False)
    _reads: int = 0
    _writes: int = 0
    _attempt: Attempt = field(init=False)
    _nodes: NodeSums = field(init=False)

    def __post_init__(self) -> None:
        job = self.job
        self.wire = quantization_of(job.wire, job.seed, self.layout.parameter_size)
        self.wire_weights = quantization_of(job.wire_weights, job.seed, self.layout.parameter_size)
        self.slots = self.slots or (self._new_vector(), self._new_vector())
        self.sums = self.sums or (self._new_vector(),)
        self.frames = self.frames or Slice(0, self.layout.size).frames()
        self.batches = Batches(job, self.data, self.moments, self.own)
        self.engine = self.model.engine(self.batches.objective)
        self._replica = Replica(self.layout, job) if job.local_steps > 1 else None
        self.move(self.slots)
        self._attempt = Attempt(lambda: self.is_wanted())
        self.local = self._local_steps()
        self._nodes = self._node_sums()

    def _local_steps(self) -> LocalStepSums | None:
        if self._replica is None:
            return None
        places, momenta = (len(self.slots), len(self.sums)), self.model.momenta()
        return LocalStepSums(self.engine, self.batches, self._replica, momenta, *places, self._attempt)

    def _node_sums(self) -> NodeSums:
        sink = GradientSink(self.layout, self.frames, self.wire)
        if self.local is not None:
            # Their micro-batches have weights of their own: there is nothing to compute in one pass over several.
            return SumsByMicroBatch(self.local, self.layout, sink, self._attempt)
        leaf = GradientSums(self.engine, self.layout, self.batches)
        one_by_one = SumsByMicroBatch(leaf, self.layout, sink, self._attempt)
        return SumsInOnePass(one_by_one, self.engine, self.batches)

    @property
    def layout(self) -> ParameterLayout:
        """The places of the model's values in a vector."""
        return self.model.layout

    @property
    def losses(self) -> list[float]:
        """The sum of losses of each micro-batch that `train` was last called for, in order; float32 each."""
        return self._attempt.losses

    def _new_vector(self) -> Vector:
        return self.layout.new_vector()

    def move(self, slots: tuple[Vector, Vector]) -> None:
        """Compute with weights in other memory from the next `turn` on; both are of the layout's size."""
        self.slots, self.weights, self.into = slots, slots[0], self.sums[0]
        self._reads = self._writes = 0
        weights, sums = list(slots), list(self.sums)
        if self._replica is not None:
            weights.extend(self._replica.weights)
            sums.append(self._replica.gradient)
        # Read only, as they are where memory is shared: a model that changes its own weights would get other bits on
        # another worker.
        self.engine.bind([read_only(vector) for vector in weights], sums)

    def turn(self, step: int, *, into: int = 0) -> None:
        """Compute with the weights after `step` steps from now on, and write sums into `sums[into]`."""
        slot, sums = self.slots[step % 2], self.sums[into]
        if slot is not self.weights:
            self.engine.read_from(step % 2)
            self.weights, self._reads = slot, step % 2
        if sums is not self.into:
            self.engine.write_to(into)
            self.into, self._writes = sums, into

    def train(self, step: int, node: Node, send: SendBucket | None = None) -> tuple[Vector, Tally]:
        """Return the sums over the micro-batches of a node, added and rounded over the tree, and their tally.

        The vector is `into`, overwritten by the next call. `send` gets each of its frames once, as soon as that is
        final: with one micro-batch, while backward is still on its way. Raises `NotFiniteError` and `StoppedError` as
        `NodeSums`.
        """
        self._attempt.begin()
        # The next lease is most likely the same part of the next step; it is read while this one is computed.
        self.batches.read_ahead(step + 1, node)
        with np.errstate(
            all="ignore"
        ):  # the loss shows numbers that are not finite, and they are reported with their place
            at = Vectors(self.weights, self.into, self._reads, self._writes)
            return self.into, self._nodes.train(step, node, at, send)

    def evaluate(self, node: Node, work: Work = "evaluate") -> Tally:
        """Return the tally of a node of chunks, added over their tree: of the test set, or to "validate" of that set.

        Raises `NotFiniteError`, and `StoppedError` as `train`.
        """
        self._attempt.begin()
        with np.errstate(all="ignore"):  # as in `train`
            return self._evaluate(node, work)

    def _evaluate(self, node: Node, work: Work) -> Tally:
        if len(node) == 1:
            self._attempt.count()
            return self._evaluate_chunk(node.lo, work)
        first, second = node.halves()
        return self._evaluate(first, work) + self._evaluate(second, work)

    def _evaluate_chunk(self, chunk: int, work: Work) -> Tally:
        images, targets = self.batches.chunk(work, chunk)
        loss, outputs, weight = self.engine.evaluate(images, targets)
        if not math.isfinite(loss):
            raise not_finite(self.engine, chunk, images, None)
        self.on_outputs(outputs)
        return self.batches.objective.tally(loss, outputs, targets, weight)


def read_only(vector: Vector) -> Vector:
    """Return a view of a vector through which it cannot be changed."""
    view = vector.view()
    view.flags.writeable = False
    return view
