"""A lease runs out by what its worker, or others, took before; one who has nothing to do is not on the clock."""

from collections.abc import Sequence

import pytest

from lockstep.common.protocol.messages import Work
from lockstep.ps.coordinator.scheduling.stragglers import (
    ENOUGH,
    FLOOR_S,
    GRACE_S,
    LEAST_SLACK_S,
    NEWCOMER_S,
    RECENT,
    SHORTEST_S,
    DurationEstimate,
    LeaseTimeouts,
)

TIMEOUT_S = 60.0

WORKS: tuple[Work, ...] = ("train", "audit", "evaluate", "validate")


def made(seconds_each: list[float], *, rank: int = 0, size: int = 1, work: Work = "train") -> LeaseTimeouts:
    """Return timeouts after a worker took so many seconds per micro-batch, for leases of `size` of them."""
    timeouts, now = LeaseTimeouts(TIMEOUT_S), 0.0
    for seconds in seconds_each:
        timeouts.begin(rank, now)
        now += seconds * size
        timeouts.record(rank, work, size, now)
    return timeouts


def test_at_the_start_a_lease_lasts_as_long_as_any_may() -> None:
    timeouts = made([0.1] * (ENOUGH - 1))
    assert timeouts.timeout_s(0, "train", 1) == TIMEOUT_S
    assert timeouts.median_s(0, "train") is None


def test_one_that_is_known_gets_a_multiple_of_its_median() -> None:
    timeouts = made([1.0] * 10)
    assert timeouts.timeout_s(0, "train", 2) == pytest.approx(8.0)
    assert timeouts.median_s(0, "train") == pytest.approx(1.0)


def test_one_that_varies_gets_more() -> None:
    assert made([0.5, 1.5] * 5).timeout_s(0, "train", 1) > made([1.0] * 10).timeout_s(0, "train", 1)


def test_a_single_long_micro_batch_changes_little() -> None:
    assert made([1.0] * 9 + [50.0]).timeout_s(0, "train", 1) == pytest.approx(4.0)


def test_no_lease_is_shorter_than_the_floor_or_longer_than_the_timeout() -> None:
    assert made([0.001] * 10).timeout_s(0, "train", 1) == FLOOR_S
    assert made([100.0] * 10).timeout_s(0, "train", 8) == TIMEOUT_S


def test_a_timeout_below_the_floor_counts() -> None:
    timeouts = made([0.001] * 10)
    timeouts.limit_s = 0.1
    assert timeouts.timeout_s(0, "train", 1) == 0.1


def test_a_new_worker_goes_by_the_others_with_a_grace() -> None:
    assert made([0.01] * 10).timeout_s(7, "train", 1) == NEWCOMER_S
    assert made([4.0] * 10).timeout_s(7, "train", 1) == pytest.approx(16.0)
    assert made([4.0] * 10).median_s(7, "train") == pytest.approx(4.0)


def test_each_kind_of_work_has_its_own_pace_and_the_other_is_a_weak_hint() -> None:
    assert made([1.0] * 10, work="evaluate").timeout_s(0, "train", 1) == TIMEOUT_S
    assert made([0.001] * 10).timeout_s(0, "evaluate", 1) == GRACE_S
    assert made([0.05] * 10).timeout_s(0, "evaluate", 1) == pytest.approx(20.0)
    assert made([1.0] * 10, work="evaluate").median_s(0, "train") is None


def test_durations_are_per_micro_batch() -> None:
    assert made([1.0] * 10, size=4).median_s(0, "train") == pytest.approx(1.0)


def test_a_slow_machine_becomes_known_as_such_within_its_last_leases() -> None:
    assert made([0.1] * 100 + [3.0] * 40).median_s(0, "train") == pytest.approx(3.0)


def test_nothing_is_measured_of_a_worker_that_was_given_nothing() -> None:
    timeouts = made([1.0] * 10)
    for _ in range(ENOUGH):
        timeouts.record(5, "train", 1, 1000.0)
        timeouts.record(5, "evaluate", 1, 1000.0)
    assert timeouts.median_s(5, "train") == pytest.approx(1.0)
    assert timeouts.median_s(5, "evaluate") is None
    assert timeouts.held_s(5, 1000.0) == 0.0


def test_what_it_has_held_begins_when_it_got_work_or_brought_some() -> None:
    timeouts = LeaseTimeouts(TIMEOUT_S)
    timeouts.begin(0, 100.0)
    assert timeouts.held_s(0, 109.0) == 9.0
    timeouts.postpone(5.0)
    assert timeouts.held_s(0, 109.0) == 4.0
    timeouts.record(0, "train", 1, 110.0)
    assert timeouts.held_s(0, 111.0) == 1.0


