"""Captured or by the engine, a pass over a micro-batch has the same bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd.graph import Leaf, observe
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.job.objective import Objective
from lockstep.common.model.autograd import TrainingPass
from lockstep.common.nn.layers.activations import ReLU
from lockstep.common.nn.layers.attention import TransformerEncoderLayer
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.layers.embedding import Embedding, PositionalEmbedding
from lockstep.common.nn.layers.linear import Flatten, Linear
from lockstep.common.nn.module import Module

RNG = np.random.default_rng(5)


class Own(Linear):
    """The library's layer under another name: nothing is known of it."""


def model(kind: type[Linear]) -> Module:
    return Sequential(Flatten(), kind(16, 8), ReLU(), Linear(8, 3)).initialize(1)


def gradients(made: TrainingPass, images: Array, labels: Array) -> tuple[bytes, ...]:
    for parameter in made.parameters:
        parameter.zero_grad()
    loss, logits = made.forward(images, labels)
    made.backward()
    grads = [parameter.grad for parameter in made.parameters]
    return (loss.tobytes(), logits.tobytes(), *(each.tobytes() for each in grads if each is not None))


def batch(size: int) -> tuple[Array, Array]:
    return RNG.standard_normal((size, 1, 4, 4)).astype(np.float32), RNG.integers(0, 3, size)


def passes(smoothing: float = 0.0) -> tuple[TrainingPass, TrainingPass]:
    known, own = model(Linear), model(Own)
    return (
        TrainingPass(known, list(known.parameters()), Objective(label_smoothing=smoothing)),
        TrainingPass(own, list(own.parameters()), Objective(label_smoothing=smoothing)),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captured_or_not_the_bits_are_equal(smoothing: float) -> None:
    captured, plain = passes(smoothing)
    for size in (6, 6, 5, 6, 5):
        images, labels = batch(size)
        assert gradients(captured, images, labels) == gradients(plain, images, labels)


def test_an_observer_sees_the_engine_at_work_and_changes_nothing() -> None:
    captured, plain = passes()
    names: list[str] = []

    def observer(
        primitive: Primitive, _direction: str, function: Callable[..., Any], *arrays: Any, **options: Any
    ) -> Any:
        names.append(primitive.name)
        return function(*arrays, **options)

    images, labels = batch(4)
    gradients(captured, images, labels)
    with observe(observer):
        observed = gradients(captured, images, labels)
    assert observed == gradients(plain, images, labels)
    assert names.count("linear") > 2


def test_once_captured_the_model_itself_is_no_longer_called_unless_somebody_observes_the_engine() -> None:
    captured, _ = passes()
    called: list[str] = []
    with captured.model.observe_outputs(lambda name, module, output: called.append(name)):

        def calls(size: int) -> int:
            called.clear()
            gradients(captured, *batch(size))
            return len(called)

        assert [calls(size) for size in (6, 6, 5, 5, 6)] == [5, 0, 5, 0, 0]
        with observe(lambda primitive, direction, function, *arrays, **options: function(*arrays, **options)):
            assert calls(6) == 5


def test_every_gradient_is_told_of_when_it_is_final_and_graphs_are_freed_on_the_way() -> None:
    captured, plain = passes()
    for made in (captured, captured, plain):
        final: list[Leaf] = []
        made.forward(*batch(4))
        graph = made._pending
        made.backward(final.append)
        assert set(final) == {parameter.leaf for parameter in made.parameters}
        assert len(final) == len(made.parameters)
        assert graph is not None
        with pytest.raises(RuntimeError, match="the graph was already released"):
            graph.backward()


def over_tokens(kind: type[Linear]) -> Module:
    layer = TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=True, is_causal=True)
    return Sequential(Embedding(9, 8), PositionalEmbedding(6, 8), layer, kind(8, 9)).initialize(1)


def test_attention_is_captured_with_the_same_bits() -> None:
    known, own = over_tokens(Linear), over_tokens(Own)
    objective = Objective(label_smoothing=0.1)
    captured = TrainingPass(known, list(known.parameters()), objective)
    plain = TrainingPass(own, list(own.parameters()), objective)
    for size in (5, 5, 3, 5):
        tokens = RNG.integers(0, 9, (size, 6), dtype=np.int32)
        targets = objective.targets(RNG.integers(0, 9, (size, 6)))
        assert gradients(captured, tokens, targets) == gradients(plain, tokens, targets)
    assert len(captured._captures) == 2
    assert not plain._captures


def test_a_regression_is_captured_with_the_same_bits() -> None:
    known, own = model(Linear), model(Own)
    captured = TrainingPass(known, list(known.parameters()), Objective("mse"))
    plain = TrainingPass(own, list(own.parameters()), Objective("mse"))
    for size in (6, 6, 5):
        images, _ = batch(size)
        targets = RNG.standard_normal((size, 3)).astype(np.float32)
        assert gradients(captured, images, targets) == gradients(plain, images, targets)
    assert len(captured._captures) == 2
