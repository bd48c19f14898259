"""A micro-batch that takes several steps: what it sends is what an optimizer of a notebook would have done."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import optim
from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.preparation import Preparation
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.module import Module
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import add_blocks, block_squares, scale_for
from lockstep.common.optim.optimizers import Optimizer
from lockstep.common.optim.schedules import OneCycle
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.node_sums import StoppedError
from tests.lockstep.common.model.built import build_model
from tests.simulation.small import JOBS, TRAIN, digits, job_of

#: Eight samples for each of two micro-batches, in two local steps.
MLP = job_of(model="mlp", micro_batches=2, local_steps=2, local_lr=0.1)

#: Three samples in two local steps, none of which draws, shifts or has a statistic; an epoch ends with two samples.
UNEVEN = job_of(model="linear", global_batch=19, micro_batches=5, local_steps=3, local_lr=0.1, local_nesterov=True)

#: Dropout, batch normalisation, shifts, clipping and a schedule; shares that the local steps do not divide.
NOISY = JOBS["local"]


def compute_of(job: Job, **values: Any) -> Compute:
    """Return what computes a job, with the first weights in both slots."""
    module = build_model(job.model).initialize(job.seed)
    weights = gather(module, layout_of(module))
    compute = Compute(job, AutogradModel(module), digits(), **values)
    for slot in compute.slots:
        slot[:] = weights
    return compute


def cut(count: int, parts: int) -> list[slice]:
    return [slice(place * count // parts, (place + 1) * count // parts) for place in range(parts)]


@dataclass
class Notebook:
    """Trains one micro-batch as a notebook does: knows no programs, no flat vectors, no sampler."""

    job: Job
    module: Module = field(init=False)

    def __post_init__(self) -> None:
        self.module = build_model(self.job.model).initialize(self.job.seed).train()

    def optimizer(self) -> Optimizer:
        job, parameters = self.job, list(self.module.parameters())
        if job.local_optimizer == "adamw":
            return optim.AdamW(parameters, job.local_lr, weight_decay=job.local_weight_decay)
        return optim.SGD(parameters, job.local_lr, job.local_momentum, job.local_weight_decay, job.local_nesterov)

    def rate(self, step: int, local_step: int) -> float:
        """Return the learning rate: the schedule goes over the local steps of all steps."""
        job = self.job
        if job.local_schedule == "constant":
            return job.local_lr
        return OneCycle(job.local_lr, (job.steps or 0) * job.local_steps).rate(step * job.local_steps + local_step)

    def batches(self, step: int, micro_batch: int) -> Iterator[tuple[int, Vector, NDArray[np.int64]]]:
        """Yield the number of each local step, of all of the whole batch, with its samples and their labels."""
        job, train = self.job, digits().train
        per_epoch = -(-TRAIN // job.global_batch)
        order = generator(job.seed, Purpose.SHUFFLE, at=step // per_epoch).permutation(TRAIN)
        start = step % per_epoch * job.global_batch
        batch = order[start : start + job.global_batch]
        share = cut(len(batch), job.micro_batches)[micro_batch]
        preparation, seen = Preparation.of(train, job.max_shift), share.start
        for local_step in range(job.local_steps):
            number = micro_batch * job.local_steps + local_step
            part = cut(len(batch), job.micro_batches * job.local_steps)[number]
            assert part.start == seen <= share.stop  # the share, in order and without a gap
            seen, chosen = part.stop, batch[part]
            shifts = generator(job.seed, Purpose.AUGMENT, at=step, micro_batch=number) if job.max_shift else None
            yield number, preparation.images(train.images.take(chosen, axis=0), shifts), train.labels.take(chosen)
        assert seen == share.stop

    def train(self, step: int, micro_batch: int) -> tuple[Vector, float, int]:
        """Return where the local steps lead to, the sum of their losses, and the number of samples."""
        job, optimizer, losses, count = self.job, self.optimizer(), 0.0, 0
        for number, images, labels in self.batches(step, micro_batch):
            if not len(labels):
                continue
            self.module.reseed(job.seed, step, number)
            optimizer.zero_grad()
            loss = Objective(job).training_loss(self.module(Tensor(images)), labels)[0]
            loss.backward()
            self._divide(len(labels))
            optimizer.lr = self.rate(step, number % job.local_steps)
            optimizer.step()
            losses, count = losses + float(loss.data), count + len(labels)
        return gather(self.module, layout_of(self.module)), losses, count

    def _divide(self, count: int) -> None:
        """Turn gradients of sums into those of means, and clip them."""
        gradients = list[Vector]()
        for parameter in self.module.parameters():
            assert parameter.grad is not None
            parameter.grad = mean = np.divide(parameter.grad, np.float32(count), dtype=np.float32)
            gradients.append(mean)
        if self.job.local_clip_norm is not None:
            norm = sum(add_blocks(block_squares(gradient.reshape(-1))) for gradient in gradients)
            for gradient in gradients:
                gradient *= np.float32(scale_for(norm, self.job.local_clip_norm))


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize(
    "job",
    [MLP, msgspec.structs.replace(MLP, local_momentum=0.0, local_weight_decay=0.1), UNEVEN, JOBS["local-lenet"]],
    ids=["mlp", "decay", "uneven", "lenet"],
)
def test_sums_are_the_way_that_a_notebooks_optimizer_goes_times_the_count(job: Job, step: int) -> None:
    compute = compute_of(job)
    begin = compute.weights.copy()
    for micro_batch in range(job.micro_batches):
        sums, tally = compute.train(step, Node(micro_batch, micro_batch + 1))
        end, losses, count = Notebook(job).train(step, micro_batch)
        assert np.array_equal(sums, (begin - end) * np.float32(count))
        assert (tally.loss_sum, tally.count) == (float(np.float32(losses)), count)
        assert compute.losses == [tally.loss_sum]


@dataclass
class Plain:
    """Trains one micro-batch of a linear model in float64 by the formulas: knows nothing of the library's gradients.

    A target that is ignored weighs nothing, and any other one as much as its class.
    """

    job: Job
    #: What is trained, (10, 785): the weights, and the biases in the last column.
    weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self._begin()

    def _begin(self) -> NDArray[np.float64]:
        values = [each.data for each in build_model(self.job.model).initialize(self.job.seed).parameters()]
        return np.concatenate([values[0], values[1][:, np.newaxis]], axis=1, dtype=np.float64)

    def rate(self, step: int) -> float:
        """Return the learning rate, which falls at the beginning of an epoch: the short batch at its end counts."""
        job, per_epoch = self.job, math.ceil(TRAIN / self.job.global_batch)
        epochs = step // (per_epoch * job.decay_every) if job.local_schedule == "step" else 0
        return float(job.local_lr * job.decay_factor**epochs)

    def train(self, step: int, micro_batch: int) -> tuple[NDArray[np.float64], float, float]:
        """Return the way of the local steps times the divisor, the sum of losses, and the divisor."""
        losses, divisor, velocity = 0.0, 0.0, np.zeros_like(self.weights)
        for _, images, labels in Notebook(self.job).batches(step, micro_batch):
            pixels = np.concatenate([images.reshape(-1, 784), np.ones((len(images), 1))], axis=1)
            raised = np.exp(pixels @ self.weights.T)
            shares = raised / raised.sum(axis=1, keepdims=True)
            weight = np.array(self.job.class_weights or [1.0] * 10)[labels] * (labels != self.job.ignore_index)
            losses -= float((weight * np.log(shares[np.arange(len(labels)), labels])).sum())
            divisor += float(weight.sum())
            if weight.any():
                error = (shares - np.eye(10)[labels]) * weight[:, np.newaxis]
                velocity = self.job.local_momentum * velocity + error.T @ pixels / weight.sum()
                self.weights -= self.rate(step) * velocity
        return (self._begin() - self.weights) * divisor, losses, divisor


#: What makes the divisor of a micro-batch another number than its samples. Most local batches have one sample or two,
#: so that all targets of some are ignored: of whole micro-batches, too, in the short batch of an epoch.
WEIGHING: dict[str, dict[str, Any]] = {
    "each alike": {},
    "some ignored": {"ignore_index": 1},
    "by class": {"class_weights": [0.5, 1.0, 2.0, 0.25, 1.0, 3.0, 0.1, 1.0, 1.5, 0.7]},
    "by class, some ignored": {
        "class_weights": [0.5, 9.0, 2.0, 0.25, 1.0, 3.0, 0.1, 1.0, 1.5, 0.7], "ignore_index": 1
    },
    "rates by epoch": {"local_schedule": "step", "decay_every": 1, "decay_factor": 0.25, "ignore_index": 0},
}  # fmt: skip


@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("weighing", WEIGHING)
def test_ignored_and_weighted_targets_count_as_in_a_plain_computation(weighing: str, step: int) -> None:
    job = msgspec.convert(msgspec.to_builtins(UNEVEN) | {"local_nesterov": False} | WEIGHING[weighing], Job)
    compute = compute_of(job)
    differs = False
    for micro_batch in range(job.micro_batches):
        sums, tally = compute.train(step, Node(micro_batch, micro_batch + 1))
        expected, losses, divisor = Plain(job).train(step, micro_batch)
        found = np.concatenate([sums[: 10 * 784].reshape(10, 784), sums[10 * 784 : 7850, np.newaxis]], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
        assert [tally.loss_sum, tally.divisor] == pytest.approx([losses, divisor], rel=1e-5)
        differs = differs or divisor != tally.count
    assert differs == (weighing != "each alike") or step == 2


@pytest.mark.parametrize("step", [0, 1, 2])
def test_draws_follow_the_local_step_and_statistics_all_of_its_batches(step: int) -> None:
    compute, size = compute_of(NOISY), layout_of(build_model(NOISY.model)).parameter_size
    begin, counts = compute.weights.copy(), 0
    for micro_batch in range(NOISY.micro_batches):
        sums, tally = compute.train(step, Node(micro_batch, micro_batch + 1))
        end, losses, count = Notebook(NOISY).train(step, micro_batch)
        # A global norm is added up in another order there, and a statistic is divided before it is averaged.
        assert sums[:size] == pytest.approx((begin - end)[:size] * count, rel=1e-3, abs=1e-5)
        assert sums[size:] == pytest.approx(end[size:] * count, rel=1e-5, abs=1e-6)
        assert tally.loss_sum == pytest.approx(losses, rel=1e-5)
        assert tally.count == count
        counts += tally.count
    assert counts == (4 if step == 2 else 18)


def test_a_share_without_samples_sends_nothing() -> None:
    compute = compute_of(UNEVEN)
    sums, tally = compute.train(2, Node(0, 1))
    assert not sums.any()
    assert (tally.loss_sum, tally.count, compute.losses) == (0.0, 0, [0.0])


def test_a_micro_batch_depends_on_nothing_that_was_computed_before() -> None:
    fresh = {m: compute_of(NOISY).train(0, Node(m, m + 1))[0].tobytes() for m in range(3)}
    compute = compute_of(NOISY)
    for step, m in ((0, 2), (1, 1), (0, 0), (2, 2), (0, 1), (0, 2)):
        compute.turn(step)
        sums, _ = compute.train(step, Node(m, m + 1))
        if step == 0:
            assert sums.tobytes() == fresh[m]


def test_programs_give_the_bits_of_the_engine() -> None:
    module = build_model(NOISY.model).initialize(NOISY.seed)
    slow, quick = (Compute(NOISY, AutogradModel(module, warm_up), digits()) for warm_up in (10**6, 0))
    slow.weights[:] = quick.weights[:] = gather(module, layout_of(module))
    for m in range(NOISY.micro_batches):
        sums, tally = slow.train(0, Node(m, m + 1))
        kept = sums.copy()
        sums, other = quick.train(0, Node(m, m + 1))
        assert (sums.tobytes(), other) == (kept.tobytes(), tally)
    assert quick.engine._passes.made  # type: ignore[attr-defined]  # there was a program


def test_an_evaluation_after_it_is_one_of_the_weights_of_the_step() -> None:
    compute = compute_of(NOISY)
    before = compute.evaluate(Node(0, 1))
    compute.train(0, Node(0, 3))
    assert compute.evaluate(Node(0, 1)) == before


def test_the_weights_of_the_step_stay_as_they_are() -> None:
    compute = compute_of(MLP)
    before = compute.weights.copy()
    compute.train(0, Node(0, 2))
    assert np.array_equal(compute.weights, before)


def test_it_is_asked_before_each_local_step_whether_the_rest_is_wanted() -> None:
    answers = iter([True, True, True, True, True, False])
    asked = list[None]()

    def is_wanted() -> bool:
        asked.append(None)
        return next(answers)

    compute = compute_of(NOISY)
    compute.is_wanted = is_wanted
    with pytest.raises(StoppedError) as stopped:
        compute.train(0, Node(0, 3))
    # Three within the first micro-batch, one before the second, and the second one within that.
    assert (stopped.value.computed, len(asked)) == (1, 6)
    # What was given up leaves nothing behind.
    assert compute_of(NOISY).train(0, Node(1, 2))[0].tobytes() == _again(compute, Node(1, 2))


def _again(compute: Compute, node: Node) -> bytes:
    compute.is_wanted = lambda: True
    return compute.train(0, node)[0].tobytes()


def test_what_is_not_finite_is_reported_with_its_micro_batch_and_local_step() -> None:
    compute = compute_of(msgspec.structs.replace(MLP, local_lr=1e30))
    with pytest.raises(NotFiniteError, match="in local step 1") as found:
        compute.train(0, Node(1, 2))
    assert found.value.micro_batch == 1


def test_weights_that_a_last_local_step_made_infinite_are_found_in_the_sums() -> None:
    # The gradients of both samples are finite, and so are their losses.
    compute = compute_of(msgspec.structs.replace(MLP, local_lr=1e30, local_weight_decay=1e30, local_steps=1))
    assert compute.local is None
    job = msgspec.structs.replace(MLP, global_batch=4, local_lr=1e30, local_weight_decay=1e30)
    compute = compute_of(msgspec.structs.replace(job, local_steps=2, local_schedule="one-cycle", steps=1))
    with pytest.raises(NotFiniteError):
        compute.train(0, Node(0, 1))


def test_the_rates_of_a_run_of_epochs_are_those_of_as_many_steps() -> None:
    values = msgspec.structs.replace(UNEVEN, local_schedule="one-cycle", local_nesterov=False)
    epochs, other = (msgspec.structs.replace(values, steps=None, epochs=count) for count in (2, 3))
    steps = msgspec.structs.replace(values, steps=2 * -(-TRAIN // values.global_batch))
    found = [compute_of(job).train(1, Node(0, 1))[0].tobytes() for job in (epochs, steps, other)]
    assert found[0] == found[1] != found[2]


def test_memory_is_made_once() -> None:
    compute = compute_of(MLP)
    local = compute.local
    assert local is not None

    def addresses() -> list[int]:
        return [vector.ctypes.data for vector in (*local.weights, local.gradient, *local._state.values())]

    made = addresses()
    for step in range(3):
        compute.turn(step)
        compute.train(step, Node(0, 2))
    assert addresses() == made
    compute.move((np.zeros_like(compute.weights), np.zeros_like(compute.weights)))
    assert compute.local is local
    assert addresses() == made
