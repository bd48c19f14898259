"""What was withdrawn from workers is awaited until they answer, or until it is too late."""

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import LeaseKey
from lockstep.ps.coordinator.scheduling.lease_table import Withdrawals, WithdrawnLease


def withdrawn(
    rank: int, number: int, *, step: int = 3, deadline: float = 60.0, began: float = 10.0, due: float = 20.0
) -> WithdrawnLease:
    return WithdrawnLease(rank=rank, key=key(number, step), began=began, due=due, deadline=deadline)


def key(number: int, step: int = 3) -> LeaseKey:
    return "train", step, number


def made(*leases: WithdrawnLease) -> Withdrawals:
    withdrawals = Withdrawals()
    for one in leases:
        withdrawals.add(one)
    return withdrawals


def test_a_worker_has_something_to_answer_until_it_has_answered_all_of_it() -> None:
    first, second = withdrawn(1, 5), withdrawn(1, 6)
    withdrawals = made(first, second)
    assert [withdrawals.has_any(rank) for rank in (0, 1)] == [False, True]
    assert withdrawals.answer(1, key(6)) is second
    assert withdrawals.has_any(1)
    assert withdrawals.answer(1, key(5)) is first
    assert not withdrawals.has_any(1)
    assert withdrawals.deadlines.soonest() is None


def test_an_answer_is_taken_once_from_its_own_worker_for_its_own_lease() -> None:
    one = withdrawn(1, 5)
    withdrawals = made(one)
    others: list[tuple[int, LeaseKey]] = [
        (0, key(5)),
        (1, key(6)),
        (1, ("train", 4, 5)),
        (1, ("evaluate", 3, 5)),
    ]
    assert [withdrawals.answer(rank, other) for rank, other in others] == [None] * 4
    assert withdrawals.answer(1, key(5)) is one
    assert withdrawals.answer(1, key(5)) is None


def test_leases_of_other_rounds_that_have_the_same_number_are_told_apart() -> None:
    first, second = withdrawn(1, 5), withdrawn(1, 5, step=4)
    withdrawals = made(first, second)
    assert withdrawals.answer(1, ("train", 4, 5)) is second
    assert withdrawals.answer(1, ("train", 3, 5)) is first


def test_a_worker_stands_still_once_one_of_its_answers_is_due() -> None:
    withdrawals = made(withdrawn(1, 5, due=20.0), withdrawn(1, 6, due=30.0), withdrawn(2, 7, due=40.0))
    assert [withdrawals.stands_still(1, now) for now in (19.9, 20.0, 35.0)] == [False, True, True]
    withdrawals.answer(1, key(5))
    assert [withdrawals.stands_still(1, now) for now in (29.9, 30.0)] == [False, True]
    assert not withdrawals.stands_still(0, 1e9)


def test_it_began_what_it_is_to_stop_first_with_the_first_of_them() -> None:
    withdrawals = made(withdrawn(1, 5, began=12.0), withdrawn(1, 6, began=11.0), withdrawn(2, 7, began=3.0))
    assert [withdrawals.began(rank) for rank in range(3)] == [None, 11.0, 3.0]
    withdrawals.answer(1, key(6))
    assert withdrawals.began(1) == 12.0


def test_who_does_not_answer_in_the_time_of_its_lease_is_late() -> None:
    withdrawals = made(withdrawn(1, 5, deadline=60.0), withdrawn(1, 6, deadline=50.0), withdrawn(2, 7, deadline=55.0))
    assert withdrawals.deadlines.soonest() == 50.0
    assert [sorted(withdrawals.deadlines.due(now)) for now in (49.9, 50.0, 55.0)] == [[], [1], [1, 2]]
    withdrawals.answer(1, key(6))
    assert (withdrawals.deadlines.soonest(), withdrawals.deadlines.due(55.0)) == (55.0, [2])


def test_nothing_is_expected_of_one_that_is_gone() -> None:
    withdrawals = made(withdrawn(1, 5, deadline=50.0), withdrawn(2, 7, deadline=55.0))
    withdrawals.remove(1)
    withdrawals.remove(0)
    assert [withdrawals.has_any(rank) for rank in (1, 2)] == [False, True]
    assert (withdrawals.deadlines.soonest(), withdrawals.answer(1, key(5))) == (55.0, None)


def test_time_in_which_the_server_did_not_run_puts_everything_off() -> None:
    withdrawals = made(withdrawn(1, 5), withdrawn(2, 7, deadline=70.0))
    withdrawals.postpone(100.0)
    assert withdrawals.deadlines.soonest() == 160.0
    assert [withdrawals.stands_still(1, now) for now in (119.9, 120.0)] == [False, True]
    assert withdrawals.began(1) == 110.0
    assert withdrawals.answer(1, key(5)) == withdrawn(1, 5, deadline=160.0, began=110.0, due=120.0)
    assert withdrawals.deadlines.soonest() == 170.0


def test_the_times_of_a_lease_are_counted_from_the_begin_of_its_round() -> None:
    times = {"began": 14.0, "due": 20.0, "deadline": 60.0, "leased": 12.0, "round_began": 10.0}
    one = WithdrawnLease(rank=1, key=key(5), node=Node(0, 4), **times)
    assert one.times(17.5) == (2.0, 7.5)
    withdrawals = made(one)
    withdrawals.postpone(100.0)
    postponed = withdrawals.answer(1, key(5))
    assert postponed is not None
    assert postponed.times(117.5) == (2.0, 107.5)
