"""The engine of our autograd, one micro-batch after the other; test_one_pass.py of the worker has several at once."""

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.graph import watch
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.job.objective import Objective
from lockstep.common.model.autograd import AutogradEngine, AutogradModel
from lockstep.common.model.port import DrawKey

RNG = np.random.default_rng(5)
IMAGES = RNG.standard_normal((6, 1, 4, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 6)


def engine() -> tuple[AutogradEngine, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return an engine, and the vector of sums that it writes into."""
    model = AutogradModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), warm_up=0)
    made, sums = model.engine(Objective()), np.empty(model.layout.size, np.float32)
    made.bind([model.first_weights(1)], [sums])
    return made, sums


def test_every_gradient_is_told_of_when_it_is_final_and_graphs_are_freed_on_the_way() -> None:
    made, _ = engine()
    made.forward(IMAGES, LABELS, DrawKey(0, 0, 0))
    loss, final = made._loss, list[int]()
    made.backward(final.append)
    assert sorted(final) == [0, 1, 2, 3]
    assert loss is not None
    with pytest.raises(RuntimeError, match="the graph was already released"):
        loss.backward()


def test_while_the_engine_is_watched_micro_batches_are_computed_one_by_one_with_the_same_bits() -> None:
    made, sums = engine()
    names: list[str] = []
    with watch(lambda applied: names.append(applied.primitive.name)):
        assert made.one_pass(1, 6, lambda: [(IMAGES, LABELS)]) is None
        made.forward(IMAGES, LABELS, DrawKey(0, 0, 0))
        made.backward(None)
    watched = sums.tobytes()
    assert names.count("linear") > 2
    at_once = made.one_pass(1, 6, lambda: [(IMAGES, LABELS)])
    assert at_once is not None
    at_once.images[0], at_once.targets[0] = IMAGES, LABELS
    at_once.forward(lambda: None)
    sums.fill(np.nan)
    at_once.backward(sums, lambda: None, None)
    assert sums.tobytes() == watched


def test_a_pass_is_found_by_a_process_that_the_others_overtake_meanwhile() -> None:
    model = AutogradModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), warm_up=0)
    weights, made = model.first_weights(1), model.engine(Objective())
    made.bind([weights], [np.empty(model.layout.size, np.float32)])

    def overtake(name: str, module: nn.Module, output: Tensor) -> None:
        """Write what other processes have made of the weights since."""
        weights[:] += 1

    with model.module.observe_outputs(overtake):
        at_once = made.one_pass(1, 6, lambda: [(IMAGES, LABELS)])
    assert at_once is not None
    assert made.obstacle is None
    at_once.images[0], at_once.targets[0] = IMAGES, LABELS
    losses, _ = at_once.forward(lambda: None)
    assert made.forward(IMAGES, LABELS, DrawKey(0, 0, 0)).loss == losses.item(), "both compute with the shared weights"
