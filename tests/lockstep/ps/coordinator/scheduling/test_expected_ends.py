"""When leases should end: against a search of all of them, whatever happens in whatever order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable
from lockstep.ps.coordinator.scheduling.round_state import ExpectedEnds

RANKS, TIMES = st.integers(0, 3), st.integers(0, 9).map(float)
WHAT = st.sampled_from(["lease", "lease", "lease", "end", "extend", "look", "put off", "copy"])


@settings(max_examples=400)
@given(st.lists(st.tuples(WHAT, RANKS, TIMES, TIMES), max_size=40))
def test_they_agree_with_a_search_of_all_leases(acts: list[tuple[str, int, float, float]]) -> None:
    table, ends = LeaseTable(64), ExpectedEnds()
    # By the number of a lease: its expected end, if it has no second copy, and when it is delayed, unless it was found.
    end_of, delay_of = dict[int, float](), dict[int, float]()
    leases, found = dict[int, HeldLease](), list[HeldLease]()
    for what, rank, at, slack_s in acts:
        match what:
            case "lease":
                lease = table.lease(rank, 2, 99.0, is_alone=False)
                if lease is not None:
                    ends.add(lease, at, slack_s)
                    leases[lease.number], end_of[lease.number], delay_of[lease.number] = lease, at, at + slack_s
            case "end":
                table.release(rank)
                continue  # so that what follows finds leases that have ended
            case "extend":
                table.extend(rank, 1000.0 + at)
            case "look":
                due = sorted((time, number) for number, time in held(table, leases, delay_of).items() if time <= at)
                delayed = ends.pop_delayed(table, at)
                assert delayed == (leases[due[0][1]] if due else None)
                if delayed is not None:
                    del delay_of[delayed.number]
                    found.append(delayed)
            case "put off" if found:
                lease = found.pop()
                ends.put_off(lease, at)
                delay_of[lease.number] = at
            case "copy" if ends.latest(table) is not None:
                del end_of[last(held(table, leases, end_of))]
                ends.drop_latest()
        assert ends.next_delay(table) == min(held(table, leases, delay_of).values(), default=None)
        open_ends = held(table, leases, end_of)
        number = last(open_ends) if open_ends else 0
        assert ends.latest(table) == ((leases[number], open_ends[number]) if open_ends else None)


def held(table: LeaseTable, leases: dict[int, HeldLease], times: dict[int, float]) -> dict[int, float]:
    """Return the times of leases that have not ended."""
    numbers = {lease.number for rank in range(4) for lease in table.held_by(rank)}
    return {number: time for number, time in times.items() if number in numbers}


def last(ends: dict[int, float]) -> int:
    """Return the number of the lease that ends last; of several, that of the first one granted."""
    return min(ends, key=lambda number: (-ends[number], number))
