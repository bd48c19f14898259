"""A lease runs out by what its worker, or others, took before; one who has nothing to do is not on the clock."""

from statistics import median

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

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

RANKS = st.integers(0, 2)
WORKS: tuple[Work, ...] = ("train", "audit", "evaluate", "validate")
WORK = st.sampled_from(WORKS)

#: Sums and products of these are exact.
SECONDS = st.sampled_from([0.0, 0.0625, 0.5, 1.0, 2.0, 3.0, 8.0, 40.0])

#: The seconds of some leases, or of many that all take the same.
TAKEN = st.lists(SECONDS, max_size=25) | st.builds(lambda each_s, count: [each_s] * count, SECONDS, st.integers(3, 40))


def kind_of(work: Work) -> Work:
    """Return what a work counts as: an audit computes what training does."""
    return "train" if work == "audit" else work


def middle_of(seconds: list[float]) -> tuple[float, float]:
    """Return the median of the last 32, as of every eighth once there are eight, and that of the distances from it."""
    count = len(seconds)
    known = seconds[: count if count <= 8 else count - count % 8][-32:]
    return median(known), median([abs(one - median(known)) for one in known])


def bound_of(seconds: list[float], size: int) -> float:
    middle, deviation = middle_of(seconds)
    return size * (4.0 * middle + 8.0 * deviation)


class TimeoutsMachine(RuleBasedStateMachine):
    """Keeps all durations, and computes everything anew from them."""

    @initialize(limit_s=st.sampled_from([0.5, TIMEOUT_S]))
    def begin(self, limit_s: float) -> None:
        self.timeouts = LeaseTimeouts(limit_s)
        self.now = 100.0
        #: By rank and kind, and by kind, what was measured; and of the first, what says how long the next one takes.
        self.own: dict[tuple[int, Work], list[float]] = {}
        self.recent: dict[tuple[int, Work], list[float]] = {}
        self.all: dict[Work, list[float]] = {}
        self.since: dict[int, float] = {}

    def measure(self, rank: int, work: Work, each_s: float, *, is_trial: bool) -> None:
        key = rank, kind_of(work)
        recent = self.recent.setdefault(key, [])
        if is_trial and each_s < 0.5 * self.expected(recent):
            recent.clear()
        recent.append(each_s)
        self.own.setdefault(key, []).append(each_s)
        self.all.setdefault(key[1], []).append(each_s)

    def expected(self, seconds: list[float]) -> float:
        last = sorted(seconds[-5:])
        return last[(len(last) - 1) // 2] if last else 0.0

    @rule(rank=RANKS, ahead_s=st.sampled_from([0.0, 0.0, 2.0]))
    def get_work(self, rank: int, ahead_s: float) -> None:
        self.timeouts.begin(rank, self.now + ahead_s)
        self.since[rank] = self.now + ahead_s

    @rule(rank=RANKS, work=WORK, size=st.sampled_from([1, 2, 4]), took=TAKEN, trial=st.booleans())
    def bring(self, rank: int, work: Work, size: int, took: list[float], trial: bool) -> None:
        """Nothing is measured of a worker that was given nothing; none has taken less than no time."""
        for seconds in took:
            self.now += seconds
            self.timeouts.record(rank, work, size, self.now, is_trial=trial)
            if rank in self.since:
                self.measure(rank, work, max(0.0, self.now - self.since[rank]) / size, is_trial=trial)
                self.since[rank] = self.now

    @rule(rank=RANKS, work=WORK, each_s=SECONDS, trial=st.booleans())
    def be_told(self, rank: int, work: Work, each_s: float, trial: bool) -> None:
        self.timeouts.add(rank, work, each_s, is_trial=trial)
        self.measure(rank, work, each_s, is_trial=trial)

    @rule(rank=RANKS)
    def leave(self, rank: int) -> None:
        """What it took counts for others all the same."""
        self.timeouts.remove(rank)
        self.since.pop(rank, None)
        for key in [key for key in self.own if key[0] == rank]:
            del self.own[key], self.recent[key]

    @rule(by_s=SECONDS)
    def postpone(self, by_s: float) -> None:
        self.timeouts.postpone(by_s)
        self.since = {rank: since + by_s for rank, since in self.since.items()}

    def timeout(self, rank: int, kind: Work, size: int) -> float:
        """By what it took itself, or else the others, or else by the slowest other kind of work that is known."""
        for seconds, floor_s in ((self.own.get((rank, kind), []), FLOOR_S), (self.all.get(kind, []), NEWCOMER_S)):
            if len(seconds) >= ENOUGH:
                return max(floor_s, bound_of(seconds, size))
        others = [each for other, each in self.all.items() if other != kind and len(each) >= ENOUGH]
        return max(GRACE_S, max((100.0 * bound_of(each, size) for each in others), default=TIMEOUT_S))

    @invariant()
    def agree(self) -> None:
        timeouts, now = self.timeouts, self.now
        for rank in range(3):
            assert timeouts.since(rank, now) == self.since.get(rank, now)
            assert timeouts.held_s(rank, now) == now - self.since.get(rank, now)
            for work in WORKS:
                self.agree_on(rank, work)

    def agree_on(self, rank: int, work: Work) -> None:
        timeouts, kind, now = self.timeouts, kind_of(work), self.now
        own, everybody = self.own.get((rank, kind), []), self.all.get(kind, [])
        known = next((each for each in (own, everybody) if len(each) >= ENOUGH), None)
        assert timeouts.median_s(rank, work) == (None if known is None else middle_of(known)[0])
        for size in (1, 3):
            assert timeouts.timeout_s(rank, work, size) == min(timeouts.limit_s, self.timeout(rank, kind, size))
        assert timeouts.is_known(work) == bool(everybody)
        if everybody:
            each_s = max(SHORTEST_S, self.expected(self.recent.get((rank, kind), everybody)))
            assert timeouts.expected_s(rank, work) == each_s
            for size in (1, 2, 8):
                slack_s = max(LEAST_SLACK_S, min(everybody[-5:]), min(0.25 * size, 1.0) * each_s)
                assert timeouts.slack_s(rank, work, size) == slack_s
                left_s = size * each_s - (now - self.since.get(rank, now))
                assert timeouts.remaining_s(rank, work, size, now) == max(0.0, left_s)


TimeoutsMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=25)
TestTimeouts = TimeoutsMachine.TestCase


