"""A loop in one process, of the library's plain calls alone: `test_wire` compares with its bits."""

from collections.abc import Callable

import numpy as np

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler
from lockstep.common.job.job import Job
from lockstep.common.nn.models import MODELS
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
