"""int8 with a scale a block: what it is by definition, right in the mean, and exact on its way."""

import math

import numpy as np
import pytest

from lockstep.common.aggregation.quantization import BLOCK, MOST, Int8, StochasticRounding
from lockstep.common.aggregation.tree import Node, Vector
from tests.lockstep.common.aggregation.quantization.vectors import rounded, sent, spread

ONE = Node(0, 1)


def scale_of(block: Vector) -> float:
    """Return the smallest power of two of which no value of the block is more than 127."""
    most = float(np.abs(block).max())
    scale = 2.0 ** math.floor(math.log2(most / MOST))
    while most > MOST * scale:
        scale *= 2.0
    return scale


def test_each_value_becomes_one_of_the_two_steps_beside_it() -> None:
    values = spread(50 * BLOCK)
    found = rounded(Int8(), values)
    for start in range(0, values.size, BLOCK):
        block, steps = (
            values[start : start + BLOCK],
            found[start : start + BLOCK] / scale_of(values[start : start + BLOCK]),
        )
        assert np.array_equal(steps, np.rint(steps))
        assert np.abs(steps).max() <= MOST
        exact = block / scale_of(block)
        assert ((steps == np.floor(exact)) | (steps == np.ceil(exact))).all()


@pytest.mark.parametrize("most", [1.0, 127.0, 127.00001, 63.5, 63.500004, 1e-30, 3e38])
def test_the_largest_value_of_a_block_sets_its_scale(most: float) -> None:
    block = np.linspace(0, most, BLOCK, dtype=np.float32)
    found = rounded(Int8(), block)
    steps = found / scale_of(block)
    assert MOST // 2 <= steps.max() <= MOST
    assert np.array_equal(steps, np.rint(steps))


def test_blocks_have_scales_of_their_own() -> None:
    values = np.ones(3 * BLOCK, np.float32)
    values[BLOCK] = 1e6
    found = rounded(Int8(), values)
    assert found[:BLOCK].tolist() == found[2 * BLOCK :].tolist() == [1.0] * BLOCK
    assert set(found[BLOCK + 1 : 2 * BLOCK].tolist()) <= {0.0, 2.0**13}


def test_the_mean_over_many_steps_is_the_value() -> None:
    # Most values are small parts of a step: rounding to nearest would lose all of them.
    values = np.full(BLOCK, 0.003, np.float32)
    values[0], values[1:9] = 1.0, np.linspace(-0.02, 0.02, 8)
    draws = 20_000
    form, total = Int8(), np.zeros(BLOCK)
    for step in range(draws):
        total += rounded(form, values, step=step)
    step_size = 2.0**-6
    # Five times the largest deviation of a mean of so many numbers that are a step apart.
    assert np.abs(total / draws - values).max() < 5 * 0.5 * step_size / math.sqrt(draws)


def test_one_number_that_is_not_finite_takes_its_block_and_no_other() -> None:
    for bad in (np.inf, -np.inf, np.nan):
        values = spread(3 * BLOCK)
        values[BLOCK + 3] = bad
        clean = rounded(Int8(), spread(3 * BLOCK))
        for found in (rounded(Int8(), values), sent(Int8(), rounded(Int8(), values))):
            assert np.isnan(found[BLOCK : 2 * BLOCK]).all()
            assert np.array_equal(found[:BLOCK], clean[:BLOCK])
            assert np.array_equal(found[2 * BLOCK :], clean[2 * BLOCK :])


def test_the_ends_of_float32_stay_finite() -> None:
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    values = np.array([largest, -largest, 1.0, *[0.0] * (BLOCK - 3), smallest, -smallest], np.float32)
    found = rounded(Int8(), values)
    assert found[:2].tolist() == [MOST * 2.0**121, -MOST * 2.0**121]
    assert np.isfinite(found).all()
    assert set(np.abs(found[BLOCK:]).tolist()) <= {0.0, 2.0**-126}
    assert sent(Int8(), found).tobytes() == found.tobytes()


def test_there_is_no_negative_zero() -> None:
    values = np.array([-0.0, 0.0, -1e-9, 1.0], np.float32)
    found = rounded(Int8(), values)
    assert not np.signbit(found[found == 0.0]).any()
    assert sent(Int8(), found).tobytes() == found.tobytes()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 32_768, 32_769, 100_003])
def test_it_travels_exactly_in_little_more_than_a_quarter_of_the_bytes(count: int) -> None:
    values = rounded(Int8(), spread(count))
    assert sent(Int8(), values).tobytes() == values.tobytes()
    assert Int8().size(count) == count + -(-count // BLOCK)
    assert count < 1000 or Int8().size(count) <= 0.26 * values.nbytes


def numbers(seed: int = 1, step: int = 0, node: Node = ONE, start: int = 0, count: int = 64) -> list[int]:
    return [int(number) for number in StochasticRounding(seed, step, node, start).draw(count)]


def test_the_numbers_of_a_value_do_not_depend_on_the_cut() -> None:
    whole = numbers(count=4096 + 70)
    assert numbers(start=4096, count=70) == whole[4096:]
    rounding = StochasticRounding(1, 0, ONE, 0)
    assert [*rounding.draw(32), *rounding.draw(4064), *rounding.draw(70)] == whole


def test_seed_step_and_node_have_numbers_of_their_own() -> None:
    keys = [{}, {"seed": 2}, {"step": 1}, {"node": Node(0, 2)}, {"node": Node(1, 2)}, {"node": Node(2, 3)}]
    assert len({tuple(numbers(**key)) for key in keys}) == len(keys)  # type: ignore[arg-type]


def test_the_numbers_are_even_over_their_range() -> None:
    drawn = np.array(numbers(count=1 << 16))
    assert (drawn % 2 == 1).all()
    counts = np.bincount(drawn >> 12, minlength=16)
    assert np.abs(counts - 4096).max() < 5 * math.sqrt(4096)
