"""What a process does next: its own units, then those of others that are not begun or late, as far as it has memory."""

import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.team_memory import OWN_PARTS, ROWS, WHOLE_ROW
from lockstep.worker.team.division import OrderPlan, TeamPart
from lockstep.worker.team.progress import (
    CROWDED,
    PATIENT,
    SHARED_S,
    SHORT_S,
    SILENT,
    SLEEP_S,
    UNKNOWN_S,
    BegunCopy,
    ComputeNode,
    MakeSlice,
    OpenPart,
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
    plan=PLAN,
    stages=((OrderStage.SUMS, 0), (OrderStage.UPDATE, 4)),
    seconds=[0.1, 0.2, 0.1],
    patience=PATIENT,
)

#: All of its parts, and those of the others, while no process has begun with them.
OPEN = [OpenPart(part) for part in PLAN.parts]
OTHERS = OPEN[1], OPEN[3]


def copied(one: OpenPart, process: int, began: float, seen: float = 0.0) -> OpenPart:
    """Return a part that a process has begun to compute, and when the process was seen to run."""
    return OpenPart(one.part, BegunCopy(process, began, seen))


def begun(now: float = 10.0, **values: object) -> OrderProgress:
    return OrderProgress(replace(VIEW, **values), now)


def looking(now: float = 10.0, **values: object) -> OrderProgress:
    """Return one that has computed its first part at once, if it has any."""
    progress = begun(now, **values)
    if progress.todo:
        progress.on_made(now)
    return progress


def waiting(now: float = 10.0, began: float = 10.0, **values: object) -> OrderProgress:
    """Return one that sees that others have begun with their parts, and has nothing to compute."""
    progress = looking(now, **values)
    progress.on_seen([copied(one, one.part.process, began) for one in OTHERS], now)
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


def test_sums_are_late_when_a_process_takes_longer_for_them_than_it_did_before() -> None:
    assert VIEW.late(OPEN[3]) == 0.0
    assert VIEW.late(copied(OPEN[3], 2, 7.0)) == pytest.approx(7.0 + 0.4 * (1 + PATIENT.slack) + PATIENT.slack_s)
    assert VIEW.late(copied(OPEN[3], 1, 7.0)) == pytest.approx(7.0 + 0.8 * (1 + PATIENT.slack) + PATIENT.slack_s)
    # If kernels have shown that their process runs, it is late as soon as they do not any more.
    for seen in (7.1, 7.3):
        found = VIEW.late(copied(OPEN[3], 1, 7.0, seen))
        assert found == pytest.approx(seen + 0.8 * SILENT + PATIENT.slack_s)
        assert replace(VIEW, has_core=False).late(copied(OPEN[3], 1, 7.0, seen)) == VIEW.late(copied(OPEN[3], 1, 7.0))
    assert VIEW.late(copied(OPEN[3], 1, 7.0, 9.9)) == VIEW.late(copied(OPEN[3], 1, 7.0))
    assert VIEW.late(copied(OPEN[3], 1, 7.0, 6.9)) == VIEW.late(copied(OPEN[3], 1, 7.0))
    unknown = replace(VIEW, seconds=[0.1, 0.2, 0.0])
    assert unknown.late(copied(OPEN[3], 2, 7.0)) >= 7.0 + 4 * UNKNOWN_S


def test_its_own_parts_come_first_each_in_a_vector_of_its_own_and_then_it_looks() -> None:
    progress = begun()
    assert progress.action() == ComputeNode(Node(0, 2), 0)
    progress.on_made(10.1)
    assert (progress.action(), progress.due) == (OrderStage.SUMS, 10.1)
    progress.on_seen(OPEN[1:], 10.1)
    assert progress.action() == ComputeNode(Node(3, 4), 1)
    progress.on_made(10.2)
    assert (progress.action(), progress.due) == (OrderStage.SUMS, 10.2)


