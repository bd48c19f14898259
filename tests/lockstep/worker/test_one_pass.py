"""A lease in one pass has the bits of its micro-batches one by one: any job, any node, however sums are rounded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common import nn
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.model.autograd import AutogradEngine, AutogradModel, StackedPass
from lockstep.common.nn.description import describe
from lockstep.worker.compute import LONG, Compute
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.node_sums import StoppedError
from tests.lockstep.common.model.built import build_model
from tests.lockstep.worker.test_compute import nodes
from tests.simulation.small import JOBS, digits, job_of
from tests.simulation.test_other_data import JOBS as OTHER_JOBS


def compute_of(job: Job, data: TrainTest | None = None, frames: Sequence[Slice] = ()) -> Compute:
    """Return what computes a job, in one pass as soon as it can, with the first weights in place."""
    model = AutogradModel(build_model(job.model), warm_up=0)
    weights = model.first_weights(job.seed)
    compute = Compute(job, model, data or digits(), frames=frames)
    compute.weights[:] = weights
    return compute


def oracle_of(job: Job, data: TrainTest | None = None) -> Compute:
    """Return the same, but one micro-batch after the other: what every pass has to equal."""
    compute = compute_of(job, data)
    assert compute._nodes.passes is not None
    compute._nodes.passes = None
    return compute


def passes(compute: Compute) -> dict[Any, StackedPass | None]:
    """Return the passes that were made, by the number of micro-batches and the samples of each."""
    assert isinstance(compute.engine, AutogradEngine)
    return compute.engine._passes.made


def transformer(dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, norm_first=True, is_causal=True)
    return nn.Sequential(nn.Embedding(9, 8), nn.PositionalEmbedding(7, 8), layer, nn.LayerNorm(8), nn.Linear(8, 9))


def dropping(drop: nn.Module | None = None) -> list[nn.Module]:
    """Layers of a net that draws in three places, in two of them by the same module if it is given."""
    one, other = drop or nn.Dropout(0.4), drop or nn.Dropout(0.4)
    return [
        *(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
        *(nn.Linear(576, 40), nn.ReLU(), one, nn.Linear(40, 40), nn.ReLU(), other, nn.Linear(40, 10)),
    ]


def observing() -> list[nn.Module]:
    """Layers of a net that normalises by the statistics of its batch, in two places by the same module."""
    twice = nn.BatchNorm1d(40)
    return [
        *(nn.Conv2d(1, 4, 5, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()),
        *(nn.Linear(144, 40), twice, nn.Dropout(0.2), nn.ReLU(), nn.Linear(40, 40), twice, nn.Linear(40, 10)),
    ]


def of_a_table() -> list[nn.Module]:
    return [nn.Linear(5, 8), nn.BatchNorm1d(8, affine=False), nn.Tanh(), nn.Linear(8, 2)]


class OfItsOwn(nn.Sequential):
    """A class that nothing is known of, so that it is computed by the engine itself."""


ALL: dict[str, tuple[Job, Callable[[], TrainTest]]] = {
    # Local steps have no weights in common, and so no pass over several micro-batches.
    **{name: (job, digits) for name, job in JOBS.items() if job.local_steps == 1},
    **OTHER_JOBS,
    "metrics of classes": (job_of(model="mlp", global_batch=24, micro_batches=8, metrics=["f1", "top2"]), digits),
    # Sums that are not whole, which depend on the order in which they are added.
    "metrics of numbers": (
        replace(OTHER_JOBS["table"][0], loss="l1", micro_batches=8, global_batch=32, metrics=("mae", "rmse", "r2")),
        OTHER_JOBS["table"][1],
    ),
    "language": (job_of(model=dict(describe(transformer())), global_batch=20, micro_batches=5), OTHER_JOBS["text"][1]),
    "dropout": (
        job_of(model=dict(describe(nn.Sequential(*dropping()))), global_batch=22, micro_batches=4, max_shift=1),
        digits,
    ),
    "dropping language": (
        job_of(model=dict(describe(transformer(0.3))), global_batch=20, micro_batches=5),
        OTHER_JOBS["text"][1],
    ),
    "shifts": (job_of(model="mlp", max_shift=2, label_smoothing=0.1), digits),
    "float16": (job_of(model="mlp", wire="float16"), digits),
    "bfloat16": (job_of(model="lenet", wire="bfloat16"), digits),
    "int8": (job_of(model="linear", wire="int8"), digits),
    "batchnorm_cnn": (job_of(model="examples/batchnorm_cnn.py:build", global_batch=8), digits),
}


#: Those that are computed in one pass: some.
PASSES = ("linear", "mlp", "lenet", "cnn", "language", "dropout", "dropping language", "noisy", "batchnorm_cnn")


@pytest.mark.parametrize("name", ALL)
def test_every_node_has_the_bits_losses_and_tally_of_its_micro_batches_one_by_one(name: str) -> None:
    job, data = ALL[name]
    compute, oracle = compute_of(job, data()), oracle_of(job, data())
    for step in range(2):
        for each in (compute, oracle):
            each.weights[:] += np.float32(0.001)
        for node in nodes(0, job.micro_batches):
            sums, tally = compute.train(step, node)
            expected, expected_tally = oracle.train(step, node)
            assert sums.tobytes() == expected.tobytes()
            assert (tally, compute.losses) == (expected_tally, oracle.losses)


@pytest.mark.parametrize(
    ("layers", "job", "data"),
    [
        (lambda: dropping(nn.Dropout(0.4)), job_of(model="mlp", global_batch=24), digits),
        (observing, job_of(model="mlp", global_batch=24), digits),
        (of_a_table, replace(OTHER_JOBS["table"][0], micro_batches=4, global_batch=20), OTHER_JOBS["table"][1]),
    ],
    ids=("draws", "observes", "observes of two targets"),
)
def test_what_is_drawn_and_observed_is_that_of_the_engine_itself(
    layers: Callable[[], list[nn.Module]], job: Job, data: Callable[[], TrainTest]
) -> None:
    kinds = (nn.Sequential, OfItsOwn)
    models = [AutogradModel(kind(*layers()), warm_up=0) for kind in kinds]
    weights = models[0].first_weights(3)
    compute, oracle = (Compute(job, model, data()) for model in models)
    assert compute.engine.obstacle is None
    assert "OfItsOwn" in str(oracle.engine.obstacle)
    for each in (compute, oracle):
        each.weights[:] = weights
    sums = []
    for step in range(2):
        for node in nodes(0, 4):
            sums.append(compute.train(step, node)[0].tobytes())
            assert sums[-1] == oracle.train(step, node)[0].tobytes()
    assert {1, 2} <= {count for (count, _), made in passes(compute).items() if made is not None}
    assert len(set(sums)) == len(sums)


def test_statistics_go_where_the_engine_writes_after_a_pass_wrote_them_elsewhere() -> None:
    job = job_of(model=dict(describe(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10)))))
    job = replace(job, global_batch=22, micro_batches=4)  # of 5, 6, 5 and 6 samples
    compute, oracle = Compute(job, AutogradModel(build_model(job.model), warm_up=2), digits()), oracle_of(job)
    compute.weights[:] = oracle.weights
    for micro_batch in (0, 2, 0, 2, 1, 0, 3):
        node = Node(micro_batch, micro_batch + 1)
        assert compute.train(0, node)[0].tobytes() == oracle.train(0, node)[0].tobytes()
    assert [samples for _, samples in passes(compute)] == [5]


def test_statistics_go_where_the_engine_writes_after_a_pass_has_added_to_them() -> None:
    job = job_of(model=dict(describe(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10)))))
    job = replace(job, global_batch=9, micro_batches=7)  # of 1, 1, 1, 2, 1, 1 and 2 samples
    compute, oracle = Compute(job, AutogradModel(build_model(job.model), warm_up=3), digits()), oracle_of(job)
    compute.weights[:] = oracle.weights
    # The pass for 2 samples is there when a micro-batch of one, and then others, are still computed without one.
    for lo, hi in ((3, 4), (3, 4), (3, 4), (3, 4), (2, 4), (0, 1), (0, 4), (4, 7), (0, 4)):
        assert compute.train(0, Node(lo, hi))[0].tobytes() == oracle.train(0, Node(lo, hi))[0].tobytes(), (lo, hi)


def test_it_is_made_once_the_shape_was_met_often_enough_to_be_worth_it() -> None:
    job = job_of(model="linear")
    compute = Compute(job, AutogradModel(build_model("linear"), warm_up=2), digits())
    for step, expected in ((0, 0), (0, 0), (1, 1), (1, 1)):
        compute.train(step, Node(0, 1))
        assert len(passes(compute)) == expected


def test_the_four_models_and_others_are_computed_in_one_pass_and_what_observes_its_batch_is_not() -> None:
    found = {}
    for name in PASSES:
        job, data = ALL[name]
        compute = compute_of(job, data())
        compute.train(0, Node(0, 2))
        found[name] = any(made is not None for made in passes(compute).values())
    assert all(found.values()), found


def test_weights_and_sums_may_be_anywhere_and_move() -> None:
    job = job_of(model="mlp", global_batch=8)
    size = compute_of(job).layout.size
    places = tuple(np.zeros(size, np.float32) for _ in range(2))
    compute, oracle = Compute(job, AutogradModel(build_model("mlp"), warm_up=0), digits(), sums=places), oracle_of(job)
    for step, into in ((0, 0), (1, 1), (2, 0), (3, 1)):
        for each in (compute, oracle):
            if step == 2:
                each.move((np.zeros(size, np.float32), np.zeros(size, np.float32)))
        for each in (compute, oracle):
            each.slots[step % 2][:] = np.random.default_rng(step).normal(0, 0.05, size)
        compute.turn(step, into=into)
        oracle.turn(step)
        for node in (Node(0, 4), Node(2, 4), Node(1, 2)):
            sums = compute.train(step, node)[0]
            assert sums is places[into]
            assert sums.tobytes() == oracle.train(step, node)[0].tobytes()


def test_frames_of_several_micro_batches_are_sent_once_each_with_the_bits_of_the_sums() -> None:
    job = job_of(model="mlp", global_batch=8)
    size = compute_of(job).layout.size
    frames = [Slice(start, min(start + 65536, size)) for start in range(0, size, 65536)]
    compute, oracle = compute_of(job, frames=frames), oracle_of(job)
    for node in (Node(0, 4), Node(0, 4), Node(3, 4)):
        sent: list[tuple[int, bytes]] = []
        compute.train(0, node, lambda start, words, sent=sent: sent.append((start, words.tobytes())))  # type: ignore[misc]
        expected = oracle.train(0, node)[0]
        assert sorted(sent) == [(frame.start, frame.of(expected).tobytes()) for frame in frames]


def test_what_is_not_finite_names_its_micro_batch_and_layer_and_leaves_the_next_as_it_was() -> None:
    job = job_of(model="mlp")
    compute, oracle = compute_of(job), oracle_of(job)
    compute.train(0, Node(0, 4))
    good = compute.weights.copy()
    for name, value, quantity in (
        ("3.bias", np.inf, "loss"),
        ("5.weight", 3e38, "loss"),
        ("3.weight", 1e36, "gradient"),
    ):
        errors = []
        for each in (compute, oracle):
            each.layout.read(each.weights)[name][:] = value
            with pytest.raises(NotFiniteError) as raised:
                each.train(0, Node(0, 4))
            errors.append((raised.value.micro_batch, raised.value.layer, raised.value.quantity, list(each.losses)))
            each.weights[:] = good
        assert errors[0] == errors[1]
        assert errors[0][2] == quantity or name != "3.bias"
        assert compute.train(0, Node(0, 4))[0].tobytes() == oracle.train(0, Node(0, 4))[0].tobytes()


@pytest.mark.parametrize("more", range(3))
def test_a_pass_that_is_not_wanted_stops_within_a_micro_batch_with_nothing_sent(more: int) -> None:
    job = job_of(model="mlp")
    frames = [Slice(0, 65536), Slice(65536, compute_of(job).layout.size)]
    compute, oracle = compute_of(job, frames=frames), oracle_of(job)
    compute.train(0, Node(0, 4))
    asked, sent = [0], list[int]()

    def is_wanted() -> bool:
        asked[0] += 1
        return asked[0] <= more

    compute.is_wanted = is_wanted
    with pytest.raises(StoppedError) as stopped:
        compute.train(1, Node(0, 4), lambda start, words: sent.append(start))
    assert (stopped.value.computed, asked[0], sent) == (more + 1, more + 1, [])
    compute.is_wanted = lambda: True
    assert compute.train(1, Node(0, 4))[0].tobytes() == oracle.train(1, Node(0, 4))[0].tobytes()


@pytest.mark.parametrize(("micro_batches", "length"), [(1, 5), (2, 1), (4, 3), (4, 17), (8, 100)])
def test_as_often_as_between_micro_batches_it_is_asked_whether_the_rest_is_wanted(
    micro_batches: int, length: int
) -> None:
    compute = compute_of(job_of())
    counted = list[int]()
    attempt = compute._attempt
    attempt.begin()
    compute.is_wanted = partial(_count, counted)
    advance = attempt.over(micro_batches, length)
    for _ in range(length):
        advance()
    assert len(counted) == micro_batches - 1


def _count(counted: list[int]) -> bool:
    counted.append(1)
    return True


def test_the_memory_of_a_pass_grows_with_its_samples_and_not_with_its_number_of_gradients() -> None:
    taken = {}
    for micro_batches in (2, 4, 8):
        compute = compute_of(job_of(model="mlp", global_batch=32, micro_batches=micro_batches))
        compute.train(0, Node(0, micro_batches))
        made = passes(compute)[next(key for key in passes(compute) if passes(compute)[key] is not None)]
        assert made is not None
        taken[micro_batches] = made.program.nbytes
    # All have 32 samples; with more micro-batches there are more gradients, and two more of them exist at once.
    gradient = 4 * 784 * 512
    assert taken[8] - taken[2] < 2.5 * gradient
    assert taken[8] < 5 * gradient


@pytest.mark.parametrize(("steps", "is_proven"), [(LONG, True), (LONG - 1, False)])
def test_what_a_long_run_needs_is_proven_before_its_first_step(steps: int, is_proven: bool) -> None:
    job = job_of(model="mlp", micro_batches=8, global_batch=32, steps=steps)
    compute, node = Compute(job, AutogradModel(build_model(job.model)), digits()), Node(2, 4)
    compute.weights[:] = AutogradModel(build_model(job.model)).first_weights(job.seed)
    compute.prove(node)
    assert [*passes(compute)] == ([(2, 4)] if is_proven else [])
    sums, tally = compute.train(3, node)
    expected, expected_tally = oracle_of(job).train(3, node)
    assert (sums.tobytes(), tally) == (expected.tobytes(), expected_tally)


def test_a_proof_leaves_sums_alone_that_others_may_still_read() -> None:
    job = job_of(model="mlp", micro_batches=8, global_batch=32, steps=LONG)
    model = AutogradModel(build_model(job.model))
    shown = model.layout.new_vector()
    shown[:] = 3.0
    compute = Compute(job, model, digits(), sums=(shown,))
    compute.prove(Node(2, 4))
    assert passes(compute)
    assert (shown == 3.0).all()
