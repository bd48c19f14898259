"""An update in any slices, made in any order and again and again, has the bits of the update of the whole."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from lockstep.common.aggregation.quantization import quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdatePass, UpdateRule, UpdateStep, UpdateVectors
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.optim.rules import CHUNK, AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule

RULES = (
    SGDRule(),
    SGDRule(momentum=0.9, nesterov=True, weight_decay=0.05),
    AdamRule(weight_decay=0.05),
    AdamWRule(),
    RMSPropRule(momentum=0.9),
)

#: More than a chunk; the last values are running statistics, and begin within a block.
SIZE, TRAINED = 3 * CHUNK + 21 * BLOCK + 77, 3 * CHUNK + 20 * BLOCK + 13
WHOLE = Slice(0, SIZE)


def memory(rule: Rule, wire_weights: str, *, is_doubled: bool) -> UpdatePass:
    first = generator(1, Purpose.CANARY).standard_normal(SIZE, dtype=np.float32)
    quantization = quantization_of(wire_weights, 7, TRAINED)
    weights = first, np.full(SIZE, np.nan, np.float32)
    served = weights if quantization.is_exact else (first.copy(), np.full(SIZE, np.nan, np.float32))
    state = rule.init(TRAINED)
    other = {name: np.full_like(slot, np.nan) for name, slot in state.items()} if is_doubled else state
    momenta = np.linspace(0.1, 0.9, SIZE - TRAINED, dtype=np.float32)
    made = UpdateRule(rules=[(TRAINED, rule)], parameter_size=TRAINED, momenta=momenta, wire_weights=quantization)
    return UpdatePass(made, UpdateVectors(weights=weights, served=served, slots=(state, other)))


def terms_of(step: int, count: int) -> list[Vector]:
    return list(generator(2 + step, Purpose.CANARY).standard_normal((count, SIZE), dtype=np.float32))


def step_of(step: int, *, is_doubled: bool, scale: float | None) -> UpdateStep:
    reads = step % 2 if is_doubled else 0
    writes = 1 - reads if is_doubled else 0
    return UpdateStep(step=step, divisor=37 + step, rate=0.1, scale=scale, reads=reads, writes=writes)


def bits_of(updating: UpdatePass, steps: int, *, is_doubled: bool) -> list[bytes]:
    vectors = updating.vectors
    slots = vectors.slots[steps % 2 if is_doubled else 0]
    return [one[steps % 2].tobytes() for one in (vectors.weights, vectors.served)] + [
        slots[name].tobytes() for name in sorted(slots)
    ]


@pytest.mark.parametrize(
    ("rule", "wire_weights"),
    [*((rule, "float32") for rule in RULES), *((RULES[-1], name) for name in ("bfloat16", "int8"))],
    ids=str,
)
@given(
    cuts=st.lists(st.integers(1, SIZE // BLOCK), max_size=4, unique=True),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([None, 0.37]),
    terms=st.integers(1, 2),
)
@settings(derandomize=True, deadline=None, max_examples=2)
def test_slices_made_in_any_order_and_again_have_the_bits_of_the_whole(
    rule: Rule, wire_weights: str, cuts: list[int], order: random.Random, scale: float | None, terms: int
) -> None:
    whole = memory(rule, wire_weights, is_doubled=False)
    cut = memory(rule, wire_weights, is_doubled=True)
    bounds = sorted({0, SIZE, *(place * BLOCK for place in cuts)})
    parts = [Slice(low, high) for low, high in itertools.pairwise(bounds)]
    for step in range(3):
        sums = terms_of(step, terms)
        assert whole.run(step_of(step, is_doubled=False, scale=scale), WHOLE, sums) is None
        repeated = [*parts, *parts[::2]]
        order.shuffle(repeated)
        for part in repeated:
            assert cut.run(step_of(step, is_doubled=True, scale=scale), part, [part.of(term) for term in sums]) is None
    assert bits_of(cut, 3, is_doubled=True) == bits_of(whole, 3, is_doubled=False)


def test_each_part_of_the_values_has_its_rule_and_clipping_adds_up_the_same_blocks() -> None:
    first, second, place = AdamRule(weight_decay=0.1), AdamRule(), BLOCK + 1001
    mixed, ones, others = (memory(rule, "float32", is_doubled=False) for rule in (first, first, second))
    mixed.rule = replace(mixed.rule, rules=[(place, first), (TRAINED, second)])
    for step in range(2):
        at, sums = step_of(step, is_doubled=False, scale=0.5), terms_of(step, 2)
        for updating in (mixed, ones, others):
            assert updating.run(at, WHOLE, sums) is None
    expected = [
        np.concatenate([one[:place], other[place:]]) for one, other in zip(*map(held, (ones, others)), strict=True)
    ]
    assert [array.tobytes() for array in held(mixed)] == [array.tobytes() for array in expected]
    blocks = [[chunk.start for chunk in updating.trained_chunks(WHOLE)] for updating in (mixed, ones)]
    assert blocks[0] == blocks[1]


def held(updating: UpdatePass) -> list[Vector]:
    return [updating.vectors.weights[0], *updating.vectors.slots[0].values()]


def test_if_nothing_counts_weights_follow_a_mean_of_zero_and_statistics_stay() -> None:
    updating = memory(SGDRule(weight_decay=0.5), "float32", is_doubled=False)
    before = updating.vectors.weights[0].copy()
    at = structs.replace(step_of(0, is_doubled=False, scale=None), divisor=0.0)
    assert updating.run(at, WHOLE, [np.zeros(SIZE, np.float32)]) is None
    after = updating.vectors.weights[1]
    np.testing.assert_array_equal(after[TRAINED:], before[TRAINED:])
    np.testing.assert_allclose(after[:TRAINED], 0.95 * before[:TRAINED], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 64, 2**30, 3, 37])
def test_the_mean_is_the_sum_divided_even_where_that_is_a_multiplication(count: int) -> None:
    updating = memory(SGDRule(), "float32", is_doubled=False)
    sums = np.array([1e-38, -1e-44, 0.0, -0.0, np.inf, np.nan, 3.4e38, 1.0], np.float32)
    (chunk,) = updating.chunks(Slice(0, 8))
    with np.errstate(all="ignore"):
        mean, expected = updating.mean(chunk, [sums], count), sums / np.float32(count)
    assert mean.tobytes() == expected.tobytes()


def test_the_first_value_that_is_not_finite_is_named_by_its_place() -> None:
    updating = memory(SGDRule(), "float32", is_doubled=False)
    sums = terms_of(0, 1)
    at = step_of(0, is_doubled=False, scale=None)
    sums[0][CHUNK - 1] = 3e38  # whose square is not finite, while it is
    assert updating.run(at, WHOLE, sums) is None
    sums[0][CHUNK + 3] = sums[0][CHUNK + 9] = np.inf
    assert updating.run(at, WHOLE, sums) == CHUNK + 3
    first = Slice(0, CHUNK)
    assert updating.run(at, first, [first.of(term) for term in sums]) is None
