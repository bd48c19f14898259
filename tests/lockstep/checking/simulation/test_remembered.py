"""What a model remembers has the bits of what it computes, and is nobody else's."""

import numpy as np
import pytest

from lockstep.checking.simulation.jobs import data, job_named
from lockstep.checking.simulation.remembered import remembering
from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.model.source import ModelSource, read_model_source
from lockstep.worker.compute import Compute
from lockstep.worker.setup import BuildModel


def computing(job: Job, build: BuildModel, scale: float = 1.0) -> Compute:
    """Return what computes a job, with weights of its own."""
    model = build(read_model_source(job.model), job.seed)
    compute = Compute(job, model, data(job.data))
    compute.weights[:] = np.float32(scale) * read_model_source(job.model).build(job.seed).first_weights(job.seed)
    compute.turn(0)
    return compute


@pytest.mark.parametrize("name", ["plain", "noisy", "short", "clipped", "team-sevenths", "team-numbers"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_it_has_the_bits_of_what_computes(name: str, scale: float) -> None:
    job = job_named(name, None)
    plain, one, other = (computing(job, build, scale) for build in (ModelSource.build, remembering, remembering))
    nodes = [Node(0, job.micro_batches), *(Node(each, each + 1) for each in range(job.micro_batches))]
    for node in nodes:
        expected, tally = plain.train(0, node)
        for remembers in (one, other):
            sums, found = remembers.train(0, node)
            assert (sums.tobytes(), found, remembers.losses) == (expected.tobytes(), tally, plain.losses)
    assert one.evaluate(Node(0, 1)) == plain.evaluate(Node(0, 1))


def test_other_weights_get_another_answer() -> None:
    job = job_named("wide", None)
    one, other = computing(job, remembering), computing(job, remembering)
    # Neither of the first nor of the last, by which an answer is looked up.
    other.weights[len(other.weights) // 2] += 1.0
    sums = one.train(0, Node(0, 1))[0].copy()
    assert sums.tobytes() != other.train(0, Node(0, 1))[0].tobytes()
    assert sums.tobytes() == one.train(0, Node(0, 1))[0].tobytes()
