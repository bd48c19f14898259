"""The notebook's optimizers do to parameters what the rules do to flat vectors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.optim import optimizers as optim
from lockstep.common.optim.rules import CHUNK, AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule, SlotSets

PAIRS: list[tuple[Callable[..., optim.Optimizer], dict[str, Any], Rule]] = [
    (optim.SGD, {"lr": 0.1}, SGDRule()),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, SGDRule(momentum=0.9, nesterov=True)),
    (optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, SGDRule(weight_decay=0.1)),
    (optim.Adam, {"lr": 0.1}, AdamRule()),
    (optim.Adam, {"lr": 0.1, "weight_decay": 0.1}, AdamRule(weight_decay=0.1)),
    (optim.AdamW, {"lr": 0.1}, AdamWRule()),
    (
        optim.AdamW,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2},
        AdamWRule(0.8, 0.95, 1e-4, 0.2),
    ),
    (optim.RMSprop, {"lr": 0.1}, RMSPropRule()),
    (
        optim.RMSprop,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1},
        RMSPropRule(0.9, 1e-3, 0.5, 0.1),
    ),
]


@dataclass
class Leaf:
    """An array with a gradient, as a parameter has."""

    data: NDArray[Any]
    grad: NDArray[Any] | None = field(default=None)


def leaf(*shape: int, dtype: Any = np.float32) -> Leaf:
    return Leaf(np.random.default_rng(0).normal(size=shape).astype(dtype))


@pytest.mark.parametrize(("make", "options", "rule"), PAIRS)
def test_parameters_get_the_bits_of_one_flat_vector(
    make: Callable[..., optim.Optimizer], options: dict[str, Any], rule: Rule
) -> None:
    leaves = [leaf(3, 4), leaf(5), leaf(), leaf(2 * CHUNK + 7)]
    flat = np.concatenate([part.data.reshape(-1) for part in leaves])
    state = rule.init(flat.size)
    optimizer = make(leaves, **options)
    for step in range(3):
        for part in leaves:
            part.grad = np.cos(part.data) + np.float32(step)
        gradient = np.concatenate([np.asarray(part.grad).reshape(-1) for part in leaves])
        optimizer.step()
        new = np.empty_like(flat)
        rule.update(flat, gradient, SlotSets(state), step, 0.1, new)
        flat = new
    assert np.concatenate([part.data.reshape(-1) for part in leaves]).tobytes() == flat.tobytes()


@pytest.mark.parametrize(("make", "options", "rule"), PAIRS)
def test_the_gradient_is_left_as_it_was(
    make: Callable[..., optim.Optimizer], options: dict[str, Any], rule: Rule
) -> None:
    one = leaf(4)
    one.grad = np.ones(4, np.float32)
    make([one], **options).step()
    np.testing.assert_array_equal(one.grad, 1.0)


def test_an_array_is_updated_where_it_is_whatever_its_layout() -> None:
    stored = np.ones((4, 3), np.float32)
    one = Leaf(stored.T, np.arange(12, dtype=np.float32).reshape(3, 4))
    optim.SGD([one], lr=1.0).step()
    np.testing.assert_array_equal(stored.T, 1.0 - np.arange(12).reshape(3, 4))


def test_a_parameter_without_gradient_is_not_touched_and_its_step_not_counted() -> None:
    early, late = leaf(2), leaf(2)
    optimizer = optim.Adam([late, early], lr=0.1)
    before = late.data.copy()
    early.grad = np.ones(2, np.float32)
    optimizer.step()
    np.testing.assert_array_equal(late.data, before)
    np.testing.assert_allclose(before - early.data, 0.1, rtol=1e-5)
    late.grad = np.ones(2, np.float32)
    optimizer.step()
    # The first step of Adam is of length lr, whenever it is made: the bias corrections say so.
    np.testing.assert_allclose(before - late.data, 0.1, rtol=1e-5)


def test_zero_grad_forgets_the_gradients() -> None:
    one = leaf(2)
    one.grad = np.ones(2, np.float32)
    optim.SGD([one], lr=0.1).zero_grad()
    assert one.grad is None


def test_the_rate_can_follow_a_schedule() -> None:
    one = Leaf(np.zeros(1, np.float32), np.ones(1, np.float32))
    optimizer, schedule = optim.SGD([one], lr=1.0), optim.Step(1.0, every=1, gamma=0.5)
    for step in range(3):
        optimizer.lr = schedule.rate(step)
        optimizer.step()
    assert one.data.tolist() == [-1.75]


def test_float64_stays_float64() -> None:
    one = leaf(2, dtype=np.float64)
    one.grad = np.ones(2)
    optim.Adam([one], lr=1e-12).step()
    assert one.data.dtype == np.float64
    np.testing.assert_allclose(leaf(2, dtype=np.float64).data - one.data, 1e-12, rtol=1e-3)


def test_misuse_is_named() -> None:
    one = leaf(2)
    with pytest.raises(
        ValueError, match=r"^no parameters: expected those of a model, as model\.parameters\(\); is it "
    ):
        optim.SGD([], lr=0.1)
    with pytest.raises(ValueError, match=r"^a parameter is given twice: expected each once; it would be updated twice"):
        optim.SGD([one, one], lr=0.1)
    for lr in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=rf"^lr is {lr}: expected a finite number of at least 0$"):
            optim.SGD([one], lr=lr)
    optimizer = optim.SGD([one], lr=0.0)
    optimizer.parameters.append(leaf(3))
    with pytest.raises(ValueError, match="is shorter than"):
        optimizer.step()


def test_a_rate_that_is_not_given_is_as_in_pytorch() -> None:
    made = [make([leaf(2)]) for make in (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop)]
    assert [optimizer.lr for optimizer in made] == [1e-3, 1e-3, 1e-3, 1e-2]
