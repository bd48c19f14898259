"""Each rule gives PyTorch's numbers, and the same bits however the vector is cut."""

import itertools
import math
import re
import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.common.optim import rules
from lockstep.common.optim.rules import CHUNK, AdamRule, AdamWRule, RMSPropRule, Rule, RuleName, SGDRule, SlotSets

WEIGHTS = [0.5, -1.25, 2.0]
GRADIENTS = [[0.1, -0.2, 0.3], [-0.4, 0.05, 0.6], [0.25, 0.5, -0.75], [1.5, -0.125, 0.0]]

# The weights after four steps at lr=0.1, from torch 2.13.0+cpu, for each line by
#   p = torch.tensor(WEIGHTS, requires_grad=True); o = <optimizer>([p], lr=0.1, <options>)
#   for g in GRADIENTS: p.grad = torch.tensor(g); o.step()
#   print([float(f"{v:.9g}") for v in p.detach()])
REFERENCE: list[tuple[Rule, list[float]]] = [
    # SGD
    (SGDRule(), [0.355000049, -1.27249992, 1.98500001]),
    # SGD, weight_decay=0.05
    (SGDRule(weight_decay=0.05), [0.344949991, -1.24768555, 1.9459703]),
    # SGD, momentum=0.9
    (SGDRule(momentum=0.9), [0.376510024, -1.27727008, 1.87673008]),
    # SGD, momentum=0.9, nesterov=True, weight_decay=0.05
    (SGDRule(momentum=0.9, nesterov=True, weight_decay=0.05), [0.213337332, -1.2230767, 1.75908828]),
    # Adam
    (AdamRule(), [0.405427337, -1.17131281, 1.79966962]),
    # Adam, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.05
    (AdamRule(0.8, 0.95, 1e-4, 0.05), [0.383382142, -1.1254456, 1.77709079]),
    # AdamW
    (AdamWRule(), [0.403614372, -1.16666865, 1.79217649]),
    # AdamW, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.2
    (AdamWRule(0.8, 0.95, 1e-4, 0.2), [0.363747656, -1.09500396, 1.66643548]),
    # RMSprop
    (RMSPropRule(), [-1.00287414, -1.19291866, 0.852025628]),
    # RMSprop, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=0.05
    (RMSPropRule(0.9, 1e-3, 0.9, 0.05), [-0.38310197, -0.622783065, 0.569750905]),
]
RULES = [rule for rule, _ in REFERENCE]


