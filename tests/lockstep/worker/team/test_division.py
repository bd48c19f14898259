"""Assignment of nodes to processes: everything once, in few nodes, at the earliest possible time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.finishing_time import finishing_time_s
from lockstep.common.aggregation.tree import Node, is_node, largest_node_at
from lockstep.common.protocol.team_memory import OWN_PARTS
from lockstep.worker.team.division import (
    DIFFERENT,
    SLOW,
    WAITS,
    OrderPlan,
    Planner,
    Speed,
    TeamPart,
    plan_for,
)

#: Seconds of a micro-batch, by process; the first is the leader, which may be missing.
SPEEDS = st.dictionaries(st.integers(0, 15), st.floats(1e-6, 10.0), min_size=1, max_size=9)


@st.composite
def divisions(draw: st.DrawFn) -> tuple[Node, int]:
    """Return any node of any tree, and the micro-batches of that."""
    micro_batches = draw(st.integers(1, 200))
    lo = draw(st.integers(0, micro_batches - 1))
    return largest_node_at(lo, micro_batches, micro_batches, draw(st.integers(1, micro_batches))), micro_batches


@settings(derandomize=True, deadline=None)
@given(divisions(), SPEEDS)
def test_every_micro_batch_is_given_once_in_few_nodes(what: tuple[Node, int], seconds: dict[int, float]) -> None:
    node, micro_batches = what
    plan = plan_for(node, seconds)
    assert [m for part in plan.parts for m in range(part.node.lo, part.node.hi)] == list(range(node.lo, node.hi))
    assert all(is_node(part.node.lo, part.node.hi, micro_batches) for part in plan.parts)
    assert {part.process for part in plan.parts} <= set(seconds)
    assert all(len(plan.of(process)) <= OWN_PARTS for process in seconds)
    fast = [process for process in sorted(seconds) if seconds[process] < SLOW * min(seconds.values())]
    assert plan.owners == tuple(fast)


@pytest.mark.parametrize(
    ("micro_batches", "seconds"),
    [
        (8, {0: 1.0, 1: 1.0}),
        (8, {0: 1.0, 1: 1.0, 2: 1.0}),
        (7, {0: 1.0, 1: 2.0}),
        (16, {0: 1.0, 1: 1.0, 2: 1.0, 3: 3.0}),
        (32, {0: 1.0, 1: 1.0, 2: 1.0, 3: 3.0}),
        (5, {0: 3.0, 4: 1.0}),
    ],
)
def test_all_are_done_when_they_can_be_at_the_earliest(micro_batches: int, seconds: dict[int, float]) -> None:
    plan = plan_for(Node(0, micro_batches), seconds)
    took = max(sum(map(len, plan.of(process))) * each_s for process, each_s in seconds.items())
    assert took == finishing_time_s(micro_batches, [(0.0, each_s) for each_s in seconds.values()])


def test_so_many_that_each_gets_few_nodes_are_given_in_larger_pieces() -> None:
    what = Node(0, 4096)
    plan = plan_for(what, {process: 1.0 + process / 7 for process in range(9)})
    assert max(len(plan.of(process)) for process in range(9)) <= OWN_PARTS
    took = max(sum(map(len, plan.of(process))) * (1.0 + process / 7) for process in range(9))
    best = finishing_time_s(4096, [(0.0, 1.0 + process / 7) for process in range(9)])
    assert took <= 1.1 * best


def test_the_largest_part_that_is_still_to_be_given_comes_first() -> None:
    # In the other order, the second would get [4, 6) and [6, 7): more nodes, which are smaller.
    plan = plan_for(Node(0, 8), {0: 1.0, 1: 2.0})
    assert plan.parts == (TeamPart(Node(0, 4), 0), TeamPart(Node(4, 6), 0), TeamPart(Node(6, 8), 1))


def test_one_that_is_much_too_slow_gets_nothing() -> None:
    plan = plan_for(Node(0, 4), {0: 1.0, 1: 100.0})
    assert (plan.of(0), plan.of(1)) == ([Node(0, 4)], [])
    assert (plan.slices_of(0, 5), plan.slices_of(1, 5)) == ([0, 1, 2, 3, 4], [])


def test_a_slow_one_computes_what_it_can_and_makes_no_slices_on_which_all_would_wait() -> None:
    plan = plan_for(Node(0, 8), {0: 1.0, 1: 1.9, 2: 2.0})
    assert len(plan.of(2)) == 1
    assert plan.owners == (0, 1)


def test_slices_are_made_in_turn_by_the_processes_of_the_plan() -> None:
    plan = OrderPlan((TeamPart(Node(0, 1), 4),), (2, 4, 7))
    assert [plan.slices_of(process, 7) for process in (2, 4, 7, 3)] == [[0, 3, 6], [1, 4], [2, 5], []]
    assert plan.slices_of(7, 2) == []


def test_no_more_make_slices_than_there_is_room_for() -> None:
    assert plan_for(Node(0, 8), dict.fromkeys(range(5), 1.0), makers=2).owners == (3, 4)


# A plan is kept


WHAT = Node(0, 8)


def speeds(seconds: dict[int, float], load: float = 1.0) -> dict[int, Speed]:
    return {process: Speed(one, load if one else 0.0) for process, one in seconds.items()}


@pytest.mark.parametrize(
    ("then", "is_kept"),
    [
        ({0: 1.0, 1: 2.0}, True),
        ({0: 5.0, 1: 10.0 * (1 - 0.9 * DIFFERENT)}, True),
        ({0: 1.0, 1: 2.0 * (1 + 1.1 * DIFFERENT)}, False),
        ({0: 1.0, 1: 1.0}, False),
        ({0: 1.0}, False),
        ({0: 1.0, 1: 2.0, 2: 1.0}, False),
    ],
)
def test_a_plan_is_kept_as_long_as_the_same_are_as_fast(then: dict[int, float], is_kept: bool) -> None:
    planner = Planner()
    first = planner.plan(WHAT, speeds({0: 1.0, 1: 2.0}))
    assert (planner.plan(WHAT, speeds(then)) is first) == is_kept
    assert planner.plan(Node(0, 4), speeds(then)) is not first


def test_who_has_no_core_for_some_of_the_time_makes_no_slices_if_another_has_one() -> None:
    planner, least = Planner(), 2 * WAITS
    for waits, owners in (
        ((0.0, WAITS, 0.0), (0, 1, 2)),
        ((0.0, 1.1 * WAITS, 0.0), (0, 2)),
        ((0.5, 0.3, 0.59), (0, 1, 2)),
        ((least, 2.1 * least, 1.9 * least), (0, 2)),
        ((0.9, 0.9, 0.1), (2,)),
    ):
        of_all = {process: Speed(1.0, waits=one) for process, one in enumerate(waits)}
        plan = planner.plan(WHAT, of_all)
        assert plan.owners == owners
        assert planner.plan(WHAT, of_all) is plan
        assert len(plan.of(1)) > 0


def test_slices_are_for_the_fast_ones_of_those_that_are_steady() -> None:
    plan = plan_for(WHAT, {0: 1.0, 1: 2.5, 2: 3.0, 3: 5.5}, unsteady=(0,))
    assert plan.owners == (1, 2)
    assert sum(map(len, plan.of(0))) == 5


def test_small_changes_that_go_on_lead_to_another_plan_in_the_end() -> None:
    planner, seconds = Planner(), 1.0
    first = planner.plan(WHAT, speeds({0: 1.0, 1: 1.0}))
    for _ in range(20):
        seconds *= 1 + DIFFERENT / 2
        last = planner.plan(WHAT, speeds({0: 1.0, 1: seconds}))
    assert last.parts != first.parts


def test_one_of_whom_nothing_is_known_counts_as_the_fastest_and_those_nearly_as_fast_as_even() -> None:
    planner = Planner(even=1.25)
    plan = planner.plan(WHAT, speeds({0: 1.0, 1: 0.0, 2: 1.24, 3: 1.0}))
    assert [len(node) for process in range(4) for node in plan.of(process)] == [2, 2, 2, 2]
    plan = planner.plan(WHAT, speeds({0: 1.0, 1: 4.0}))
    assert [sum(map(len, plan.of(process))) for process in (0, 1)] == [7, 1]


# Where cores are short


EIGHT = dict.fromkeys(range(8), 1.0)


@pytest.mark.parametrize(
    ("seconds", "load", "workers"),
    [
        (EIGHT, 1.0, {6, 7}),
        # They wait for something else meanwhile.
        (EIGHT, 0.5, {4, 5, 6, 7}),
        (EIGHT, 0.01, set(range(8))),
        # Nothing is known yet.
        (dict.fromkeys(range(8), 0.0), 1.0, {6, 7}),
        # The fastest.
        ({**EIGHT, 6: 3.0, 7: 3.0}, 1.0, {4, 5}),
        # Only one is there.
        ({3: 1.0}, 1.0, {3}),
    ],
)
def test_as_many_compute_as_cores_allow(seconds: dict[int, float], load: float, workers: set[int]) -> None:
    plan = Planner(even=2.0, cores=2).plan(WHAT, speeds(seconds, load))
    assert plan.workers == workers
    assert len(plan.owners) == min(2, len(workers))


def test_who_computed_before_goes_on_and_is_replaced_if_he_is_slow_or_gone() -> None:
    planner = Planner(even=2.0, cores=2)
    assert planner.plan(WHAT, speeds(EIGHT), before={1, 5}).workers == {1, 5}
    assert planner.plan(WHAT, speeds({**EIGHT, 5: 1.9}), before={1, 5}).workers == {1, 5}
    assert planner.plan(WHAT, speeds({**EIGHT, 5: 2.1}), before={1, 5}).workers == {1, 7}
    gone = {process: 1.0 for process in range(7) if process != 5}
    assert planner.plan(WHAT, speeds(gone), before={1, 5}).workers == {1, 6}


def test_what_is_measured_a_little_differently_each_time_does_not_change_how_many_compute() -> None:
    planner = Planner(cores=2)
    planner.plan(WHAT, speeds(EIGHT, 0.5))
    for load in (0.4, 0.62, 0.45, 0.6):
        assert len(planner.plan(WHAT, speeds(EIGHT, load)).workers) == 4
    assert len(planner.plan(WHAT, speeds(EIGHT, 0.9)).workers) == 2
