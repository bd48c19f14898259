"""A piece is a function of weights, job and place: whoever computes it, after whatever, gets the same bits."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector, VectorPool
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.sampler import evaluation_chunks
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Work
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.node_sums import StoppedError
from tests.lockstep.common.model.built import build_model
from tests.simulation.small import JOBS, digits, job_of, long_test_set, noisy_net

#: Dropout, batch normalisation and random shifts; six pieces.
NOISY = JOBS["noisy"]


def compute_of(job: Job, data: TrainTest | None = None) -> Compute:
    """Return what computes a job's pieces, with the first weights in place."""
    model = build_model(job.model).initialize(job.seed)
    weights = gather(model, layout_of(model))
    compute = Compute(job, AutogradModel(model), data or digits())
    compute.weights[:] = weights
    return compute


def pool_of(compute: Compute) -> VectorPool:
    """Return the vectors that hold sums on the way."""
    return compute._nodes.pool


def bits(compute: Compute, step: int, node: Node) -> tuple[bytes, Tally]:
    sums, tally = compute.train(step, node)
    return sums.tobytes(), tally


def nodes(lo: int, hi: int) -> list[Node]:
    at, found = [Node(lo, hi)], []
    while at:
        node = at.pop()
        found.append(node)
        at += node.halves() if len(node) > 1 else ()
    return found


@pytest.mark.parametrize("name", JOBS)
def test_the_sums_over_a_node_are_the_tree_of_its_pieces(name: str) -> None:
    job = JOBS[name]
    compute, other = compute_of(job), compute_of(job)

    def tree(node: Node) -> tuple[Vector, Tally]:
        if len(node) == 1:
            sums, tally = other.train(1, node)
            return sums.copy(), tally
        (left, left_tally), (right, right_tally) = map(tree, node.halves())
        return left + right, left_tally + right_tally

    for node in nodes(0, job.micro_batches):
        sums, tally = tree(node)
        assert bits(compute, 1, node) == (sums.tobytes(), tally)


def test_the_order_of_calls_never_matters() -> None:
    fresh = {(step, node): bits(compute_of(NOISY), step, node) for step in (0, 2) for node in nodes(0, 6)}
    compute = compute_of(NOISY)
    order = list(fresh) * 2
    for place in generator(1, Purpose.CANARY).permutation(len(order)):
        step, node = order[place]
        assert bits(compute, step, node) == fresh[step, node]
        compute.evaluate(Node(0, 1))


def test_computing_changes_neither_weights_nor_statistics() -> None:
    compute = compute_of(NOISY)
    before = compute.weights.tobytes()
    compute.train(0, Node(0, 6))
    compute.evaluate(Node(0, 1))
    assert compute.weights.tobytes() == before


SELFISH = """
class Selfish(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)

    def forward(self, images):
        self.scores.weight.data *= 0.5
        return self.scores(images.flatten(1))


def build():
    return Selfish()
"""


def test_a_model_cannot_change_its_own_weights(tmp_path: Any) -> None:
    compute = compute_of(job_of(model=write_file(tmp_path / "selfish.py", SELFISH)))
    with pytest.raises(ValueError, match=r".") as raised:
        compute.train(0, Node(0, 1))
    assert raised.traceback[-1].name == "forward"


def test_a_piece_depends_on_the_weights() -> None:
    compute = compute_of(NOISY)
    before = bits(compute, 0, Node(0, 1))
    compute.weights[:] *= np.float32(1.01)
    assert bits(compute, 0, Node(0, 1)) != before


def images_of(compute: Compute, step: int, micro_batch: int) -> bytes:
    """Return what the model is given for the same samples at some place of the run."""
    return compute.batches.training(np.arange(4), step, micro_batch)[0].tobytes()


def test_shifts_are_keyed_by_step_and_micro_batch() -> None:
    compute = compute_of(job_of(max_shift=3))
    seen = {images_of(compute, step, micro_batch) for step in range(3) for micro_batch in range(3)}
    assert len(seen) == 9
    assert images_of(compute, 1, 2) == images_of(compute_of(job_of(max_shift=3)), 1, 2)
    still = compute_of(job_of())
    assert images_of(still, 0, 0) == images_of(still, 2, 1)


def test_images_are_shifted_whatever_they_are_scaled_by() -> None:
    rows = np.arange(4)
    for normalize, mean, std in ((False, 0.0, 1.0), (True, 0.5, 0.25)):
        still, moving = (
            Compute(job, AutogradModel(build_model("linear")), digits().with_moments((0.5, 0.25)))
            for job in (job_of(normalize=normalize), job_of(normalize=normalize, max_shift=3))
        )
        expected = (digits().train.images[rows] / 255.0 - mean) / std
        np.testing.assert_allclose(still.batches.training(rows, 0, 0)[0], expected, rtol=1e-5, atol=1e-5)
        assert len({images_of(moving, step, 0) for step in range(3)}) == 3


