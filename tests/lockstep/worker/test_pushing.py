"""Sums of several frames are pushed frame by frame, each as soon as it is final: what is pushed is what is returned."""

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import layout_of
from lockstep.common.aggregation.slices import FRAME, Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.module import Module, Parameter
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Lease, Result, SumsFrame, Weights, WorkerMessage
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError
from tests.lockstep.worker.test_compute import compute_of
from tests.lockstep.worker.test_shell import Bench
from tests.simulation.small import JOBS, WIDE_SIZE, digits, job_of, wide_net

#: Three frames, of which the first two hold the first layer's weights.
MLP = job_of(model=wide_net(), micro_batches=4)


def pushed(compute: Compute, node: Node, step: int = 0) -> tuple[list[int], bytes, bytes]:
    """Return where the frames began in the order of their pushes, what was in them then, and the sums at the end."""
    frames: dict[int, bytes] = {}

    def send(start: int, words: Vector) -> None:
        assert start not in frames, "sent twice"
        frames[start] = words.tobytes()

    sums, _ = compute.train(step, node, send)
    return list(frames), b"".join(frames[start] for start in sorted(frames)), sums.tobytes()


@pytest.mark.parametrize("node", [Node(0, 1), Node(3, 4), Node(0, 2), Node(0, 4)], ids=str)
def test_what_is_pushed_is_final(node: Node) -> None:
    compute, plain = compute_of(MLP), compute_of(MLP)
    _, frames, sums = pushed(compute, node)
    assert frames == sums == plain.train(0, node)[0].tobytes()


@pytest.mark.parametrize("name", JOBS)
def test_models_of_any_kind_push_all_their_frames(name: str) -> None:
    compute, plain = compute_of(JOBS[name]), compute_of(JOBS[name])
    for step in (0, 2):
        for node in (Node(1, 2), Node(0, 2)):
            _, frames, sums = pushed(compute, node, step)
            assert frames == sums == plain.train(step, node)[0].tobytes()


def test_the_end_of_the_vector_is_pushed_first() -> None:
    starts, _, _ = pushed(compute_of(MLP), Node(1, 2))
    assert starts[0] == 2 * FRAME
    assert sorted(starts) == [0, FRAME, 2 * FRAME]


def test_the_first_push_comes_while_backward_is_on_its_way() -> None:
    compute = compute_of(MLP)
    first = compute.layout.parameters[0].view(compute.into)
    states: list[bool] = []

    def send(start: int, words: Vector) -> None:
        states.append(bool(np.isnan(first).any()))

    compute.into.fill(np.nan)
    compute.train(0, Node(0, 1), send)
    assert states[0]
    assert not states[-1]


def test_a_loss_that_is_not_finite_pushes_nothing() -> None:
    compute = compute_of(MLP)
    compute.weights.fill(np.nan)
    with pytest.raises(NotFiniteError):
        compute.train(0, Node(0, 1), lambda start, words: pytest.fail("pushed"))


class Rooted(Module):
    """Three frames of weights, behind them a parameter whose gradient is not finite as long as it is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(784, 784)
        self.scale = Parameter(np.zeros(10, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1))[:, :10] + (self.scale * self.scale) ** 0.5


@pytest.mark.parametrize("node", [Node(1, 2), Node(0, 2)], ids=str)
@pytest.mark.parametrize("is_pushing", [False, True])
@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
def test_a_gradient_that_is_not_finite_is_not_pushed_and_the_next_one_has_its_bits(
    node: Node, is_pushing: bool, wire: str
) -> None:
    def made() -> Compute:
        return Compute(job_of(wire=wire), AutogradModel(Rooted()), digits())

    compute, fresh, starts = made(), made(), list[int]()
    send = (lambda start, words: starts.append(start)) if is_pushing else None
    with pytest.raises(NotFiniteError) as raised:
        compute.train(0, node, send)
    assert (raised.value.micro_batch, raised.value.layer, raised.value.quantity) == (node.lo, "scale", "gradient")
    assert 2 * FRAME not in starts
    for good in (compute, fresh):
        good.weights[:] = 0.01
    assert pushed(compute, node)[1:] == pushed(fresh, node)[1:]


class Tied(Module):
    """A layer that is used twice; its weights are three frames long."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 1300)
        self.inner = nn.Linear(1300, 1300)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(F.relu(self.inner(self.first(x.flatten(1)))))
        return hidden[:, :10]


def test_a_parameter_that_is_used_twice_is_pushed_after_its_last_use() -> None:
    def made() -> Compute:
        compute = Compute(job_of(), AutogradModel(Tied()), digits())
        compute.weights[:] = np.linspace(-0.01, 0.01, compute.layout.size, dtype=np.float32)
        return compute

    _, frames, sums = pushed(made(), Node(0, 1))
    assert frames == sums == made().train(0, Node(0, 1))[0].tobytes()


