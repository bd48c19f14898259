"""The work of a lease: (weights, step, micro-batch) to sums. Each process that computes it gets the same bits.

It has no state of the run. An evaluation is leased in the same way: the chunks of a held-out set take the place of the
micro-batches of a step.
"""

import math
from collections.abc import Callable, Sequence
from operator import add

import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.quantization import quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.job.tally import Tally
from lockstep.common.model.port import WARM_UP, Model
from lockstep.common.numerics.sums import over_tree
from lockstep.common.protocol.messages import Work
from lockstep.worker.batches import Batches
from lockstep.worker.gradient_sink import GradientSink, SendBucket
from lockstep.worker.local_steps import LocalStepSums
from lockstep.worker.node_sums import Attempt, NodeSums, Vectors, gradient_sums, not_finite

#: Steps of a run for which it pays to make and prove programs before its first one: some times `WARM_UP`.
LONG = 5 * WARM_UP

#: Two vectors of weights, or none.
Slots = tuple[Vector, Vector] | tuple[()]


class Compute:
    """A model bound to flat vectors, with the data it learns from."""

    def __init__(
        self,
        job: Job,
        model: Model,
        data: TrainTest,
        slots: Slots = (),
        sums: tuple[Vector, ...] = (),
        *,
        frames: Sequence[Slice] = (),
        own: OwnCode = NO_CODE,
    ) -> None:
        self.model = model
        #: Two vectors of the layout's size: the weights after step t are in slot t % 2. By default new ones.
        self.slots: tuple[Vector, Vector] = slots or (self.layout.new_vector(), self.layout.new_vector())
        #: Vectors for sums, each of the layout's size: by default one new vector.
        self.sums = sums or (self.layout.new_vector(),)
        #: Asked before each micro-batch of a node but the first whether the rest is still wanted.
        self.is_wanted: Callable[[], bool] = lambda: True
        #: Called with the outputs of each chunk of an evaluation; they are valid until the next.
        self.on_outputs: Callable[[Array], None] = lambda outputs: None
        #: Frames in which sums are sent: by default those of one server.
        self.frames = frames or Slice(0, self.layout.size).frames()
        #: How sums, and weights, are rounded and travel.
        self.wire = quantization_of(job.wire, job.seed, self.layout.parameter_size)
        self.wire_weights = quantization_of(job.wire_weights, job.seed, self.layout.parameter_size)
        self.batches = Batches(job, data, own)
        self.engine = model.engine(self.batches.objective)
        self._attempt = Attempt(lambda: self.is_wanted())
        #: Takes the local steps of a micro-batch; None in a job that has only one of them.
        self.local = self._local_steps() if job.local_steps > 1 else None
        self._nodes = self._node_sums()
        self.move(self.slots)

    def _local_steps(self) -> LocalStepSums:
        places, momenta = (len(self.slots), len(self.sums)), self.model.momenta()
        return LocalStepSums(self.engine, self.batches, self.layout, momenta, *places, self._attempt)

    def _node_sums(self) -> NodeSums:
        sink = GradientSink(self.layout, self.frames, self.wire)
        if self.local is not None:
            # Their micro-batches have weights of their own: there is nothing to compute in one pass over several.
            return NodeSums(self.local, self.layout, sink, self._attempt)
        return gradient_sums(self.engine, self.layout, self.batches, sink, self._attempt)

    @property
    def job(self) -> Job:
        """The job whose data this computes with."""
        return self.batches.job

    @property
    def weights(self) -> Vector:
        """The slot that the model computes with."""
        return self._at.weights

    @property
    def into(self) -> Vector:
        """The vector of sums that the model writes into."""
        return self._at.sums

    @property
    def layout(self) -> ParameterLayout:
        """The places of the model's values in a vector."""
        return self.model.layout

    @property
    def losses(self) -> list[float]:
        """The sum of losses of each micro-batch that `train` was last called for, in order; float32 each."""
        return self._attempt.losses

    def move(self, slots: tuple[Vector, Vector]) -> None:
        """Compute with weights in other memory from the next `turn` on; both are of the layout's size."""
        self.slots, self._at = slots, Vectors(slots[0], self.sums[0])
        weights, written = list(slots), list(self.sums)
        if self.local is not None:
            weights.extend(self.local.weights)
            written.append(self.local.gradient)
        # Read only, as they are where memory is shared: a model that changes its own weights would get other bits on
        # another worker.
        self.engine.bind([read_only(vector) for vector in weights], written)

    def turn(self, step: int, *, into: int = 0) -> None:
        """Compute with the weights after `step` steps from now on, and write sums into `sums[into]`."""
        before, self._at = self._at, Vectors(self.slots[step % 2], self.sums[into], step % 2, into)
        if self._at.weights is not before.weights:
            self.engine.read_from(step % 2)
        if self._at.sums is not before.sums:
            self.engine.write_to(into)

    @np.errstate(all="ignore")  # as in `train`
    def prove(self, node: Node) -> None:
        """Let the engine make what it computes such nodes of a step with now, if the run is long enough for it."""
        if self._nodes.passes is not None and self.job.total_steps(len(self.batches.data.train)) >= LONG:
            # The proof writes sums, and those of a process that took another's place may still be read by its team.
            self.engine.bind([read_only(vector) for vector in self.slots], [self.layout.new_vector()])
            self._nodes.prove(0, node)
            self.move(self.slots)

    @np.errstate(all="ignore")  # values that are not finite show in the loss and are reported with their place
    def train(self, step: int, node: Node, send: SendBucket | None = None) -> tuple[Vector, Tally]:
        """Return the sums over the micro-batches of a node, added and rounded over the tree, and their tally.

        The vector is `into`, overwritten by the next call. `send` gets each of its frames once, as soon as that is
        final: with one micro-batch, while backward is still on its way. Raises `NotFiniteError` and `StoppedError` as
        `NodeSums.train`.
        """
        self._attempt.begin()
        # The next lease is most likely the same part of the next step; it is read while this one is computed.
        self.batches.read_ahead(step + 1, node)
        return self.into, self._nodes.train(step, node, self._at, send)

    @np.errstate(all="ignore")  # as in `train`
    def evaluate(self, node: Node, work: Work = "evaluate") -> Tally:
        """Return the tally of a node of chunks, added over their tree: of the test set, or to "validate" of that set.

        Raises `NotFiniteError`, and `StoppedError` as `train`.
        """
        self._attempt.begin()
        tally: Tally = over_tree(len(node), lambda chunk: self._evaluate_chunk(chunk, work), add, node.lo)
        return tally

    def _evaluate_chunk(self, chunk: int, work: Work) -> Tally:
        self._attempt.count()
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