def test_dropout_is_keyed_by_step_and_micro_batch() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    # One batch is the whole set, so that every step has the same samples in another order.
    compute = compute_of(job_of(model=dict(describe(net)), global_batch=40, micro_batches=1))
    losses = {round(compute.train(step, Node(0, 1))[1].loss_sum, 3) for step in range(4)}
    assert len(losses) == 4


def test_a_piece_is_the_gradient_of_the_sum_of_its_losses() -> None:
    compute = compute_of(job_of(label_smoothing=0.1))
    sums, tally = compute.train(0, Node(1, 2))
    rows = compute.batches.sampler.indices(0, 1)
    model = build_model("linear").initialize(3)
    logits = model(Tensor(compute.batches.preparation.images(digits().train.images[rows])))
    labels = digits().train.labels[rows]
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    loss.backward()
    expected = np.concatenate([p.grad.ravel() for p in model.parameters() if p.grad is not None])
    assert sums.tobytes() == expected.tobytes()
    correct = int((logits.detach().numpy().argmax(axis=1) == labels).sum())
    assert tally == Tally(loss.item(), 4, metrics=(correct, 4))


def test_label_smoothing_is_for_training_alone() -> None:
    plain, smooth = compute_of(job_of()), compute_of(job_of(label_smoothing=0.3))
    assert plain.train(0, Node(0, 1))[1].loss_sum != smooth.train(0, Node(0, 1))[1].loss_sum
    assert plain.evaluate(Node(0, 1)) == smooth.evaluate(Node(0, 1))


def test_an_empty_micro_batch_is_nothing() -> None:
    compute = compute_of(JOBS["short"])
    # The third batch has two samples for five pieces: [m*2//5, (m+1)*2//5).
    counts = [compute.train(2, Node(piece, piece + 1))[1].count for piece in range(5)]
    assert counts == [0, 0, 1, 0, 1]
    compute.train(0, Node(0, 1))
    sums, tally = compute.train(2, Node(0, 1))
    assert (tally, compute.losses) == (Tally(), [0.0])
    assert not sums.any()


def regression() -> TrainTest:
    """Return images with two numbers to predict for each."""
    train, test = (
        Dataset(part.images, np.stack([part.labels, -part.labels], axis=1).astype(np.float32), 0)
        for part in (digits().train, digits().test)
    )
    return TrainTest("numbers", train, test)


