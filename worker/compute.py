"""The work of a lease: (weights, step, micro-batch) to sums. Whoever computes it gets the same bits.

It has no state of the run. An evaluation is leased in the same way: the chunks of a held-out set take the place of the
micro-batches of a step. Array shapes, and so the bits of every matrix product, depend on the job alone (rule R4).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.aggregation.layout import Binding, ParameterLayout, layout_of
from common.aggregation.quantization.quantization import Quantization, RoundingKey, quantization_of
from common.aggregation.slices import Slice
from common.aggregation.tree import Node, Vector, VectorPool
from common.autograd.capture import Capture, capture
from common.autograd.graph import OnFinal, no_grad, observing
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.data.dataset import Dataset, TrainTest
from common.data.preparation import Preparation
from common.data.sampler import Sampler, evaluation_chunks, evaluation_rows
from common.job.job import Job
from common.job.objective import Objective
from common.job.tally import Tally
from common.nn.inspection import first_nonfinite_layer
from common.nn.module import Module, Parameter, Stochastic, is_repeatable
from common.protocol.messages import OF_A_STEP, Work
from common.random import Purpose, generator
from worker.gradient_sink import GradientSink, NotFiniteError, SendBucket

#: Two vectors of weights, or none.
Slots = tuple[Vector, Vector] | tuple[()]

#: The places of samples in the data.
Integers = NDArray[np.int64]


class StoppedError(Exception):
    """Computing a node was given up, before it was done, after so many micro-batches."""

    def __init__(self, computed: int) -> None:
        super().__init__(f"stopped after {computed} micro-batches")
        self.computed = computed


@dataclass
class TrainingPass:
    """Forward and backward of a model over a micro-batch: by the engine the first time, then by what was captured.

    Either way the bits are the same.
    """

    model: Module
    parameters: list[Parameter]
    objective: Objective
    #: Whether the model is known to do the same with every batch of one shape.
    _is_repeatable: bool = field(init=False)
    #: By the shape of the images: what follows from it is the same for all batches of a job.
    _captures: dict[tuple[int, ...], Capture] = field(default_factory=dict)
    #: What walks back over the last forward.
    _pending: Tensor | Capture | None = None

    def __post_init__(self) -> None:
        self._is_repeatable = is_repeatable(self.model)

    def forward(self, images: Array, targets: Array) -> tuple[Array, Array]:
        """Return the sum of the losses, a number, and the model's outputs; `targets` are as the objective has them."""
        # An observer of the engine wants to see it at work.
        captured = self._captures.get(images.shape) if observing.get() is None else None
        if captured is not None:
            loss, outputs = captured.forward(images, targets)
            self._pending = captured
            return loss, outputs
        return self._forward_by_engine(images, targets)

    def _forward_by_engine(self, images: Array, targets: Array) -> tuple[Array, Array]:
        if self._is_repeatable:
            results, captured = capture(self._compute, (images, targets), self.parameters)
            if captured is not None:
                self._captures[images.shape] = captured
        else:
            results = self._compute(images, targets)
        loss, outputs = results
        self._pending = loss
        return loss.data, outputs.data

    def _compute(self, images: Array, targets: Array) -> tuple[Tensor, Tensor]:
        outputs = self.model(Tensor(images))
        return self.objective.training_loss(outputs, targets), outputs

    def backward(self, on_final: OnFinal | None = None) -> None:
        """Add to the parameters' gradients those of the last forward, once after each; `on_final` as in `Tensor`."""
        pending, self._pending = self._pending, None
        if isinstance(pending, Capture):
            pending.backward(on_final)
        else:
            assert pending is not None
            pending.backward(retain_graph=False, on_final=on_final)


