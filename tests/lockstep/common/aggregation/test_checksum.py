"""The mark of weights: no stray bit leaves it as it was, and every weight gets its turn."""

import numpy as np
import pytest

from lockstep.common.aggregation.checksum import WINDOW, checksum_after, checksum_of, window_of
from lockstep.common.numerics.random import Purpose, generator


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_any_stray_bit_changes_the_mark(size: int) -> None:
    weights = generator(0, Purpose.CANARY).standard_normal(size, dtype=np.float32)
    before = checksum_of(weights)
    words = weights.view(np.uint32)
    for index in range(size):
        for bit in range(32):
            words[index] ^= np.uint32(1 << bit)
            assert checksum_of(weights) != before
            words[index] ^= np.uint32(1 << bit)
    assert checksum_of(weights) == before


def test_a_mark_is_the_sum_of_words_of_two_weights_and_of_the_last_one_alone() -> None:
    # 1.0 is 0x3f800000, and -2.0 is 0xc0000000.
    weights = np.array([1.0, -2.0, 1.0, -2.0, 1.0], np.float32)
    assert checksum_of(weights[:2]) == 0xC0000000_3F800000
    assert checksum_of(weights) == (2 * 0xC0000000_3F800000 + 0x3F800000) % 2**64


def test_marks_of_pieces_add_up() -> None:
    weights = generator(1, Purpose.CANARY).standard_normal(101, dtype=np.float32)
    assert (checksum_of(weights[:40]) + checksum_of(weights[40:])) % 2**64 == checksum_of(weights)


@pytest.mark.parametrize("size", [1, WINDOW, WINDOW + 1, 4 * WINDOW - 1])
def test_every_weight_gets_its_turn(size: int) -> None:
    turns = -(-size // WINDOW)
    covered = np.concatenate([np.arange(size)[window_of(step, size)] for step in range(5, 5 + turns)])
    assert sorted(covered.tolist()) == list(range(size))


def test_the_mark_after_a_step_is_that_of_its_window() -> None:
    weights = np.arange(WINDOW + 3, dtype=np.float32)
    assert checksum_after(7, weights) == checksum_of(weights[WINDOW:])
    assert checksum_after(8, weights) == checksum_of(weights[:WINDOW])