@pytest.mark.parametrize(
    ("outputs", "loss", "data", "targets"), [(10, "cross-entropy", digits, 1), (2, "mse", regression, 2)]
)
def test_statistics_travel_as_sums_that_the_number_of_all_targets_divides(
    outputs: int, loss: str, data: Callable[[], TrainTest], targets: int
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, outputs))
    compute = compute_of(job_of(model=dict(describe(net)), loss=loss), data())
    sums, tally = compute.train(0, Node(0, 1))
    rows = compute.batches.sampler.indices(0, 0)
    images = compute.batches.preparation.images(digits().train.images[rows]).reshape(-1, 784)
    mean = sums[compute.layout.parameter_size :][:784] / tally.count
    assert tally.count == targets * len(rows)
    np.testing.assert_allclose(mean, images.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_if_all_layers_are_finite_and_the_loss_is_not_that_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    compute = compute_of(job_of(model=dict(describe(net)), loss="mse"), regression())
    compute.layout.read(compute.weights)["1.bias"][:] = 1e30
    with pytest.raises(NotFiniteError) as raised:
        compute.train(0, Node(1, 2))
    assert (raised.value.layer, raised.value.quantity) == ("the loss itself", "loss")


def test_a_vector_of_weights_packs_what_is_trained_and_leaves_statistics_as_they_are() -> None:
    compute = compute_of(job_of(model=noisy_net(), wire_weights="bfloat16"))
    trained, size = compute.layout.parameter_size, compute.layout.size
    assert compute.wire_weights.words(Slice(0, size)) == -(-trained // 2) + size - trained


def test_it_turns_to_the_weights_of_a_step_and_writes_where_it_is_told_or_else_to_the_first_place() -> None:
    job, model = job_of(), build_model("linear")
    size = layout_of(model).size
    sums = (np.zeros(size, np.float32), np.zeros(size, np.float32))
    compute = Compute(job, AutogradModel(model), digits(), sums=sums)
    for step, into in ((1, 1), (1, 0), (2, 1), (3, 0)):
        compute.turn(step, into=into)
        assert compute.weights is compute.slots[step % 2]
        assert compute.train(step, Node(0, 1))[0] is sums[into]
    compute.turn(4, into=1)
    compute.turn(4)
    assert compute.into is sums[0]


def write_file(path: Any, text: str) -> str:
    path.write_text(f"from lockstep.common import nn\n\n\n{text}")
    return f"{path}:build"


UNUSED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(784, 10)
        self.unused = nn.Linear(5, 5)
        self.sleeping = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.used(x.flatten(1))


def build():
    return Net()
"""


def test_what_takes_no_part_gets_no_gradient_and_keeps_its_statistics(tmp_path: Any) -> None:
    compute = compute_of(job_of(model=write_file(tmp_path / "net.py", UNUSED)))
    compute.into.fill(np.nan)
    sums, tally = compute.train(0, Node(0, 1))
    views = compute.layout.read(sums)
    assert views["used.weight"].any()
    assert not views["unused.weight"].any()
    assert not views["sleeping.bias"].any()
    assert views["sleeping.running_var"].tolist() == [float(tally.count)] * 5


def test_a_loss_that_is_not_finite_names_the_piece_and_the_layer() -> None:
    compute = compute_of(job_of(model="mlp"))
    compute.layout.read(compute.weights)["3.bias"][2] = np.inf
    with pytest.raises(NotFiniteError) as raised:
        compute.train(0, Node(2, 4))
    assert (raised.value.micro_batch, raised.value.layer) == (2, "3 (Linear)")
    with pytest.raises(NotFiniteError) as raised:
        compute.evaluate(Node(0, 1))
    assert (raised.value.micro_batch, raised.value.layer) == (0, "3 (Linear)")


def test_the_layer_is_looked_for_with_the_masks_of_the_forward() -> None:
    # Of eight units dropout keeps some: only with the same masks the infinity is met again in the same layer.
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Dropout(0.9), nn.Linear(8, 10))
    compute = compute_of(job_of(model=dict(describe(net)), global_batch=16, micro_batches=16))
    compute.layout.read(compute.weights)["3.weight"][:] = 3e38
    layers = set()
    for step in range(2):
        for piece in range(16):
            try:
                compute.train(step, Node(piece, piece + 1))
            except NotFiniteError as error:
                layers.add(error.layer)
    assert layers == {"3 (Linear)"}


def test_after_a_failure_the_next_piece_has_its_usual_bits() -> None:
    compute, fresh = compute_of(NOISY), compute_of(NOISY)
    good = compute.weights.copy()
    compute.weights[:] = np.nan
    with pytest.raises(NotFiniteError):
        compute.train(0, Node(0, 6))
    compute.weights[:] = good
    assert bits(compute, 0, Node(0, 6)) == bits(fresh, 0, Node(0, 6))


def test_evaluation_is_added_over_the_tree_of_its_pieces() -> None:
    compute = compute_of(job_of(model="lenet"), long_test_set())
    pieces = evaluation_chunks(1100)
    assert pieces == 3
    one, two, three = (compute.evaluate(Node(piece, piece + 1)) for piece in range(3))
    whole = compute.evaluate(Node(0, 3))
    assert whole == (one + two) + three
    assert whole.count == 1100


def validated() -> TrainTest:
    """Return a validation set of two chunks besides a test set of three."""
    data = long_test_set()
    held_out = Dataset(data.test.images[:600], data.test.labels[:600][::-1].copy(), 10)
    return TrainTest("digits", data.train, data.test, held_out)


def test_an_evaluation_is_of_the_set_that_its_work_names() -> None:
    compute, data = compute_of(job_of(), validated()), validated()
    assert [compute.batches.micro_batches_of(work) for work in get_args(Work)] == [4, 4, 2, 3]
    assert compute_of(job_of()).batches.micro_batches_of("validate") == 0
    other = compute_of(job_of(), TrainTest("digits", data.train, data.validation or data.test))
    whole = compute.evaluate(Node(0, 2), "validate")
    assert (whole, whole.count) == (other.evaluate(Node(0, 2)), 600)
    assert whole != compute.evaluate(Node(0, 2))


def test_what_a_node_needs_is_the_samples_of_all_that_is_in_it() -> None:
    compute = compute_of(job_of(), validated())
    indices = compute.batches.sampler.indices
    expected: list[tuple[Work, Node, list[int]]] = [
        ("train", Node(1, 3), [*indices(1, 1), *indices(1, 2)]),
        ("audit", Node(1, 3), [*indices(1, 1), *indices(1, 2)]),
        ("evaluate", Node(0, 3), [*range(1100)]),
        ("evaluate", Node(1, 2), [*range(366, 733)]),
        ("validate", Node(0, 2), [*range(600)]),
        ("validate", Node(1, 2), [*range(300, 600)]),
    ]
    for work, node, places in expected:
        assert compute.batches.samples_of(work, 1, node).tolist() == places


def test_an_evaluation_drops_nothing_and_uses_the_statistics_that_were_collected() -> None:
    compute, model = compute_of(NOISY), build_model(NOISY.model).initialize(NOISY.seed).eval()
    compute.train(0, Node(0, 1))
    held_out = digits().test
    loss = F.cross_entropy(
        model(Tensor(compute.batches.preparation.images(held_out.images[:]))), held_out.labels, reduction="sum"
    )
    assert compute.evaluate(Node(0, 1)).loss_sum == loss.item()


def test_numbers_that_grow_out_of_bounds_in_an_evaluation_warn_nobody_since_the_loss_tells() -> None:
    compute = compute_of(job_of(model="mlp"))
    compute.weights[:] = 3e38
    with pytest.raises(NotFiniteError):
        compute.evaluate(Node(0, 1))


def test_without_normalisation_images_are_only_scaled() -> None:
    compute = compute_of(job_of(normalize=False))
    images, _ = compute.batches.training(np.arange(4), 0, 0)
    np.testing.assert_allclose(images, digits().train.images[:4] / 255.0, rtol=1e-6)


def test_sums_are_valid_until_the_next_call_and_memory_does_not_grow() -> None:
    compute = compute_of(job_of(micro_batches=16))
    for step in range(3):
        compute.train(step % 2, Node(0, 16))
    assert len(pool_of(compute).free) == 4


# What is not wanted any more


class Wanted:
    """Wants so many micro-batches more, and counts how often it is asked."""

    def __init__(self, more: int) -> None:
        self.more, self.asked = more, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.more


def compute_node(compute: Compute, step: int, node: Node, work: Work) -> None:
    if work == "train":
        compute.train(step, node, lambda start, words: pytest.fail("sent"))
    else:
        compute.evaluate(node, work)


def stopped(compute: Compute, node: Node, more: int, *, step: int = 0, work: Work = "train") -> int:
    """Let a node be stopped after its first micro-batch and so many more; return how many it says it has computed."""
    compute.is_wanted = wanted = Wanted(more)
    with pytest.raises(StoppedError) as caught:
        compute_node(compute, step, node, work)
    assert wanted.asked == more + 1
    compute.is_wanted = lambda: True
    return caught.value.computed


@pytest.mark.parametrize("more", range(5))
def test_a_node_that_is_not_wanted_is_stopped_before_the_next_micro_batch_with_nothing_sent(more: int) -> None:
    compute, fresh = compute_of(NOISY), compute_of(NOISY)
    assert stopped(compute, Node(0, 6), more) == more + 1
    assert len(compute.losses) == more + 1
    # Whatever was left in the middle, the next one has its usual bits, and its own count.
    for node in (Node(0, 6), Node(3, 6), Node(5, 6)):
        assert bits(compute, 2, node) == bits(fresh, 2, node)
        assert compute.losses == fresh.losses
    assert compute.evaluate(Node(0, 1)) == fresh.evaluate(Node(0, 1))
    assert stopped(compute, Node(3, 6), 1) == 2


@pytest.mark.parametrize("node", [Node(0, 6), Node(0, 3), Node(4, 5)])
def test_it_is_asked_between_micro_batches_and_not_before_the_first(node: Node) -> None:
    compute, fresh = compute_of(NOISY), compute_of(NOISY)
    compute.is_wanted = wanted = Wanted(len(node) - 1)
    assert bits(compute, 0, node) == bits(fresh, 0, node)
    assert wanted.asked == len(node) - 1


@pytest.mark.parametrize(("work", "node"), [("evaluate", Node(0, 3)), ("validate", Node(0, 2))])
def test_an_evaluation_that_is_not_wanted_is_stopped_between_its_chunks(work: Work, node: Node) -> None:
    compute, fresh = compute_of(NOISY, validated()), compute_of(NOISY, validated())
    for more in range(len(node) - 1):
        assert stopped(compute, node, more, work=work) == more + 1
    compute.is_wanted = wanted = Wanted(len(node) - 1)
    assert compute.evaluate(node, work) == fresh.evaluate(node, work)
    assert wanted.asked == len(node) - 1
    compute.is_wanted = Wanted(5)
    assert bits(compute, 1, Node(0, 6)) == bits(fresh, 1, Node(0, 6))


def test_one_micro_batch_is_computed_whether_it_is_wanted_or_not() -> None:
    compute = compute_of(job_of())
    compute.is_wanted = lambda: pytest.fail("asked")
    compute.train(0, Node(1, 2))
    compute.evaluate(Node(0, 1))


def test_the_memory_of_what_was_stopped_is_used_again() -> None:
    compute = compute_of(job_of(micro_batches=16))
    compute.train(0, Node(0, 16))
    for more in range(15):
        stopped(compute, Node(0, 16), more)
    compute.train(1, Node(0, 16))
    assert len(pool_of(compute).free) == 4


def test_how_far_it_came_is_told() -> None:
    assert str(StoppedError(3)) == "stopped after 3 micro-batches"
