"""What a process does next: its own units, then what others are late with, and never more than it has memory for."""

import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.team_memory import OWN_PARTS, ROWS, WHOLE_ROW
from lockstep.worker.team.division import OrderPlan, TeamPart
from lockstep.worker.team.progress import (
    CROWDED,
    PATIENT,
    SLEEP_S,
    UNKNOWN_S,
    ComputeNode,
    MakeSlice,
    Order,
    OrderProgress,
    OrderStage,
    OrderView,
    Steps,
    patience_of,
)

PLAN = OrderPlan(
    (TeamPart(Node(0, 2), 0), TeamPart(Node(2, 3), 1), TeamPart(Node(3, 4), 0), TeamPart(Node(4, 8), 2)), (0, 1, 2)
)
VIEW = OrderView(
    process=0,
    node=Node(0, 8),
    micro_batches=8,
    plan=PLAN,
    stages=((OrderStage.SUMS, 0), (OrderStage.UPDATE, 4)),
    seconds=[0.1, 0.2, 0.1],
    patience=PATIENT,
)

#: Nobody has found anything missing that the process need do.
NOBODY: tuple[int, ...] = ()


def begun(now: float = 10.0, **values: object) -> OrderProgress:
    return OrderProgress(replace(VIEW, **values), now)


def waiting(now: float = 10.0, **values: object) -> OrderProgress:
    """Return one that has computed its own parts at once."""
    progress = begun(now, **values)
    while not isinstance(progress.action(), OrderStage):
        progress.on_made(now)
    return progress


def test_what_is_made_in_an_order_follows_from_what_it_is() -> None:
    order = Order(number=7, work="train", step=5, node=Node(0, 8), plan=PLAN)
    sums, added = (OrderStage.SUMS, 0), (OrderStage.ADDED, 3)
    assert order.stages(3, 2, clips=True) == (sums, added)
    assert replace(order, work="audit").stages(3, 2, clips=False) == (sums, added)
    assert replace(order, work="evaluate").stages(3, 2, clips=True) == (sums,)
    steps = replace(order, steps=Steps(number=1, first=4, last=9, reads=0))
    update = (OrderStage.UPDATE, 2)
    assert steps.stages(3, 2, clips=False) == (sums, update)
    assert steps.stages(3, 2, clips=True) == (sums, (OrderStage.SQUARES, 3), update)
    other = OrderPlan(PLAN.parts, (1,))
    assert steps.following(7, other) == replace(steps, number=9, step=7, plan=other)
    assert (steps.first_number, steps.last_number) == (6, 11)
    assert (order.first_number, order.last_number) == (7, 7)


def test_sums_are_expected_once_the_slowest_has_computed_all_of_its_parts() -> None:
    assert VIEW.expected_s() == pytest.approx(4 * 0.1)
    assert replace(VIEW, seconds=[0.2, 0.2, 0.1]).expected_s() == pytest.approx(3 * 0.2)
    assert replace(VIEW, seconds=[0.2, 0.0, 0.1]).expected_s() == UNKNOWN_S


def test_its_own_parts_come_first_each_in_a_vector_of_its_own_and_then_it_looks() -> None:
    progress = begun()
    assert progress.action() == ComputeNode(Node(0, 2), 0)
    progress.on_made(10.1)
    assert (progress.action(), progress.due) == (ComputeNode(Node(3, 4), 1), 10.1)
    progress.on_made(10.2)
    assert (progress.action(), progress.due) == (OrderStage.SUMS, 10.2)


def test_who_has_no_part_looks_at_once() -> None:
    assert begun(process=3, seconds=[0.1] * 4).action() == OrderStage.SUMS


def test_stages_follow_one_another_until_all_are_done() -> None:
    progress = waiting()
    progress.on_seen((), NOBODY, 11.0)
    assert (progress.action(), progress.due, progress.is_done) == (MakeSlice(OrderStage.UPDATE, 0), 11.0, False)
    progress.on_made(11.1)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 3)
    progress.on_made(11.2)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen((), NOBODY, 11.3)
    assert progress.is_done


def test_it_looks_without_a_pause_first_and_then_now_and_then() -> None:
    progress = waiting()
    progress.on_seen([Node(4, 8)], NOBODY, 10.0)
    assert (progress.due, progress.waits_since) == (10.0, 10.0)
    now = 10.0 + PATIENT.spin_s
    progress.on_seen([Node(4, 8)], NOBODY, now)
    assert now < progress.due <= now + SLEEP_S
    assert progress.action() == OrderStage.SUMS