def test_one_that_is_gone_is_forgotten() -> None:
    timeouts = made([30.0] * 10)
    timeouts.remove(0)
    assert timeouts.held_s(0, 1e6) == 0.0
    assert timeouts.timeout_s(0, "train", 1) == TIMEOUT_S  # by what others took: 120 s
    assert timeouts.median_s(0, "train") == pytest.approx(30.0)


def test_whoever_is_gone_is_new_when_it_comes_again_and_the_others_are_not() -> None:
    timeouts = made([0.001] * 10)
    timeouts.remove(1)
    assert timeouts.timeout_s(0, "train", 1) == FLOOR_S
    timeouts.remove(0)
    assert timeouts.timeout_s(0, "train", 1) == NEWCOMER_S


#: A worker, the work that it did, and the seconds that it took for a micro-batch.
Took = tuple[int, Work, float]


def recorded(often: list[Took], once: Sequence[Took] = ()) -> LeaseTimeouts:
    """Return timeouts after so many leases as make a speed known, and after others."""
    timeouts, now = LeaseTimeouts(TIMEOUT_S), 0.0
    for rank, work, seconds in [*often * ENOUGH, *once]:
        timeouts.begin(rank, now)
        now += seconds
        timeouts.record(rank, work, 1, now)
    return timeouts


def test_each_worker_has_its_own_median() -> None:
    timeouts = recorded([(0, "train", 1.0), (1, "train", 3.0)])
    assert (timeouts.median_s(0, "train"), timeouts.median_s(1, "train")) == (1.0, 3.0)


def test_an_audit_takes_as_long_as_training() -> None:
    timeouts = made([1.0] * 10, work="audit")
    assert timeouts.timeout_s(0, "train", 2) == timeouts.timeout_s(0, "audit", 2) == pytest.approx(8.0)
    assert timeouts.median_s(0, "audit") == pytest.approx(1.0)


def test_of_two_other_kinds_the_slower_one_that_is_known_is_the_hint() -> None:
    known = recorded([(0, "train", 0.0625), (0, "validate", 0.05)])
    assert known.timeout_s(0, "evaluate", 2) == pytest.approx(50.0)
    unknown = recorded([(0, "train", 0.0625)], once=[(0, "validate", 9.0)])
    assert unknown.timeout_s(0, "evaluate", 2) == pytest.approx(50.0)


def test_medians_are_those_of_the_last_leases_and_come_at_every_eighth_once_there_were_eight() -> None:
    estimate, seen = DurationEstimate(), list[float]()
    for seconds in range(1, 49):
        assert estimate.is_known() == (seconds > ENOUGH)
        estimate.add(float(seconds))
        seen.append(estimate.median_s)
    assert seen[:8] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    assert seen[8:16] == [4.5] * 7 + [8.5]
    assert seen[-9:] == [24.5] * 8 + [32.5]  # of 9 to 40, then of 17 to 48
    assert (estimate.deviation_s, estimate.bound_s(2)) == (8.0, 2 * (4 * 32.5 + 8 * 8.0))


# What the next lease is expected to take


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([3.0], 3.0),
        ([3.0, 2.0], 2.0),
        ([3.0, 2.0, 9.0], 3.0),
        ([3.0, 2.0, 9.0, 4.0], 3.0),
        ([5.0, 1.0, 9.0, 9.0, 4.0], 5.0),
        # What was longer ago than five leases is forgotten.
        ([1.0, 1.0, 5.0, 6.0, 7.0, 8.0, 9.0], 7.0),
    ],
)
def test_what_comes_next_is_expected_to_be_the_median_of_the_last_five(seconds: list[float], expected: float) -> None:
    estimate = DurationEstimate()
    for one in seconds:
        estimate.add(one)
    assert estimate.expected_s == expected
    assert made(seconds).expected_s(0, "train") == pytest.approx(expected)


def test_a_change_is_followed_within_three_leases() -> None:
    estimate, expected = DurationEstimate(), list[float]()
    for seconds in [1.0] * 6 + [2.0] * RECENT + [1.0] * 3:
        estimate.add(seconds)
        expected.append(estimate.expected_s)
    assert expected[6:11] == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert expected[11:] == [2.0, 2.0, 1.0]


