"""When leases should end: the next that is delayed, once each, and the one that ends last, of those that have not."""

from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable
from lockstep.ps.coordinator.scheduling.round_state import ExpectedEnds


def leased(ends: ExpectedEnds, *expected: tuple[float, float]) -> tuple[LeaseTable, list[HeldLease]]:
    """Return a table, and the leases of ranks from 0 on that are expected to end at these times, with this slack."""
    table, leases = LeaseTable(16), list[HeldLease]()
    for rank, (end, slack_s) in enumerate(expected):
        lease = table.lease(rank, 2, 99.0, is_alone=False)
        assert lease is not None
        ends.add(lease, end, slack_s)
        leases.append(lease)
    return table, leases


def test_of_nothing_nothing_is_known() -> None:
    ends, table = ExpectedEnds(), LeaseTable(4)
    assert (ends.next_delay(table), ends.pop_delayed(table, 1e9), ends.latest(table)) == (None, None, None)


def test_the_next_delay_is_that_of_the_first_lease_to_be_late_by_its_own_slack() -> None:
    ends = ExpectedEnds()
    table, _ = leased(ends, (5.0, 4.0), (7.0, 1.0), (6.0, 10.0))
    assert ends.next_delay(table) == 8.0


def test_a_lease_is_returned_once_when_it_is_delayed_and_not_before() -> None:
    ends = ExpectedEnds()
    table, (first, second) = leased(ends, (5.0, 4.0), (7.0, 1.0))
    assert ends.pop_delayed(table, 7.9) is None
    assert ends.pop_delayed(table, 8.0) is second
    assert ends.pop_delayed(table, 8.0) is None
    assert ends.next_delay(table) == 9.0
    assert ends.pop_delayed(table, 20.0) is first
    assert ends.pop_delayed(table, 20.0) is None
    assert ends.next_delay(table) is None


def test_a_lease_that_has_ended_is_never_delayed() -> None:
    ends = ExpectedEnds()
    table, (first, second, third) = leased(ends, (1.0, 1.0), (2.0, 1.0), (3.0, 1.0))
    table.accept(first.node)
    table.release(second.rank)
    assert ends.next_delay(table) == 4.0
    assert ends.pop_delayed(table, 9.0) is third
    assert ends.pop_delayed(table, 9.0) is None


def test_one_that_was_begun_later_is_put_off() -> None:
    ends = ExpectedEnds()
    table, (first, second) = leased(ends, (1.0, 1.0), (2.0, 1.0))
    assert ends.pop_delayed(table, 2.5) is first
    ends.put_off(first, 6.0)
    assert ends.next_delay(table) == 3.0
    assert [ends.pop_delayed(table, 6.0) for _ in range(3)] == [second, first, None]
    table.accept(first.node)
    ends.put_off(first, 7.0)
    assert ends.next_delay(table) is None


def test_the_latest_is_that_which_ends_last_of_those_that_are_held_and_not_copied() -> None:
    ends = ExpectedEnds()
    table, (first, second, third) = leased(ends, (5.0, 99.0), (9.0, 0.0), (7.0, 0.0))
    assert ends.latest(table) == (second, 9.0)
    table.accept(second.node)
    assert ends.latest(table) == ends.latest(table) == (third, 7.0)
    ends.drop_latest()
    assert ends.latest(table) == (first, 5.0)
    table.release(first.rank)
    assert ends.latest(table) is None


def test_leases_of_the_same_end_are_returned_in_the_order_of_granting() -> None:
    ends = ExpectedEnds()
    table, leases = leased(ends, (5.0, 1.0), (5.0, 1.0), (5.0, 1.0))
    assert [ends.pop_delayed(table, 6.0) for _ in leases] == leases
    assert ends.latest(table) == (leases[0], 5.0)


def test_a_lease_whose_deadline_was_moved_is_the_same_lease() -> None:
    ends = ExpectedEnds()
    table, (first,) = leased(ends, (5.0, 1.0))
    table.extend(first.rank, 1000.0)
    assert ends.latest(table) == (first, 5.0)
    assert ends.pop_delayed(table, 6.0) is first