def test_medians_are_those_of_the_last_leases() -> None:
    estimate = DurationEstimate()
    for seconds in range(1, 49):
        estimate.add(float(seconds))
    assert (estimate.median_s, estimate.deviation_s, estimate.bound_s(2)) == (32.5, 8.0, 2 * (4 * 32.5 + 8 * 8.0))


def test_of_two_other_kinds_the_slower_one_is_the_hint() -> None:
    timeouts = LeaseTimeouts(TIMEOUT_S)
    for _ in range(ENOUGH):
        timeouts.add(0, "train", 0.0625)
        timeouts.add(0, "validate", 0.05)
    assert timeouts.timeout_s(0, "evaluate", 2) == pytest.approx(50.0)


def test_one_that_is_quicker_than_it_was_to_begin_took_no_time_and_not_less() -> None:
    timeouts = LeaseTimeouts(TIMEOUT_S)
    for _ in range(ENOUGH):
        timeouts.begin(0, 101.0)
        timeouts.record(0, "train", 1, 100.5)
    assert timeouts.median_s(0, "train") == 0.0


def test_a_change_is_followed_within_three_leases() -> None:
    estimate, expected = DurationEstimate(), list[float]()
    for seconds in [1.0] * 6 + [2.0] * RECENT + [1.0] * 3:
        estimate.add(seconds)
        expected.append(estimate.expected_s)
    assert expected[6:11] == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert expected[11:] == [2.0, 2.0, 1.0]


@pytest.mark.parametrize(("took_s", "is_trial", "expected"), [(4.4, True, 4.4), (4.4, False, 9.0), (4.6, True, 9.0)])
def test_a_trial_that_was_a_little_quicker_may_be_luck(took_s: float, is_trial: bool, expected: float) -> None:
    timeouts = LeaseTimeouts(TIMEOUT_S)
    for _ in range(10):
        timeouts.add(0, "train", 9.0)
    timeouts.add(0, "train", took_s, is_trial=is_trial)
    assert timeouts.expected_s(0, "train") == expected