def test_own_parts_that_another_process_has_begun_are_left_to_it() -> None:
    progress = looking()
    progress.on_seen([OPEN[1], copied(OPEN[2], 2, 9.9)], 10.0)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)
    # It began with it itself, if it was killed and has come back.
    progress = looking()
    progress.on_seen([OPEN[1], copied(OPEN[2], 0, 9.9)], 10.0)
    assert progress.action() == ComputeNode(Node(3, 4), 1)


def test_parts_that_no_process_has_begun_are_taken_over_at_once_from_the_end() -> None:
    progress, missing, found = looking(), [OPEN[1], copied(OPEN[3], 2, 10.0)], []
    progress.on_seen(missing, 10.0)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)
    for process in (0, 3, 4):
        progress = looking(process=process, seconds=[0.1] * 5)
        progress.on_seen(OTHERS, 10.0)
        found.append(progress.action())
    # Not the same ones by all, if there are several.
    assert [one.node for one in found if isinstance(one, ComputeNode)] == [Node(4, 8), Node(2, 3), Node(4, 8)]


def test_stages_follow_one_another_until_all_are_done() -> None:
    progress = waiting()
    progress.on_seen((), 11.0)
    assert (progress.action(), progress.due, progress.is_done) == (MakeSlice(OrderStage.UPDATE, 0), 11.0, False)
    progress.on_made(11.1)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 3)
    progress.on_made(11.2)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen((), 11.3)
    assert progress.is_done


def test_it_looks_without_a_pause_first_and_then_now_and_then() -> None:
    progress = waiting()
    assert (progress.due, progress.waits_since) == (10.0, 10.0)
    now = 10.0 + PATIENT.spin_s
    progress.on_seen((0,), now)
    assert now < progress.due <= now + SLEEP_S
    assert progress.action() == OrderStage.SUMS


def test_it_yields_its_core_once_it_has_looked_for_a_while_and_made_nothing() -> None:
    progress = waiting()
    assert [progress.yields_core(10.0 + wait_s) for wait_s in (0.0, 0.9 * SHORT_S, SHORT_S)] == [False, False, True]
    progress.on_seen((), 10.0)
    progress.on_made(10.0)
    progress.on_refused(10.0)
    progress.on_seen([3], 10.0)
    assert progress.yields_core(10.0 + SHORT_S)
    # It tries to make a slice that another process may be making, and has waited for it then.
    progress.on_seen([3], progress.late)
    assert not progress.yields_core(10.0 + SHORT_S)
    progress.on_refused(10.0)
    progress.on_seen([3], 10.0)
    assert progress.yields_core(10.0 + SHORT_S)
    # Not if it sleeps.
    asleep = waiting(patience=CROWDED)
    assert not asleep.yields_core(10.0 + SHORT_S)


def test_where_processes_wait_for_a_core_it_gives_way_at_once_and_waits_longer() -> None:
    assert (patience_of(4, 4), patience_of(5, 4)) == (PATIENT, replace(CROWDED, cores=4))
    progress = waiting(patience=CROWDED)
    assert progress.due > 10.0
    assert progress.late > waiting().late


def test_what_another_process_has_begun_is_computed_again_once_it_is_late() -> None:
    progress = waiting(began=9.9)
    assert progress.late == pytest.approx(9.9 + 0.2 * (1 + PATIENT.slack) + PATIENT.slack_s)
    # It has no need to know what is missing before.
    progress.on_seen((0,), progress.late - 1e-3)
    assert progress.action() == OrderStage.SUMS
    assert progress.due <= progress.late
    now = progress.late
    progress.on_seen([copied(one, one.part.process, 9.9) for one in OTHERS], now)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)
    # Then the others have to wait for that.
    assert VIEW.late(copied(OPEN[1], 0, now)) > now


def test_a_part_that_was_begun_by_a_clock_that_is_ahead_is_late_in_time() -> None:
    progress = waiting(began=9000.0)
    assert progress.late < 10.0 + 2.0
    progress.on_seen([copied(one, one.part.process, 9000.0) for one in OTHERS], progress.late)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)