def test_where_processes_wait_for_a_core_it_gives_way_at_once_and_waits_longer() -> None:
    assert (patience_of(4, 4), patience_of(5, 4)) == (PATIENT, replace(CROWDED, cores=4))
    progress = waiting(patience=CROWDED)
    progress.on_seen([Node(4, 8)], NOBODY, 10.0)
    assert progress.due > 10.0
    assert progress.late > waiting().late


def test_nothing_is_taken_over_before_it_is_late() -> None:
    """The slowest needs 0.4 seconds for its parts; then others wait for a part of its time more, whoever they are."""
    progress = waiting()
    late = 10.0 + 0.4 + PATIENT.slack_s + 0.2 * PATIENT.slack
    assert waiting(process=3, seconds=[0.1, 0.2, 0.1, 0.0]).late == pytest.approx(late)  # it has computed nothing yet
    assert progress.late == pytest.approx(late)
    progress.on_seen([Node(4, 8)], [0, 1], late - 1e-3)
    assert progress.action() == OrderStage.SUMS
    assert progress.due <= progress.late


def test_one_whose_speed_nobody_knows_is_given_seconds() -> None:
    assert waiting(seconds=[0.1, 0.2, 0.0]).late >= 10.0 + 4 * UNKNOWN_S


def test_what_is_late_is_computed_by_who_is_idle_each_another_part_of_it() -> None:
    found = []
    for process in (0, 1):
        progress = waiting(process=process)
        progress.on_seen([Node(4, 8)], [0, 1], progress.late)
        found.append(progress.action())
    assert found == [ComputeNode(Node(4, 6), OWN_PARTS), ComputeNode(Node(6, 8), OWN_PARTS)]


def test_of_several_late_parts_the_idle_take_one_each() -> None:
    missing, found = [Node(2, 3), Node(4, 8)], []
    for process in (0, 3, 4):
        progress = waiting(process=process, seconds=[0.1] * 5)
        progress.on_seen(missing, [0, 3, 4], progress.late)
        found.append(progress.action())
    assert [one.node for one in found if isinstance(one, ComputeNode)] == [Node(2, 3), Node(4, 8), Node(2, 3)]
    # One of whose parts something is missing, and which comes here all the same, takes the first.
    progress = waiting(process=1, seconds=[0.1] * 5)
    progress.on_seen(missing, [0, 3, 4], progress.late)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)


def test_one_that_is_alone_left_computes_everything() -> None:
    progress, missing = waiting(), [Node(2, 3), Node(4, 8)]
    now = progress.late
    for node, row in ((Node(2, 3), OWN_PARTS), (Node(4, 8), OWN_PARTS + 1)):
        progress.on_seen(missing, [0], now)
        assert progress.action() == ComputeNode(node, row)
        progress.on_made(now)
        missing = missing[1:]
        # It waits a little before the next.
        assert progress.late > now
        now = progress.late
    progress.on_seen(missing, [0], now)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)


def test_without_a_free_vector_it_computes_the_whole_into_the_last_one() -> None:
    progress, rows = waiting(), []
    for _ in range(ROWS):
        progress.on_seen([Node(4, 8)], [0], progress.late)
        action = progress.action()
        assert isinstance(action, ComputeNode)
        rows.append((action.row, action.node))
        progress.on_made(progress.late)
    own = [(row, Node(4, 8)) for row in range(OWN_PARTS, WHOLE_ROW)]
    assert rows == own + [(WHOLE_ROW, VIEW.node)] * (ROWS - len(own))


def test_a_late_slice_is_made_by_who_is_idle_another_by_each() -> None:
    found = []
    for process in (0, 1, 2):
        progress = begun(process=process, stages=((OrderStage.ADDED, 3),))
        progress.on_made(10.0)
        progress.on_seen([1, 2], [0, 1, 2], progress.late)
        found.append(progress.action())
    assert found == [MakeSlice(OrderStage.ADDED, slice_) for slice_ in (1, 2, 1)]


def test_a_slice_that_somebody_else_makes_is_left_to_it_for_a_while() -> None:
    progress = begun(stages=((OrderStage.UPDATE, 1),))
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)
    progress.on_refused(11.0)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([0], [0], 11.0)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([0], [0], 11.0 + PATIENT.slack_s)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)


def test_others_may_take_as_long_for_a_slice_as_it_took_us() -> None:
    progress = begun(stages=((OrderStage.UPDATE, 3),))
    progress.on_made(10.5)
    assert progress.late == pytest.approx(10.5 + 0.5 + PATIENT.slack_s)
