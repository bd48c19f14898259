"""The time by which all is done: against the least one that is found by trying them all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.finishing_time import ROUNDING, _even_time_s, finishing_time_s, whole

Workers = list[tuple[float, float]]

#: Times whose sums and multiples have no rounding errors: eighths of a second.
BUSY = st.integers(0, 80).map(lambda eighths: eighths / 8)
EACH = st.integers(1, 40).map(lambda eighths: eighths / 8)
EXACT = st.lists(st.tuples(BUSY, EACH), min_size=1, max_size=6)

#: Times as they are measured.
MEASURED = st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(1e-4, 60.0)), min_size=1, max_size=16)


def least_by_trial(micro_batches: int, workers: Workers) -> float:
    """Return the first of all times at which anybody finishes a micro-batch by which as many are finished."""
    ends = sorted(busy_s + done * each_s for busy_s, each_s in workers for done in range(1, micro_batches + 1))
    return ends[micro_batches - 1] if micro_batches else 0.0


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.integers(0, 40), EXACT)
def test_it_is_the_least_time_there_is(micro_batches: int, workers: Workers) -> None:
    assert finishing_time_s(micro_batches, workers) == least_by_trial(micro_batches, workers)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.integers(1, 5000), MEASURED)
def test_what_all_can_do_until_then_is_enough_and_nobody_is_waited_for_in_vain(
    micro_batches: int, workers: Workers
) -> None:
    takes_s = finishing_time_s(micro_batches, workers)
    assert sum(whole(takes_s - busy_s, each_s) for busy_s, each_s in workers) >= micro_batches
    # A moment before, somebody is still at one that is needed.
    before_s = takes_s * (1 - 1e-9) - 2 * ROUNDING * max(each_s for _, each_s in workers)
    assert sum(whole(before_s - busy_s, each_s) for busy_s, each_s in workers) < micro_batches


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 40), EXACT)
def test_the_order_of_the_workers_does_not_matter(micro_batches: int, workers: Workers) -> None:
    assert finishing_time_s(micro_batches, workers[::-1]) == finishing_time_s(micro_batches, workers)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 5000), MEASURED)
def test_if_micro_batches_could_be_divided_all_that_take_part_would_finish_together(
    micro_batches: int, workers: Workers
) -> None:
    even_s = _even_time_s(micro_batches, workers)
    done = sum(max(0.0, even_s - busy_s) / each_s for busy_s, each_s in workers)
    assert done == pytest.approx(micro_batches)


@pytest.mark.parametrize(
    ("micro_batches", "workers", "expected"),
    [
        (0, [(3.0, 1.0)], 0.0),
        (5, [(3.0, 1.0)], 8.0),
        (8, [(0.0, 1.0), (0.0, 1.0)], 4.0),
        (9, [(0.0, 1.0), (0.0, 1.0)], 5.0),
        (8, [(0.0, 1.0), (0.0, 3.0)], 6.0),
        # Who is busy for longer than the others need takes no part.
        (4, [(0.0, 1.0), (100.0, 0.5)], 4.0),
        (4, [(100.0, 0.5), (0.0, 1.0)], 4.0),
        # The one that is far slower than all others gets nothing, and the others what it would have had.
        (16, [(0.0, 1.0), (0.0, 1.0), (0.0, 50.0)], 8.0),
    ],
)
def test_cases_that_can_be_done_in_the_head(micro_batches: int, workers: Workers, expected: float) -> None:
    assert finishing_time_s(micro_batches, workers) == expected


@pytest.mark.parametrize(
    ("seconds", "each_s", "expected"),
    [(0.0, 1.0, 0), (-5.0, 1.0, 0), (2.9, 1.0, 2), (3.0, 1.0, 3), (0.3, 0.1, 3), (3.0 - 1e-7, 1.0, 3), (2.999, 1.0, 2)],
)
def test_a_micro_batch_that_fits_but_for_a_rounding_error_fits(seconds: float, each_s: float, expected: int) -> None:
    assert whole(seconds, each_s) == expected
