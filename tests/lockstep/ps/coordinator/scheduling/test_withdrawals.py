"""Leases that were withdrawn are awaited until they are answered: against a plain table, whatever happens."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.ps.coordinator.scheduling.lease_table import Withdrawals, WithdrawnLease

RANKS, TIMES = st.integers(0, 2), st.integers(0, 30).map(float)
NUMBERS = st.integers(0, 7)
LEASES = st.builds(WithdrawnLease, rank=RANKS, number=NUMBERS, began=TIMES, due=TIMES, deadline=TIMES)

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
                table[act.rank, act.number] = act
            case tuple():
                assert withdrawals.answer(*act) == table.pop(act, None)
            case int():
                withdrawals.remove(act)
                table = {place: one for place, one in table.items() if place[0] != act}
            case _:
                withdrawals.postpone(act)
                table = {place: postponed(one, act) for place, one in table.items()}
        for rank in range(3):
            of_worker = [one for one in table.values() if one.rank == rank]
            assert withdrawals.has_any(rank) is bool(of_worker)
            assert withdrawals.began(rank) == min((one.began for one in of_worker), default=None)
            assert withdrawals.stands_still(rank, now) is any(one.due <= now for one in of_worker)
        assert withdrawals.deadlines.soonest() == min((one.deadline for one in table.values()), default=None)
        assert sorted(withdrawals.deadlines.due(now)) == sorted(
            {one.rank for one in table.values() if one.deadline <= now}
        )


def postponed(one: WithdrawnLease, by_s: float) -> WithdrawnLease:
    return replace(one, began=one.began + by_s, due=one.due + by_s, deadline=one.deadline + by_s)


def test_the_times_of_a_lease_are_counted_from_the_begin_of_its_round() -> None:
    times = {"began": 14.0, "due": 20.0, "deadline": 60.0, "leased": 12.0, "round_began": 10.0}
    one = WithdrawnLease(rank=1, number=5, node=Node(0, 4), **times)
    assert one.times(17.5) == (2.0, 7.5)
    assert postponed(one, 100.0).times(117.5) == (2.0, 107.5)