def test_while_others_want_its_core_it_computes_nothing_again_for_a_while() -> None:
    progress = waiting(seconds=[0.001, 0.002, 0.001])
    missing = [copied(one, one.part.process, 10.0) for one in OTHERS]
    assert not begun().makes_again(10.0)
    assert [progress.makes_again(now) for now in (progress.late - 1e-3, progress.late)] == [False, True]
    progress.on_shared(now := 10.0 + 0.9 * SHARED_S)
    assert not progress.makes_again(now)
    progress.on_seen(missing, now)
    assert progress.action() == OrderStage.SUMS
    progress.on_shared(10.0 + SHARED_S)
    progress.on_seen(missing, 10.0 + SHARED_S + PATIENT.slack_s)
    assert progress.action() == ComputeNode(Node(2, 3), OWN_PARTS)


def test_one_that_is_alone_left_computes_everything() -> None:
    progress, missing, now = looking(), [*OPEN], 10.0
    for node, row in ((Node(0, 2), 0), (Node(3, 4), 1), (Node(4, 8), OWN_PARTS), (Node(2, 3), OWN_PARTS + 1)):
        progress.on_seen(missing, now)
        assert progress.action() == ComputeNode(node, row)
        progress.on_made(now := now + 0.1)
        missing = [one for one in missing if one.part.node != node]
    progress.on_seen(missing, now)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)


def test_without_a_free_vector_it_computes_the_whole_into_the_last_one() -> None:
    progress, rows = looking(), []
    for _ in range(ROWS):
        progress.on_seen([OPEN[3]], 10.0)
        action = progress.action()
        assert isinstance(action, ComputeNode)
        rows.append((action.row, action.node))
        progress.on_made(10.0)
    own = [(row, Node(4, 8)) for row in range(OWN_PARTS, WHOLE_ROW)]
    assert rows == own + [(WHOLE_ROW, VIEW.node)] * (ROWS - len(own))


def test_a_vector_that_is_taken_is_left_for_the_next() -> None:
    progress = looking()
    progress.on_seen([OPEN[3]], 10.0)
    progress.on_refused(10.0)
    assert (progress.action(), progress.late) == (OrderStage.SUMS, 10.0)
    progress.on_seen([OPEN[3]], 10.0)
    assert progress.action() == ComputeNode(Node(4, 8), OWN_PARTS + 1)


def test_a_late_slice_is_made_by_the_others_another_by_each() -> None:
    found = []
    for process in (0, 1, 2):
        progress = begun(process=process, stages=((OrderStage.ADDED, 3),))
        progress.on_made(10.0)
        progress.on_seen([1, 2], progress.late)
        found.append(progress.action())
    assert found == [MakeSlice(OrderStage.ADDED, slice_) for slice_ in (1, 2, 1)]


def test_a_slice_of_an_update_is_tried_at_once_since_it_has_a_lock() -> None:
    progress = begun(stages=((OrderStage.UPDATE, 3),))
    progress.on_made(10.5)
    progress.on_seen([1, 2], 10.5)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 1)


def test_one_without_slices_makes_none_unless_others_are_away_for_long() -> None:
    progress = begun(process=2, plan=OrderPlan(PLAN.parts, (0, 1)), stages=((OrderStage.UPDATE, 3),))
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([1, 2], 10.0)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([1, 2], 10.0 + CROWDED.slack_s)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 1)


def test_a_slice_that_somebody_else_makes_is_left_to_it_for_a_while() -> None:
    progress = begun(stages=((OrderStage.UPDATE, 1),))
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)
    progress.on_refused(11.0)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([0], 11.0)
    assert progress.action() == OrderStage.UPDATE
    progress.on_seen([0], 11.0 + PATIENT.slack_s)
    assert progress.action() == MakeSlice(OrderStage.UPDATE, 0)


def test_others_may_take_as_long_for_a_slice_as_it_took_us() -> None:
    progress = begun(stages=((OrderStage.ADDED, 3),))
    progress.on_made(10.5)
    assert progress.late == pytest.approx(10.5 + 0.5 + PATIENT.slack_s)
