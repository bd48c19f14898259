"""The first samples of a job, on which a model is tried before the run begins: the same on all machines."""

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.numerics.random import Purpose, generator, normal


def first_micro_batch(job: Job, data: TrainTest, *, is_here: bool) -> tuple[Array, Array]:
    """Return samples and targets of the shapes of the first micro-batch, or of what its first local step takes of it.

    Without the mean and deviation of the training set, which a worker does not always have. If samples are sent to
    workers, so that none `is_here`, numbers are drawn instead; tokens and labels are 0 then, which is always one.
    """
    train = data.train
    indices = Sampler(len(train), job.global_batch, job.local_batches, job.seed).indices(0, 0)
    targets = Objective.of(job).targets(train.labels.take(indices, axis=0))
    if is_here:
        return Preparation(mean=0.0, std=1.0).images(train.images.take(indices, axis=0)), targets
    shape = (len(indices), *train.sample_shape)
    if train.is_tokens:
        return np.zeros(shape, np.int32), np.zeros_like(targets)
    drawn = normal(generator(job.seed, Purpose.CANARY), 0.0, 1.0, shape)
    return drawn.astype(np.float32), np.zeros_like(targets)
