"""Leases that were withdrawn are awaited until they are answered: against a plain table, whatever happens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.tree import Node
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, Withdrawals, WithdrawnLease
from lockstep.ps.run.plan import Round

RANKS, TIMES = st.integers(0, 2), st.integers(0, 30).map(float)
NUMBERS = st.integers(0, 7)
ROUND = Round("train", 3, 8)


def withdrawn(rank: int, number: int, began: float, due: float, deadline: float) -> WithdrawnLease:
    lease = HeldLease(Node(0, 4), rank, deadline, number, began=12.0)
    return WithdrawnLease(lease=lease, round=ROUND, round_began=10.0, began=began, due=due)


LEASES = st.builds(withdrawn, RANKS, NUMBERS, TIMES, TIMES, TIMES)

#: A lease that is withdrawn, an answer, a worker that is gone, or seconds in which the server did not run.
ACTS = LEASES | LEASES | st.tuples(RANKS, NUMBERS) | RANKS | st.floats(1.0, 3.0)


@settings(max_examples=300)
@given(st.lists(st.tuples(ACTS, TIMES), max_size=30))
def test_they_agree_with_a_table(acts: list[tuple[WithdrawnLease | tuple[int, int] | int | float, float]]) -> None:
    withdrawals, table = Withdrawals(), dict[tuple[int, int], WithdrawnLease]()
    for act, now in acts:
        match act:
            case WithdrawnLease():
                withdrawals.add(act)
                table[act.lease.rank, act.lease.number] = act
            case tuple():
                assert withdrawals.answer(*act) == table.pop(act, None)
            case int():
                withdrawals.remove(act)
                table = {place: one for place, one in table.items() if place[0] != act}
            case _:
                withdrawals.postpone(act)
                table = {place: one.postponed(act) for place, one in table.items()}
        for rank in range(3):
            of_worker = [one for one in table.values() if one.lease.rank == rank]
            assert withdrawals.has_any(rank) is bool(of_worker)
            assert withdrawals.began(rank) == min((one.began for one in of_worker), default=None)
            assert withdrawals.stands_still(rank, now) is any(one.due <= now for one in of_worker)
        assert withdrawals.deadlines.soonest() == min((one.lease.deadline for one in table.values()), default=None)
        assert sorted(withdrawals.deadlines.due(now)) == sorted(
            {one.lease.rank for one in table.values() if one.lease.deadline <= now}
        )


def test_a_lease_that_is_postponed_was_leased_when_it_was() -> None:
    one = withdrawn(1, 5, began=14.0, due=20.0, deadline=60.0)
    assert one.postponed(100.0) == withdrawn(1, 5, began=114.0, due=120.0, deadline=160.0)
    assert one.times(17.5) == (2.0, 7.5)
    assert one.postponed(100.0).times(117.5) == (2.0, 107.5)
