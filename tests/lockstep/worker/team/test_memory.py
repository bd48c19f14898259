"""What a process of a team shows is seen once it is whole, and what is not there is not seen."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import SharingError
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.kernels.calls import shows_running
from lockstep.common.numerics.leaves import exp
from lockstep.common.protocol.team_memory import (
    ENDED_S,
    HI,
    LOSS_SUM,
    METRICS,
    ORDER,
    ORDERS,
    OWN_PARTS,
    ROWS,
    WORKS,
    TeamShape,
)
from lockstep.common.runtime.clock import ManualClock, SystemClock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.worker.team.division import OrderPlan, TeamPart, plan_for
from lockstep.worker.team.memory import (
    RESULT,
    Copies,
    Copy,
    OwnVectors,
    TeamMemory,
    write_plan,
)
from lockstep.worker.team.pace import FIRST, LEAST_LOAD, Pace
from lockstep.worker.team.progress import PATIENT, BegunCopy, ComputeNode, OpenPart, Order, Steps

SHAPE = TeamShape(processes=3, micro_batches=8, size=5000, clips=False, metrics=2)
PLAN = plan_for(Node(0, 8), {0: 1.0, 1: 1.5, 2: 4.0})


@contextmanager
def folder_in(root: Path) -> Iterator[SharedFolder]:
    folder = SharedFolder.create(root)
    try:
        yield folder
    finally:
        folder.remove()


@pytest.fixture
def team(memory: Path) -> Iterator[list[TeamMemory]]:
    """Return the memory of a team as each of its processes sees it."""
    with folder_in(memory) as folder:
        members = [TeamMemory.make(folder, SHAPE), *(TeamMemory.join(folder, SHAPE, process) for process in (1, 2))]
        yield members
        for member in members:
            member.close()


def show_row(member: TeamMemory, row: int, order: int, node: Node) -> None:
    losses = [float(micro_batch) for micro_batch in range(node.lo, node.hi)]
    tally = Tally(sum(losses), len(node), metrics=(node.lo, 0.5))
    member.show_row(ComputeNode(node, row), order, tally, losses, (1.0, 3.5))


def show(member: TeamMemory, row: int, lo: int, hi: int, order: int = 4) -> None:
    member.begin_row(ComputeNode(Node(lo, hi), row), order_of(order), 1.0)
    member.own.vectors[row][:] = 100 * lo + hi
    show_row(member, row, order, Node(lo, hi))


def begin_row(member: TeamMemory, row: int) -> None:
    member.begin_row(ComputeNode(Node(0, 8), row), order_of(5), 1.0)


def pace_of(member: TeamMemory) -> Pace:
    return Pace(member, ManualClock(), PATIENT)


def copies_of(member: TeamMemory, node: Node, number: int = 4) -> list[Copy] | None:
    """Return the sums that an order for three equal processes is put together from."""
    plan = plan_for(node, dict.fromkeys(range(3), 1.0))
    found = member.sums_of(order_of(number, node=node, plan=plan))
    return None if found is None else list(found.copies)


def test_copies_are_the_largest_that_follow_one_another_whoever_has_them(team: list[TeamMemory]) -> None:
    first, second, third = team
    show(first, 4, 0, 1)
    show(second, 5, 1, 2)
    show(third, 4, 0, 2)
    show(first, 5, 2, 4)
    assert copies_of(second, Node(0, 8)) is None
    assert copies_of(second, Node(0, 4)) == [Copy(Node(0, 2), 2, 4), Copy(Node(2, 4), 0, 5)]
    show(first, 6, 4, 8)
    copies = copies_of(second, Node(0, 8))
    assert copies is not None
    assert [copy.node for copy in copies] == [Node(0, 2), Node(2, 4), Node(4, 8)]
    assert [int(second.vector(copy.process, copy.row)[0]) for copy in copies] == [2, 204, 408]
    show(second, 7, 0, 8)
    assert copies_of(third, Node(0, 8)) == [Copy(Node(0, 8), 1, 7)]


def test_the_sums_that_were_planned_are_taken_if_all_are_there(team: list[TeamMemory]) -> None:
    order = order_of(4)
    rows = dict.fromkeys(range(3), 0)
    show(team[1], 4, 0, 8)
    for part in PLAN.parts[:-1]:
        show(team[part.process], rows[part.process], part.node.lo, part.node.hi)
        rows[part.process] += 1
    found = team[2].sums_of(order)
    assert found is not None
    assert found.copies == (Copy(Node(0, 8), 1, 4),)
    last = PLAN.parts[-1]
    show(team[last.process], rows[last.process], last.node.lo, last.node.hi)
    found = team[2].sums_of(order)
    assert found is not None
    assert [TeamPart(copy.node, copy.process) for copy in found.copies] == list(PLAN.parts)
    assert team[2].sums_of(order_of(5)) is None


def test_sums_of_one_process_are_planned_to_be_in_its_vectors_one_after_the_other(team: list[TeamMemory]) -> None:
    parts = [(0, 1, 0), (1, 2, 1), (2, 4, 0), (4, 6, 0), (6, 8, 1)]
    planned = team[2].planned(OrderPlan(tuple(TeamPart(Node(lo, hi), process) for lo, hi, process in parts), (0, 1)))
    assert [(copy.process, copy.row) for copy in planned.copies] == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]
    assert [copy.node for copy in planned.copies] == [Node(lo, hi) for lo, hi, _ in parts]


def test_what_is_covered_is_told_by_micro_batch(team: list[TeamMemory]) -> None:
    show(team[0], 0, 2, 4)
    show(team[1], 0, 3, 4)
    show(team[2], 0, 6, 7)
    assert team[0].covered(4, Node(0, 8)) == bytes([0, 0, 1, 1, 0, 0, 1, 0])
    assert team[0].covered(5, Node(0, 8)) == bytes(8)


def test_what_is_there_twice_does_not_hide_what_is_missing(team: list[TeamMemory]) -> None:
    show(team[0], 4, 0, 2)
    show(team[1], 4, 0, 2)
    assert copies_of(team[2], Node(0, 4)) is None
    show(team[1], 5, 2, 4)
    assert copies_of(team[2], Node(0, 4)) is not None
    assert copies_of(team[2], Node(0, 4), number=5) is None


@pytest.mark.parametrize("row", [0, OWN_PARTS])
def test_sums_that_are_being_written_are_not_seen(row: int, team: list[TeamMemory]) -> None:
    order = order_of(4, plan=plan_for(Node(0, 8), {0: 1.0}))
    show(team[0], row, 0, 8)
    assert team[1].sums_of(order) is not None
    begin_row(team[0], row)
    assert team[1].sums_of(order) is None


def test_parts_are_open_until_they_are_there_and_show_who_began_them_last(team: list[TeamMemory]) -> None:
    plan = OrderPlan(tuple(TeamPart(Node(lo, lo + 2), lo // 4) for lo in range(0, 8, 2)), (0, 1))
    order = order_of(4, plan=plan)
    assert team[2].open_parts(order) == [OpenPart(part) for part in plan.parts]
    show(team[2], 4, 2, 4)
    for process, row, began_s in ((1, 0, 7.0), (2, 5, 6.0)):
        team[process].begin_row(ComputeNode(Node(4, 6), row), order, began_s)
    team[0].begin_row(ComputeNode(Node(6, 8), 4), order_of(5, plan=plan), 9.0)
    first, _, third, fourth = plan.parts
    team[1].mine["seen_s"], team[2].mine["seen_s"] = 7.5, 9.5
    assert team[0].open_parts(order) == [OpenPart(first), OpenPart(third, BegunCopy(1, 7.0, 7.5)), OpenPart(fourth)]
    team[2].begin_row(ComputeNode(Node(4, 6), 6), order, 8.0)
    assert team[0].open_parts(order)[1] == OpenPart(third, BegunCopy(2, 8.0, 9.5))


def test_sums_are_made_if_a_process_has_them_alone_or_with_those_that_come_after(team: list[TeamMemory]) -> None:
    show(team[1], 0, 2, 4)
    show(team[2], 1, 4, 8)
    begin_row(team[0], 2)
    made = [node for node in (Node(2, 4), Node(2, 3), Node(4, 6), Node(0, 4), Node(3, 4)) if team[0].is_made(node, 4)]
    assert made == [Node(2, 4), Node(2, 3), Node(4, 6)]
    assert not team[0].is_made(Node(2, 4), 5)


def test_kernels_show_that_a_process_runs_in_its_own_row(team: list[TeamMemory]) -> None:
    seen, clock, values = team[0].marks.processes["seen_s"], SystemClock(), np.linspace(-2, 2, 64, dtype=np.float32)
    with shows_running(team[1].seen_at):
        began = clock.now()
        exp(values)
        ended = clock.now()
    exp(values)
    assert (seen[0], seen[2]) == (0.0, 0.0)
    assert began <= seen[1] <= ended


def test_what_belongs_to_sums_comes_with_them(team: list[TeamMemory]) -> None:
    show(team[2], 5, 4, 8)
    copies = Copies([Copy(Node(4, 8), 2, 5)])
    assert team[0].figures(copies)[:, : ENDED_S + 1].tolist() == [[22.0, 4.0, 2.5, 1.0, 3.5]]
    assert team[0].figures(copies)[:, METRICS:].tolist() == [[4.0, 0.5]]
    assert team[0].losses(copies).tolist() == [4.0, 5.0, 6.0, 7.0]
    assert team[2].has_made(order_of(4), ComputeNode(Node(4, 8), 5))
    # Whatever the node is: its vector is taken.
    assert team[2].has_made(order_of(4), ComputeNode(Node(4, 6), 5))
    assert not team[2].has_made(order_of(5), ComputeNode(Node(4, 8), 5))
    assert not team[2].has_made(order_of(4), ComputeNode(Node(4, 8), 4))


def test_a_slice_is_missing_until_somebody_has_made_it_for_this_order(memory: Path) -> None:
    shape = TeamShape(processes=3, micro_batches=8, size=60_000, clips=True)
    with folder_in(memory) as folder:
        first, second = TeamMemory.make(folder, shape), TeamMemory.join(folder, shape, 1)
        added = first.marks.added
        assert first.missing_slices(added, 4) == [0, 1, 2]
        second.show_slice(second.marks.added, 1, 4)
        first.show_slice(added, 2, 3)
        assert (first.missing_slices(added, 4), first.maker_of(added, 1, 4)) == ([0, 2], 1)
        first.close()
        second.close()


def test_who_sleeps_is_seen(team: list[TeamMemory]) -> None:
    for member, sleeps in zip(team, (0, 1, 1), strict=True):
        member.show("sleeps", sleeps)
    assert list(team[0].sleepers()) == [1, 2]


def order_of(number: int, **values: object) -> Order:
    return Order(**{"number": number, "work": "train", "step": 3, "node": Node(0, 8), "plan": PLAN, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("work", WORKS)
def test_an_order_is_read_as_it_was_given(work: str, team: list[TeamMemory]) -> None:
    order = order_of(1, work=work, memory=5, node=Node(4, 8))
    team[0].give(order)
    assert team[2].marks.newest == 1
    assert team[2].read(1) == order


def test_the_order_of_several_steps_is_read_as_it_was_given(team: list[TeamMemory]) -> None:
    order = order_of(1, steps=Steps(number=9, first=3, last=77, reads=1))
    team[0].give(order)
    assert team[1].read(1) == order


def test_the_last_orders_are_kept_and_older_ones_are_none(team: list[TeamMemory]) -> None:
    for number in range(1, ORDERS + 3):
        team[0].give(order_of(number, step=number))
    found = [team[1].read(number) for number in range(1, ORDERS + 4)]
    assert [order and order.step for order in found] == [None, None, *range(3, ORDERS + 3), None]


@pytest.mark.parametrize(
    "plan",
    [
        OrderPlan((TeamPart(Node(0, 8), 2),), (0, 1, 2)),
        OrderPlan(tuple(TeamPart(Node(m % 8, m % 8 + 1), m % 3) for m in range(3 * OWN_PARTS)), (2,)),
    ],
)
def test_a_plan_is_read_as_it_was_written_whatever_was_there_before(plan: OrderPlan, team: list[TeamMemory]) -> None:
    for number, one in enumerate((PLAN, plan, PLAN, plan), 1):
        team[0].give(order_of(number, plan=one))
        order = team[1].read(number)
        assert order is not None
        assert order.plan == one


# What others see while something is written, and what one sees of what changes while it is read


@dataclass
class Barriers:
    """What happens at the barriers of a process, one after the other; there may be no more and no fewer of them."""

    happens: list[Callable[[], object]]

    def __call__(self) -> None:
        self.happens.pop(0)()


@contextmanager
def at_barriers(member: TeamMemory, *happens: Callable[[], object]) -> Iterator[None]:
    """Let something happen at each barrier of a process."""
    barriers, before = Barriers(list(happens)), member.keep_order
    member.keep_order = barriers
    yield
    member.keep_order = before
    assert barriers.happens == []


def nothing() -> None:
    """Let nothing happen."""


def test_nobody_sees_an_order_that_is_being_written(team: list[TeamMemory]) -> None:
    leader, other = team[0], team[1]
    plan = OrderPlan((TeamPart(Node(4, 8), 2),), (2, 0))
    new = order_of(1 + ORDERS, step=77, node=Node(4, 8), plan=plan, steps=Steps(number=9, first=77, last=99, reads=1))
    leader.give(order_of(1))
    seen = list[tuple[object, ...]]()

    def look() -> None:
        cells = leader.marks.orders[1]
        seen.append((int(cells["step"]), other.read(1), other.read(new.number), other.marks.newest))

    with at_barriers(leader, look, look, look, look):
        leader.give(new)
    assert seen == [(3, None, None, 1), (77, None, None, 1), (77, None, new, 1), (77, None, new, new.number)]


def test_an_order_that_another_one_replaces_while_it_is_read_is_none(team: list[TeamMemory]) -> None:
    leader, other = team[0], team[1]
    leader.give(order_of(1))
    with at_barriers(other, nothing, lambda: leader.give(order_of(1 + ORDERS))):
        assert other.read(1) is None


def test_an_order_that_is_whole_only_after_it_was_read_is_none(team: list[TeamMemory]) -> None:
    order, cells = order_of(1), team[0].marks.orders[1]
    team[0].give(order)
    cells["order"], cells["step"] = 0, 77

    def finish() -> None:
        cells["order"], cells["step"] = 1, order.step

    with at_barriers(team[1], finish, nothing):
        assert team[1].read(1) is None
    assert team[1].read(1) == order


def test_an_order_is_read_at_once(team: list[TeamMemory]) -> None:
    order = order_of(1)
    team[0].give(order)
    with at_barriers(team[1], nothing, lambda: team[0].marks.orders["step"].fill(77)):
        assert team[1].read(1) == order


def test_a_plan_is_the_one_that_was_written_last(team: list[TeamMemory]) -> None:
    cells = team[1].written(PLAN).copy()
    assert team[1].plan_in(cells) == PLAN
    other = OrderPlan((TeamPart(Node(0, 8), 1),), (1,))
    write_plan(cells, other)
    assert team[1].plan_in(cells) == other


def test_sums_are_shown_after_all_that_belongs_to_them_and_hidden_before_they_are_written(
    team: list[TeamMemory],
) -> None:
    member, marks, seen = team[0], team[1].marks, list[tuple[list[int], float, float]]()

    def look() -> None:
        nodes: list[int] = marks.nodes[0, 0, : HI + 1].tolist()
        seen.append((nodes, float(marks.figures[0, 0, LOSS_SUM]), float(marks.losses[0, 5])))

    show(member, 0, 0, 4, order=3)
    with at_barriers(member, look, look, look, look):
        show(member, 0, 4, 8)
    assert seen == [
        ([0, 0, 4], 6.0, 0.0),
        ([0, 4, 8], 6.0, 0.0),
        ([-4, 4, 8], 22.0, 5.0),
        ([4, 4, 8], 22.0, 5.0),
    ]


@pytest.mark.parametrize("is_planned", [True, False])
def test_what_was_written_of_sums_is_read_after_it_is_seen_that_they_are_there(
    is_planned: bool, team: list[TeamMemory]
) -> None:
    writer, reader, row = team[0], team[1], 0 if is_planned else OWN_PARTS
    order = order_of(4, plan=plan_for(Node(0, 8), {0: 1.0}))

    def hide() -> None:
        writer.marks.nodes[0, row, ORDER] = 0

    def write() -> None:
        show(writer, row, 0, 8)

    if not is_planned:
        write()
    with at_barriers(reader, *((write, hide) if is_planned else (nothing, nothing, write, hide))):
        copies = reader.sums_of(order)
    assert copies is not None
    assert copies.copies == (Copy(Node(0, 8), 0, row),)


def test_the_node_of_sums_is_read_after_it_is_seen_that_they_are_there(team: list[TeamMemory]) -> None:
    def widen() -> None:
        team[0].marks.nodes[0, 0, HI] = 4

    with at_barriers(team[1], lambda: show(team[0], 0, 0, 2), widen):
        assert team[1].covered(4, Node(0, 8)) == bytes([1, 1, 1, 1, 0, 0, 0, 0])


def test_a_slice_is_shown_after_it_was_written_and_is_read_after_it_is_seen(team: list[TeamMemory]) -> None:
    added, seen = team[0].marks.added, list[int]()

    def look() -> None:
        seen.append(int(added[0, 0]))

    def hide() -> None:
        added[0, 0] = 0

    with at_barriers(team[0], look, look):
        team[0].show_slice(added, 0, 4)
    assert seen == [0, 4]
    hide()
    with at_barriers(team[1], lambda: team[0].show_slice(added, 0, 4), hide):
        assert team[1].missing_slices(added, 4) == []
    assert team[1].missing_slices(added, 4) == [0]


def test_who_shows_that_it_sleeps_looks_after_that_and_who_has_written_looks_who_sleeps(
    team: list[TeamMemory],
) -> None:
    """Otherwise each may miss the other: one sleeps, and the other does not wake it."""
    seen = list[list[int]]()
    with at_barriers(team[1], lambda: seen.append(team[0].sleepers())):
        team[1].show("sleeps", 1)
    with at_barriers(team[0], lambda: team[2].show("sleeps", 1)):
        seen.append(team[0].sleepers())
    assert seen == [[1], [1, 2]]


def test_a_process_measures_its_speed_as_a_mean_that_forgets(team: list[TeamMemory]) -> None:
    pace, seconds = pace_of(team[1]), team[0].marks.processes["seconds"]
    pace.record_speed(8.0)
    assert seconds.tolist() == [0.0, 8.0, 0.0]
    pace.record_speed(1.0)  # the first one was not like the others
    pace.record_speed(2.0)
    assert 1.0 < seconds[1] < 1.5
    before = float(seconds[1])
    pace.forget_speed([])  # soon, while memory is cold
    assert 0.5 * before < seconds[1] < 0.9 * before
    for _ in range(FIRST):
        pace.record_speed(2.0)
    pace.record_speed(200.0)  # it waited for a core
    before = float(seconds[1])
    assert before < 3.0
    pace.record_speed(0.1)  # it was not paused for once
    assert 0.6 * before < seconds[1] < before
    before = float(seconds[1])
    pace.forget_speed([])
    assert 0.9 * before < seconds[1] < before


def test_who_was_given_nothing_never_counts_as_faster_than_those_who_were(team: list[TeamMemory]) -> None:
    pace, seconds = pace_of(team[1]), team[0].marks.processes["seconds"]
    pace_of(team[0]).record_speed(2.0)
    pace.record_speed(2.1)
    for _ in range(5):
        pace.forget_speed([0])
    assert seconds[1] == 2.0
    seconds[0] = 3.0  # all computers have become slower, and so would this one be
    pace.forget_speed([0])
    assert seconds[1] == 3.0


def test_a_process_measures_which_part_of_a_core_it_needs(team: list[TeamMemory]) -> None:
    pace, loads = pace_of(team[1]), team[0].marks.processes["load"]
    for measured in (1.3, 1.0):  # clocks differ a little
        pace.record_load(measured)
        assert loads.tolist() == [0.0, 1.0, 0.0]
    pace.record_load(0.0)
    assert 0.6 < loads[1] < 0.8
    for _ in range(100):
        pace.record_load(0.0)
    assert loads[1] == pytest.approx(LEAST_LOAD)


def test_a_process_measures_for_which_part_of_its_time_it_has_no_core(team: list[TeamMemory]) -> None:
    pace, waits = pace_of(team[1]), team[0].marks.processes["waits"]
    for _ in range(100):
        pace.record_waits(0.02, 0.015)
    assert waits.tolist() == [0.0, pytest.approx(0.25), 0.0]
    pace.record_waits(0.02, 0.021)  # clocks differ a little
    assert waits[1] == pytest.approx(0.2)
    assert pace.has_core
    pace.record_waits(2.0, 0.5)
    assert waits[1] == pytest.approx(0.75)
    assert not pace.has_core


# Memory that is not there


def test_vectors_take_memory_when_they_are_first_written(team: list[TeamMemory]) -> None:
    def taken() -> int:
        return os.stat(team[1].path / "process-1").st_blocks * 512

    before = taken()
    begin_row(team[1], 2)
    once = taken()
    assert once - before >= SHAPE.size * 4
    begin_row(team[1], 2)
    assert taken() == once
    team[1].own.reserve(RESULT)
    assert taken() > once


def test_a_vector_for_which_there_is_no_memory_is_an_error_before_it_is_written(team: list[TeamMemory]) -> None:
    member = team[1]
    full = os.open(member.path / "process-1", os.O_RDONLY)  # in which nothing can be reserved
    member.own, own = OwnVectors(member.own.vectors, member.own.shape, full), member.own
    with pytest.raises(SharingError, match=r"no room for 0\.0 MiB of sums: "):
        begin_row(member, ROWS - 1)
    member.own.close()
    # It shows that nothing is there, and the next attempt is one.
    assert not np.any(member.marks.nodes[1])
    member.own = own
    begin_row(member, ROWS - 1)


def test_a_process_that_comes_when_its_teams_memory_is_gone_is_told(memory: Path) -> None:
    with folder_in(memory) as folder:
        TeamMemory.make(folder, SHAPE).close()
        folder.drop("process-1")
        with pytest.raises(SharingError):
            TeamMemory.join(folder, SHAPE, 1)