def test_work_is_known_as_soon_as_anybody_has_done_any_of_its_kind() -> None:
    assert not LeaseTimeouts(TIMEOUT_S).is_known("train")
    timeouts = made([1.0])
    assert [timeouts.is_known(work) for work in WORKS] == [True, True, False, False]


def test_one_that_has_done_nothing_is_expected_to_be_like_the_others() -> None:
    timeouts = recorded([(0, "train", 1.0), (1, "train", 3.0)])
    assert [timeouts.expected_s(rank, "train") for rank in range(3)] == [1.0, 3.0, 3.0]
    assert timeouts.expected_s(1, "audit") == 3.0


def test_what_takes_no_time_at_all_can_be_divided_by_and_be_late() -> None:
    timeouts = made([0.0] * 3)
    assert (timeouts.expected_s(0, "train"), timeouts.slack_s(0, "train", 1)) == (SHORTEST_S, LEAST_SLACK_S)


def test_if_a_trial_shows_that_a_worker_has_become_quicker_what_it_took_before_does_not_count() -> None:
    timeouts = made([9.0] * 10)
    timeouts.begin(0, 200.0)
    timeouts.record(0, "train", 2, 204.0, is_trial=True)
    assert timeouts.expected_s(0, "train") == 2.0
    # For its bound all of its leases count, and so does this one.
    assert timeouts.median_s(0, "train") == 9.0


@pytest.mark.parametrize(("took_s", "is_trial", "expected"), [(4.4, True, 4.4), (4.4, False, 9.0), (4.6, True, 9.0)])
def test_a_trial_that_was_a_little_quicker_may_be_luck(took_s: float, is_trial: bool, expected: float) -> None:
    timeouts = made([9.0] * 10)
    timeouts.add(0, "train", took_s, is_trial=is_trial)
    assert timeouts.expected_s(0, "train") == expected


def test_others_are_not_expected_to_take_what_one_took_in_a_trial() -> None:
    timeouts = recorded([(0, "train", 1.0)])
    timeouts.add(1, "train", 50.0, is_trial=True)
    assert timeouts.expected_s(2, "train") == 1.0


def test_a_duration_that_is_given_is_measured_as_any_other_and_begins_nothing() -> None:
    timeouts = LeaseTimeouts(TIMEOUT_S)
    for _ in range(ENOUGH):
        timeouts.add(0, "audit", 2.0)
    assert (timeouts.expected_s(0, "train"), timeouts.median_s(0, "train"), timeouts.median_s(1, "train")) == (2, 2, 2)
    assert timeouts.held_s(0, 1000.0) == 0.0


@pytest.mark.parametrize(("rank", "size", "slack_s"), [(0, 1, 1.0), (0, 8, 1.0), (1, 1, 2.0), (1, 2, 4.0), (1, 8, 8.0)])
def test_a_lease_may_be_late_by_a_part_of_its_time_or_a_micro_batch(rank: int, size: int, slack_s: float) -> None:
    timeouts = recorded([(0, "train", 1.0), (1, "train", 8.0), (0, "train", 1.0)])
    assert timeouts.slack_s(rank, "audit", size) == slack_s


def test_what_remains_of_what_it_holds_is_what_it_takes_without_the_time_since_it_began() -> None:
    timeouts = made([2.0] * 3)
    timeouts.begin(0, 100.0)
    assert [timeouts.remaining_s(0, "train", 4, now) for now in (100.0, 103.0, 107.5, 108.0, 200.0)] == [
        8.0,
        5.0,
        0.5,
        0.0,
        0.0,
    ]


def test_what_remains_goes_by_what_its_own_worker_takes() -> None:
    timeouts = recorded([(0, "train", 1.0), (1, "train", 3.0)])
    for rank in range(2):
        timeouts.begin(rank, 100.0)
    assert [timeouts.remaining_s(rank, "train", 2, 101.0) for rank in range(2)] == [1.0, 5.0]


def test_one_that_is_to_begin_later_has_all_before_it_and_the_time_until_then() -> None:
    timeouts = made([2.0] * 3)
    timeouts.begin(0, 101.0)
    assert (timeouts.since(0, 100.0), timeouts.held_s(0, 100.0)) == (101.0, -1.0)
    assert timeouts.remaining_s(0, "train", 1, 100.0) == 3.0
    # If it is quicker than that, it took no time, and not less than none.
    for _ in range(3):
        timeouts.record(0, "train", 1, 100.5)
    assert timeouts.expected_s(0, "train") == SHORTEST_S
    assert timeouts.since(7, 100.0) == 100.0
