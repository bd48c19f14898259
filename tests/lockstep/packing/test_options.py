"""The test set is exactly its share, drawn by the seed, whatever the batches in which samples come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.packing.options import GROUP, Division, in_groups


def marks(count: int, share: float, seed: int = 0, at_once: int = GROUP) -> list[bool]:
    division, found = Division(share, seed), list[bool]()
    for begin in range(0, count, at_once):
        found += division.marks(min(at_once, count - begin)).tolist()
    return found


@given(st.integers(1, 5000), st.floats(0.0, 0.99), st.integers(0, 9))
def test_the_share_is_exact(count: int, share: float, seed: int) -> None:
    assert sum(marks(count, share, seed)) == int(share * count)


def test_it_depends_on_the_seed_and_not_on_the_batches() -> None:
    assert marks(4321, 0.3) == marks(4321, 0.3, at_once=3 * GROUP)
    assert marks(4321, 0.3) != marks(4321, 0.3, seed=1)


def test_each_part_of_a_sorted_file_gives_its_share() -> None:
    found = marks(10 * GROUP, 0.25)
    assert {sum(found[begin : begin + GROUP]) for begin in range(0, len(found), GROUP)} == {GROUP // 4}


def test_each_thousand_has_a_draw_of_its_own() -> None:
    found = marks(5 * GROUP, 0.25)
    assert len({tuple(found[begin : begin + GROUP]) for begin in range(0, len(found), GROUP)}) == 5


@pytest.mark.parametrize("sizes", [[5, 4, 12, 1], [20], [1] * 21, [7, 0, 7]])
def test_batches_become_whole_groups(sizes: list[int]) -> None:
    rows, begins = np.arange(sum(sizes)), np.cumsum([0, *sizes])
    batches = [(rows[low : low + size], -rows[low : low + size]) for low, size in zip(begins, sizes, strict=False)]
    found = list(in_groups(batches, 5))
    assert all(len(first) % 5 == 0 for first, _ in found[:-1])
    np.testing.assert_array_equal(np.concatenate([first for first, _ in found]), rows)
    np.testing.assert_array_equal(np.concatenate([second for _, second in found]), -rows)