def run(rule: Rule, weights: NDArray[Any], gradients: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the weights and slots after a step for each gradient."""
    state = rule.init(weights.size)
    for step, gradient in enumerate(gradients):
        new = np.full_like(weights, np.nan)
        rule.update(weights, gradient.copy(), SlotSets(state), step, 0.1, new)
        weights = new
    return {"weights": weights, **state}


@pytest.mark.parametrize(("rule", "expected"), REFERENCE, ids=str)
def test_four_steps_give_the_weights_of_pytorch(rule: Rule, expected: list[float]) -> None:
    after = run(rule, np.array(WEIGHTS, np.float32), np.array(GRADIENTS, np.float32))
    np.testing.assert_allclose(after["weights"], expected, rtol=3e-6)


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(cuts=st.lists(st.integers(0, 2 * CHUNK + 77), max_size=6), seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None, max_examples=3)
def test_the_update_of_a_vector_is_the_updates_of_its_slices(rule: Rule, cuts: list[int], seed: int) -> None:
    size = 2 * CHUNK + 77
    rng = np.random.default_rng(seed)
    weights, gradients = rng.normal(size=size).astype(np.float32), rng.normal(size=(3, size)).astype(np.float32)
    whole = run(rule, weights, gradients)
    bounds = sorted({0, *cuts, size})
    parts = [run(rule, weights[low:high], gradients[:, low:high]) for low, high in itertools.pairwise(bounds)]
    for name, vector in whole.items():
        assert np.concatenate([part[name] for part in parts]).tobytes() == vector.tobytes(), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_empty_slice_stays_empty(rule: Rule) -> None:
    assert run(rule, np.empty(0, np.float32), np.empty((2, 0), np.float32))["weights"].size == 0


@pytest.mark.parametrize("lr", [0.1, np.float64(0.1)])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_everything_stays_float32(rule: Rule, lr: float) -> None:
    weights, out = np.ones(5, np.float32), np.empty(5, np.float32)
    state = rule.init(5)
    rule.update(weights, np.ones(5, np.float32), SlotSets(state), 0, lr, out)
    assert {array.dtype for array in (out, *state.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_weights_before_stay_as_they_were(rule: Rule) -> None:
    weights = np.array(WEIGHTS, np.float32)
    rule.update(weights, np.ones(3, np.float32), SlotSets(rule.init(3)), 0, 0.1, np.empty(3, np.float32))
    assert weights.tolist() == WEIGHTS


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_update_takes_no_memory_of_its_own(rule: Rule) -> None:
    weights, gradient, out = (np.ones(25_000, np.float32) for _ in range(3))
    state = rule.init(weights.size)
    tracemalloc.start()
    try:
        rule.update(weights, gradient, SlotSets(state), 0, 0.1, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < weights.nbytes / 2


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (SGDRule(), []),
        (SGDRule(momentum=0.9), ["momentum_buffer"]),
        (AdamRule(), ["exp_avg", "exp_avg_sq"]),
        (AdamWRule(), ["exp_avg", "exp_avg_sq"]),
        (RMSPropRule(), ["square_avg"]),
        (RMSPropRule(momentum=0.5), ["square_avg", "momentum_buffer"]),
    ],
    ids=str,
)
def test_slots_have_the_names_of_pytorch(rule: Rule, names: list[str]) -> None:
    assert list(rule.init(3)) == names


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SGDRule(momentum=-0.1), "momentum is -0.1: expected a number in [0, 1)"),
        (lambda: SGDRule(nesterov=True), "nesterov without momentum: expected a momentum above 0, as 0.9"),
        (lambda: SGDRule(weight_decay=math.nan), "weight_decay is nan: expected a finite number of at least 0"),
        (lambda: AdamRule(beta1=1.0), "beta1 is 1.0: expected a number in [0, 1)"),
        (lambda: AdamRule(beta2=1.0), "beta2 is 1.0: expected a number in [0, 1)"),
        (lambda: AdamRule(weight_decay=math.inf), "weight_decay is inf: expected a finite number of at least 0"),
        (lambda: AdamWRule(eps=-1.0), "eps is -1.0: expected a finite number of at least 0"),
        (lambda: AdamWRule(eps=math.inf), "eps is inf: expected a finite number of at least 0"),
        (lambda: RMSPropRule(alpha=1.5), "alpha is 1.5: expected a number in [0, 1)"),
        (lambda: RMSPropRule(momentum=math.nan), "momentum is nan: expected a number in [0, 1)"),
        (lambda: RMSPropRule(eps=-0.5), "eps is -0.5: expected a finite number of at least 0"),
        (lambda: RMSPropRule(weight_decay=-0.5), "weight_decay is -0.5: expected a finite number of at least 0"),
    ],
)
def test_options_out_of_range_are_named(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make()


def test_options_may_be_at_the_ends_of_their_ranges() -> None:
    assert SGDRule(0.0, weight_decay=0.0).init(2) == {}
    for rule in (AdamRule(0.0, 0.0, 0.0, 0.0), AdamWRule(0.0, 0.0, 0.0, 0.0), RMSPropRule(0.0, 0.0, 0.0, 0.0)):
        # With nothing kept and nothing added, each step is as long as the learning rate.
        assert run(rule, np.ones(2, np.float32), np.array([[2.0, -3.0]], np.float32))["weights"].tolist() == (
            np.array([0.9, 1.1], np.float32).tolist()
        )


def test_the_names_in_types_are_those_of_the_registered_rules() -> None:
    assert get_args(RuleName) == tuple(rules.RULES)


def test_the_rules_with_a_hyperparameter_are_named() -> None:
    assert rules.rules_with("nesterov") == "sgd"
    assert rules.rules_with("eps").startswith("adam, adamw")
    assert rules.rules_with("momentum").startswith("sgd and rmsprop")