@dataclass
class Compute:
    """A model bound to flat vectors, with the data it learns from."""

    job: Job
    model: Module
    data: TrainTest
    #: Two vectors of the layout's size: the weights after step t are in slot t % 2. By default new ones.
    slots: Slots = ()
    #: Where sums may be written, each of the layout's size: by default one new vector.
    sums: tuple[Vector, ...] = ()
    #: Asked before each micro-batch of a node but the first whether the rest is still wanted.
    is_wanted: Callable[[], bool] = lambda: True
    #: Frames in which sums are sent: by default those of one server.
    frames: Sequence[Slice] = ()
    #: Mean and deviation of the training set if not all of it is here; by default they are computed.
    moments: tuple[float, float] | None = None
    #: The slot that the model computes with, and the vector of sums that it writes into.
    weights: Vector = field(init=False)
    into: Vector = field(init=False)
    layout: ParameterLayout = field(init=False)
    objective: Objective = field(init=False)
    #: How sums, and weights, are rounded and travel.
    wire: Quantization = field(init=False)
    wire_weights: Quantization = field(init=False)
    sampler: Sampler = field(init=False)
    preparation: Preparation = field(init=False)
    _binding: Binding = field(init=False)
    _pool: VectorPool = field(init=False)
    _pass: TrainingPass = field(init=False)
    #: The sum of losses of each micro-batch that `train` was last called for, in order; float32 each.
    losses: list[float] = field(default_factory=list)
    _sink: GradientSink = field(init=False)
    #: Micro-batches of the node at hand that were computed.
    _computed: int = 0
    #: Whether any module draws random numbers in its forward.
    _draws: bool = field(init=False)

    def __post_init__(self) -> None:
        job = self.job
        self.layout = layout_of(self.model)
        self.wire = quantization_of(job.wire, job.seed, self.layout.parameter_size)
        self.wire_weights = quantization_of(job.wire_weights, job.seed, self.layout.parameter_size)
        self.slots = self.slots or (self._new_vector(), self._new_vector())
        self.sums = self.sums or (self._new_vector(),)
        self._binding = self._bound(self.slots)
        self.frames = self.frames or Slice(0, self.layout.size).frames()
        leaves = [parameter.leaf for parameter in self._binding.parameters]
        self._sink = GradientSink(self.layout, self.frames, self.wire, leaves)
        self.model.train()  # every part of it, whatever the model's builder left behind: `_put` looks at the root only
        self._draws = any(isinstance(module, Stochastic) for module in self.model.modules())
        self.sampler = Sampler(len(self.data.train), job.global_batch, job.micro_batches, job.seed)
        self.preparation = self._prepared()
        self._pool = VectorPool(self.layout.size)
        self.objective = Objective.of(job)
        self._pass = TrainingPass(self.model, self._binding.parameters, self.objective)

    def _prepared(self) -> Preparation:
        if not self.job.normalize:
            return Preparation(0.0, 1.0, self.job.max_shift)
        if self.moments is None:
            return Preparation.of(self.data.train, self.job.max_shift)
        return Preparation(*self.moments, self.job.max_shift)

    def _new_vector(self) -> Vector:
        return np.zeros(self.layout.size, dtype=np.float32)

    def _bound(self, slots: tuple[Vector, Vector]) -> Binding:
        """Bind the model to vectors of weights, and return that."""
        self.slots, self.weights, self.into = slots, slots[0], self.sums[0]
        # Read only, as they are where memory is shared: a model that changes its own weights would get other bits on
        # another worker.
        return Binding(self.model, self.layout, [read_only(slot) for slot in slots], self.sums)

    def move(self, slots: tuple[Vector, Vector]) -> None:
        """Compute with weights in other memory from the next `turn` on; both are of the layout's size."""
        self._binding = self._bound(slots)

    def turn(self, step: int, *, into: int = 0) -> None:
        """Compute with the weights after `step` steps from now on, and write sums into `sums[into]`."""
        slot, sums = self.slots[step % 2], self.sums[into]
        if slot is not self.weights:
            self._binding.read_from(step % 2)
            self.weights = slot
        if sums is not self.into:
            self._binding.write_to(into)
            self.into = sums

    def train(self, step: int, node: Node, send: SendBucket | None = None) -> tuple[Vector, Tally]:
        """Return the sums over the micro-batches of a node, added and rounded over the tree, and their tally.

        The vector is `into`, overwritten by the next call. `send` gets each of its frames once, as soon as that is
        final: with one micro-batch, while backward is still on its way. Raises `NotFiniteError`: for a loss before
        anything is sent, for a gradient before its frame is. Raises `StoppedError`, with nothing sent, if it is not
        wanted any more.
        """
        self.losses.clear()
        self._computed = 0
        with np.errstate(all="ignore"):  # what is not finite is found in the loss, and reported with its place
            return self.into, self._sum(step, node, self.into, send)

    def _sum(self, step: int, node: Node, out: Vector, send: SendBucket | None = None) -> Tally:
        """Write the sums over a node into `out`; whatever that is, backward writes into the vector `into`."""
        if len(node) == 1:
            self._count()
            self._sink.begin(self.into, RoundingKey(step, node), send)
            tally = self._micro_batch(step, node.lo)
            self._sink.end()
            if out is not self.into:
                np.copyto(out, self.into)
            return tally
        first, second = node.halves()
        with self._pool.lent() as left:
            tally = self._sum(step, first, left)
            # The tally is a floating-point sum too, so it is added over the same tree.
            tally = tally + self._sum(step, second, self.into)
            self._sink.merge(left, self.into, out, RoundingKey(step, node), send)
        return tally

    def _count(self) -> None:
        """Begin another micro-batch, unless it is not wanted any more."""
        if self._computed and not self.is_wanted():
            raise StoppedError(self._computed)
        self._computed += 1

    def _micro_batch(self, step: int, micro_batch: int) -> Tally:
        """Compute one micro-batch into the vector of sums."""
        indices = self.sampler.indices(step, micro_batch)
        count = len(indices)
        if count == 0:
            self.losses.append(0.0)
            self.into.fill(0.0)
            return Tally()
        if self.layout.statistics:
            # A statistic that this forward does not observe stays what it is: its sum is count times its value.
            size = self.layout.parameter_size
            np.multiply(self.weights[size:], np.float32(count), out=self.into[size:])
        images, targets = self.batch(indices, step, micro_batch)
        self._put(is_training=True)
        if self._draws:
            self.model.reseed(self.job.seed, step, micro_batch)
        loss, outputs = self._pass.forward(images, targets)
        if not math.isfinite(loss):
            # The forward that looks for the layer is to draw the very numbers of this one.
            self.model.reseed(self.job.seed, step, micro_batch)
            raise self._not_finite(micro_batch, images)
        self.losses.append(float(loss))
        if self.layout.statistics and self.data.train.targets != 1:
            # They are weighted by samples, and all sums are divided by the number of targets.
            self.into[self.layout.parameter_size :] *= np.float32(self.data.train.targets)
        self._backward()
        return self.objective.tally(loss, outputs, targets)

    def samples_of(self, work: Work, step: int, node: Node) -> Integers:
        """Return the places, in the set that the work is about, of all samples that a node needs."""
        if work in OF_A_STEP:
            return np.concatenate([self.sampler.indices(step, micro_batch) for micro_batch in range(node.lo, node.hi)])
        size = len(self._held_out(work) or ())
        return np.arange(evaluation_rows(node.lo, size).start, evaluation_rows(node.hi - 1, size).stop)

    def micro_batches_of(self, work: Work) -> int:
        """Return into how many micro-batches, or chunks, a round of that kind is divided."""
        if work in OF_A_STEP:
            return self.job.micro_batches
        held_out = self._held_out(work)
        return 0 if held_out is None else evaluation_chunks(len(held_out))

    def _held_out(self, work: Work) -> Dataset | None:
        """Return the set that an evaluation is about, None if the job does not have it."""
        return self.data.test if work == "evaluate" else self.data.validation

    def evaluate(self, node: Node, work: Work = "evaluate") -> Tally:
        """Return the tally of a node of chunks, added over their tree: of the test set, or to "validate" of that set.

        Raises `NotFiniteError`, and `StoppedError` as `train`.
        """
        self._computed = 0
        with no_grad(), np.errstate(all="ignore"):  # as in `train`
            return self._evaluate(node, work)

    def _evaluate(self, node: Node, work: Work) -> Tally:
        if len(node) == 1:
            self._count()
            return self._evaluate_chunk(node.lo, work)
        first, second = node.halves()
        return self._evaluate(first, work) + self._evaluate(second, work)

    def _evaluate_chunk(self, chunk: int, work: Work) -> Tally:
        held_out = self._held_out(work)
        assert held_out is not None  # of a set that the job does not have, `micro_batches_of` is 0
        rows = evaluation_rows(chunk, len(held_out))
        targets = self.objective.targets(held_out.labels[rows])
        images = self.preparation.images(held_out.images[rows])
        self._put(is_training=False)
        outputs = self.model(Tensor(images))
        loss = self.objective.test_loss(outputs, targets)
        if not math.isfinite(loss.data):
            raise self._not_finite(chunk, images)
        return self.objective.tally(loss.data, outputs.data, targets)

    def batch(self, indices: Integers, step: int, micro_batch: int) -> tuple[Vector, Vector]:
        """Return what the model is given of these samples in a micro-batch, and what its outputs are compared with."""
        rng = None
        if self.job.max_shift:
            rng = generator(self.job.seed, Purpose.AUGMENT, at=step, micro_batch=micro_batch)
        train = self.data.train
        images = self.preparation.images(train.images.take(indices, axis=0), rng)
        return images, self.objective.targets(train.labels.take(indices, axis=0))

    def _not_finite(self, micro_batch: int, images: Vector) -> NotFiniteError:
        return NotFiniteError(micro_batch, first_nonfinite_layer(self.model, Tensor(images)) or "the loss itself")

    def _put(self, *, is_training: bool) -> None:
        """Put the whole model into one mode."""
        if self.model.training != is_training:
            self.model.train(is_training)

    def _backward(self) -> None:
        """Write all gradients into the vector of sums: zeros if a parameter took no part in the forward."""
        for parameter in self._binding.parameters:
            parameter.grad = None
        self._pass.backward(self._sink.on_final)
        for parameter, sums in zip(self._binding.parameters, self._binding.gradients, strict=True):
            if parameter.grad is None:
                sums.fill(0.0)


def read_only(vector: Vector) -> Vector:
    """Return a view of a vector through which it cannot be changed."""
    view = vector.view()
    view.flags.writeable = False
    return view
