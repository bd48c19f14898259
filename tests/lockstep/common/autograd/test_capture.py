import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.capture import capture
from lockstep.common.autograd.graph import observe
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module

RNG = np.random.default_rng(3)


def leaf(*shape: int) -> Tensor:
    return Tensor(RNG.standard_normal(shape).astype(np.float32), requires_grad=True)


def loss_of(model: Module, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
    logits = model(Tensor(images))
    return F.cross_entropy(logits, labels, reduction="sum"), logits


def batch(size: int) -> tuple[Array, Array]:
    return RNG.standard_normal((size, 1, 28, 28)).astype(np.float32), RNG.integers(0, 10, size)


@pytest.mark.parametrize("name", MODELS)
def test_a_capture_has_the_bits_of_the_engine(name: str) -> None:
    model = MODELS[name]().initialize(1)
    parameters = list(model.parameters())
    first = batch(5)
    (loss, _), captured = capture(lambda *inputs: loss_of(model, *inputs), first, parameters)
    assert captured is not None
    for parameter in parameters:
        parameter.data = parameter.data + np.float32(0.01)  # another array: the captured must not hold on to the old
    for _ in range(2):
        images, labels = batch(5)
        model.zero_grad()
        loss, logits = loss_of(model, images, labels)
        loss.backward()
        expected = [parameter.grad for parameter in parameters]
        model.zero_grad()
        outputs = captured.forward(images, labels)
        captured.backward()
        assert outputs[0].tobytes() == loss.data.tobytes()
        assert outputs[1].tobytes() == logits.data.tobytes()
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert gradient is not None
            assert parameter.grad is not None
            assert parameter.grad.tobytes() == gradient.tobytes()


def test_gradients_are_written_into_the_buffers_of_the_moment() -> None:
    weight = leaf(3, 4)
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    _, captured = capture(lambda x: (F.linear(Tensor(x), weight).sum(),), [x], [weight])
    assert captured is not None
    for _ in range(2):
        weight.grad_buffer = np.empty((3, 4), np.float32)
        captured.forward(x)
        captured.backward()
        assert weight.grad is weight.grad_buffer
        assert weight.grad.tolist() == np.tile(x.sum(axis=0), (3, 1)).tolist()


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x = leaf(4)
    _, captured = capture(lambda: ((x * x + x * 2.0).sum(),), [], [x])
    assert captured is not None
    x.zero_grad()
    (total,) = captured.forward()
    captured.backward()
    assert total == (x.data * x.data + x.data * np.float32(2)).sum()
    assert x.grad is not None
    assert x.grad == pytest.approx(2 * x.data + 2)


def test_what_no_gradient_reaches_is_computed_all_the_same() -> None:
    x, y = leaf(3), Tensor(np.ones(3, np.float32))
    results, captured = capture(lambda: ((x * 2.0).sum(), y.exp(), x * 3.0), [], [x, y])
    assert captured is not None
    outputs = captured.forward() if captured else []
    assert [each.tolist() for each in outputs] == [each.data.tolist() for each in results]


def test_what_was_computed_past_the_engine_is_not_repeated() -> None:
    x = leaf(3)
    _, captured = capture(lambda: ((x * np.abs(x.data)).sum(),), [], [x])
    assert captured is None


def test_a_result_from_elsewhere_is_not_repeated() -> None:
    x = leaf(3)
    (_, other), captured = capture(lambda: (x.sum(), Tensor(np.ones(2))), [], [x])
    assert captured is None
    assert other.shape == (2,)


def test_what_needs_no_gradient_is_not_repeated() -> None:
    x = Tensor(np.ones(3, np.float32))
    assert capture(lambda: (x.sum(),), [], [x])[1] is None


def test_under_another_observer_nothing_is_watched() -> None:
    x = leaf(3)
    with observe(lambda _primitive, _direction, function, *arrays, **options: function(*arrays, **options)):
        (total,), captured = capture(lambda: (x.sum(),), [], [x])
    assert captured is None
    total.backward()


def test_nothing_is_kept_alive_between_two_runs_of_a_capture() -> None:
    x = leaf(1000)
    image = np.ones(1000, np.float32)
    _, captured = capture(lambda image: ((Tensor(image) * x).exp().sum(),), [image], [x])
    assert captured is not None
    captured.forward(image)
    captured.backward()
    held = [each for each in captured._values if isinstance(each, np.ndarray) and each.size > 1]
    assert held == []