class Odd(Module):
    """A layer used twice, a frozen one, one that takes no part, and one that takes part if the batch is wide enough."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(784, 12)
        self.twice = nn.Linear(12, 12)
        self.unused = nn.Linear(12, 12)
        self.sometimes = nn.Linear(12, 12)
        self.last = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        with no_grad():
            features = self.frozen(x.flatten(1))
        hidden = self.twice(F.relu(self.twice(features)))
        return self.last(self.sometimes(hidden) if len(x.data) > 1 else hidden)


#: The second batch has five samples for four micro-batches, the third two: half of them are empty.
ODD = job_of(global_batch=19, micro_batches=4)


def odd(frame: int = 1000) -> Compute:
    """Return what computes the odd model's sums, in frames that end in the middle of its layers."""
    model = Odd()
    size = layout_of(model).size
    compute = Compute(ODD, AutogradModel(model), digits(), frames=list(Slice(0, size).cut(frame)))
    compute.weights[:] = np.sin(np.arange(size, dtype=np.float32)) / 8
    return compute


def alone(step: int, node: Node) -> Vector:
    """Return the sums of one process that has the engine alone, with no memory that it could have written before."""
    if len(node) > 1:
        first, second = node.halves()
        return alone(step, first) + alone(step, second)
    compute = odd()
    indices, sums = compute.batches.sampler.indices(step, node.lo), compute.layout.new_vector()
    if not len(indices):
        return sums
    images, targets = compute.batches.training(indices, step, node.lo)
    model = Odd()
    for name, parameter in model.named_parameters():
        parameter.data[...] = compute.layout.read(compute.weights)[name]
    compute.batches.objective.training_loss(model(Tensor(images)), targets)[0].backward()
    for entry, parameter in zip(compute.layout.parameters, model.parameters(), strict=True):
        if parameter.grad is not None:
            entry.view(sums)[...] = parameter.grad
    return sums


@pytest.mark.parametrize("node", [Node(0, 1), Node(1, 2), Node(0, 2), Node(0, 4)], ids=str)
@pytest.mark.parametrize("step", [0, 2])
def test_pushed_or_not_an_odd_model_has_the_bits_of_one_process(step: int, node: Node) -> None:
    expected = alone(step, node).tobytes()
    pushing, plain = odd(), odd()
    for compute in (pushing, plain):
        compute.train(0, Node(0, 4))  # leaves sums behind
        compute.into.fill(7.0)  # as does whatever had the memory before
    _, frames, sums = pushed(pushing, node, step)
    assert frames == sums == plain.train(step, node)[0].tobytes() == expected


# The runner


def weights_in_frames(bench: Bench, step: int, vector: Vector) -> None:
    for frame in bench.session.setup.compute.frames:
        bench.send(Weights(step=step, start=frame.start), frame.of(vector))


def test_a_worker_sends_parts_and_then_a_result_that_carries_the_last_one() -> None:
    bench = Bench(MLP)
    bench.enter()
    weights_in_frames(bench, 0, bench.opening.shard.weights)
    bench.port.send(bench.peer, encode(Lease(work="train", step=0, lo=2, hi=3)))
    while bench.runner.step():
        pass
    sums = np.full(WIDE_SIZE, np.nan, np.float32)
    messages = []
    while (received := bench.port.receive(None)) is not None:
        message, arrays = decode(received[1], WorkerMessage)
        messages.append(message)
        assert isinstance(message, SumsFrame | Result)
        assert (message.step, message.lo, message.hi) == (0, 2, 3)
        assert message.start is not None
        sums[message.start : message.start + len(arrays[0])] = arrays[0]
    assert [type(message) for message in messages] == [SumsFrame] * 2 + [Result]
    assert sums.tobytes() == compute_of(MLP).train(0, Node(2, 3))[0].tobytes()


def test_weights_count_once_all_their_frames_are_there() -> None:
    bench = Bench(MLP)
    bench.enter()
    frames = bench.opening.shard.frames
    for frame in frames[1:]:
        bench.send(Weights(step=0, start=frame.start), frame.of(bench.opening.shard.weights))
    assert bench.send(Lease(work="evaluate", step=0, lo=0, hi=1)) == []
    lease = Lease(work="evaluate", step=0, lo=0, hi=1, start=0)
    answers = bench.send(lease, frames[0].of(bench.opening.shard.weights))
    assert [type(answer) for answer in answers] == [Result, Result]


@pytest.mark.parametrize(("start", "size"), [(1, FRAME), (0, FRAME - 1), (2 * FRAME, FRAME), (3 * FRAME, FRAME)])
def test_a_frame_that_is_none_is_a_breach_of_the_protocol(start: int, size: int) -> None:
    bench = Bench(MLP)
    bench.enter()
    bench.send(Weights(step=0, start=start), np.zeros(size, np.float32))
    code, reason = bench.end()
    assert code == 1
    assert f"weights of {size} values from {start} on: expected" in reason


def test_what_a_server_does_not_read_is_lost_and_the_worker_goes_on() -> None:
    bench = Bench(MLP)
    bench.enter()
    weights_in_frames(bench, 0, bench.opening.shard.weights)
    for step in range(30):
        bench.port.send(bench.peer, encode(Lease(work="train", step=0, lo=step % 4, hi=step % 4 + 1)))
        while bench.runner.step():
            pass
    assert len(bench.heard()) < 30 * 4
    assert isinstance(bench.send(Lease(work="evaluate", step=0, lo=0, hi=1))[0], Result)
