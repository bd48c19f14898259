"""The samples of a local batch, or of a chunk of an evaluation, as a model is given them; knows no model.

A local batch is what one forward takes. With one local step it is a micro-batch. With H of them, micro-batch m has the
local batches `[m*H, (m+1)*H)`: a step is cut into its local batches as it is into micro-batches.

Array shapes, and so the bits of every matrix product, depend on the job alone (rule R4).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node, new_vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler, evaluation_chunks, evaluation_rows
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import NO_CODE, OwnCode, Transform, transform_of
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import OF_A_STEP, Work

#: The places of samples in the data.
Integers = NDArray[np.int64]

#: Local batches have two sizes, or four in an epoch whose last batch is short. A job's own transform may make more.
MOST_SHAPES = 8


@dataclass
class Batches:
    """The data of a job, cut into local batches and chunks."""

    job: Job
    data: TrainTest
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE
    objective: Objective = field(init=False)
    #: Knows local batches: it calls them micro-batches.
    sampler: Sampler = field(init=False)
    preparation: Preparation = field(init=False)
    #: The transform of training samples, None if they stay as they are.
    transform: Transform | None = field(init=False)
    #: By shape, memory for prepared samples that are not kept.
    _memory: dict[tuple[int, ...], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        job = self.job
        self.objective = Objective(job, self.own)
        self.sampler = Sampler(len(self.data.train), job.global_batch, job.local_batches, job.seed)
        plain = Preparation(0.0, 1.0, job.max_shift)
        self.preparation = Preparation.of(self.data.train, job.max_shift) if job.normalize else plain
        self.transform = transform_of(job, self.own)

    def local(self, node: Node) -> Node:
        """Return the local batches of a node of micro-batches."""
        return Node(node.lo * self.job.local_steps, node.hi * self.job.local_steps)

    @property
    def is_stackable(self) -> bool:
        """A sample is one array, and its target another, so several micro-batches may be one."""
        train = self.data.train
        return train.images.dtype.names is None and train.labels.dtype.names is None

    def training(self, indices: Integers, step: int, local_batch: int, *, is_kept: bool = True) -> tuple[Array, Array]:
        """Return what the model is given of these samples in a local batch, and what its outputs are compared with.

        If it is not kept, the next local batch that is not kept may be in the same memory.
        """
        raw, labels = self._stored(indices, step)
        out = None if is_kept else self._memory_for(raw)
        shifts = self._shifts(step, local_batch) if self.job.max_shift else None
        images = self.preparation.images(raw, shifts, out)
        return images, self.objective.targets(labels)

    def _memory_for(self, raw: Array) -> Array | None:
        """Return memory for prepared samples, always the same for those of one shape; None if it must be new.

        It begins at a line of the cache, and so PyTorch computes with it as it is: see `placed` of its engine.
        """
        if raw.dtype.names is not None or raw.dtype == np.int32:
            return None
        memory = self._memory.get(raw.shape)
        if memory is None:
            if len(self._memory) == MOST_SHAPES:
                self._memory.clear()
            memory = self._memory[raw.shape] = new_vector(math.prod(raw.shape)).reshape(raw.shape)
        return memory

    def _stored(self, indices: Integers, step: int) -> tuple[Array, Array]:
        """Return samples and labels as they are stored, or as the job's own function makes them in that epoch."""
        train = self.data.train
        raw, labels = train.images.take(indices, axis=0), train.labels.take(indices, axis=0)
        if self.transform is None:
            return raw, labels
        return self.transform.apply(raw, labels, indices, self.sampler.epoch_of(step))

    def _shifts(self, step: int, local_batch: int) -> np.random.Generator:
        """Return what draws by how much the images of a local batch are shifted."""
        return generator(self.job.seed, Purpose.AUGMENT, at=step, micro_batch=local_batch)

    def fill(self, step: int, node: Node, images: Array, targets: Array) -> None:
        """Write the same of a node of local batches, all of one size, into arrays: one after the other along axis 0."""
        raw, labels = self._stored(self.sampler.indices(step, node.lo, node.hi), step)
        if self.job.max_shift:  # drawn for each of them
            for place, part in enumerate(raw.reshape(images.shape)):
                self.preparation.images(part, self._shifts(step, node.lo + place), images[place])
        else:
            self.preparation.images(raw, out=images.reshape(raw.shape, copy=False))
        targets[...] = self.objective.targets(labels).reshape(targets.shape)

    def chunk(self, work: Work, chunk: int) -> tuple[Array, Array]:
        """Return the same of a chunk of an evaluation."""
        held_out = self._held_out(work)
        assert held_out is not None  # of a set that the job does not have, `micro_batches_of` is 0
        rows = evaluation_rows(chunk, len(held_out))
        return self.preparation.images(held_out.images[rows]), self.objective.targets(held_out.labels[rows])

    def samples_of(self, work: Work, step: int, node: Node) -> Integers:
        """Return the places, in the set that the work is about, of all samples that a node needs."""
        if work in OF_A_STEP:
            local = self.local(node)
            return self.sampler.indices(step, local.lo, local.hi)
        size = len(self._held_out(work) or ())
        return np.arange(evaluation_rows(node.lo, size).start, evaluation_rows(node.hi - 1, size).stop)

    def read_ahead(self, step: int, node: Node) -> None:
        """Let the system begin to read what a node of this step needs, if samples are read from a disk."""
        images = self.data.train.images
        # Not those of another epoch: its order takes its time to draw, and there is room for one.
        if isinstance(images, MappedSamples) and images.may_wait() and self.sampler.is_at_hand(step):
            images.request(self.samples_of("train", step, node))

    def micro_batches_of(self, work: Work) -> int:
        """Return into how many micro-batches, or chunks, a round of that kind is divided."""
        if work in OF_A_STEP:
            return self.job.micro_batches
        held_out = self._held_out(work)
        return 0 if held_out is None else evaluation_chunks(len(held_out))

    def _held_out(self, work: Work) -> Dataset | None:
        """Return the set that an evaluation is about, None if the job does not have it."""
        return self.data.test if work == "evaluate" else self.data.validation
