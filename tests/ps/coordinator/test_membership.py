"""The roster's own check finds contradictions that are planted."""

from collections.abc import Callable

import pytest

from ps.coordinator.membership import Membership, MemberState
from tests.ps.runs import join_of, peer_of


def roster() -> Membership:
    made = Membership()
    for worker in range(3):
        made.activate(made.admit(peer_of(worker), join_of(worker), 0.0), capacity=2)
    return made


def make_third_ready(made: Membership) -> None:
    made.members[peer_of(2)].state = MemberState.READY


def make_first_silent(made: Membership) -> None:
    made.members[peer_of(0)].state = MemberState.SUSPECT


def give_a_rank_twice(made: Membership) -> None:
    made.members[peer_of(1)].rank = 0


def make_twins(made: Membership) -> None:
    made.members[peer_of(1)].join = join_of(0)


def test_two_places_seat_two_and_the_third_stands_by() -> None:
    made = roster()
    made.validate(2)
    assert [member.state.value for member in made.members.values()] == ["ready", "ready", "standby"]
    assert made.most_prepared == 3


def test_the_seconds_of_a_step_are_booked_by_worker_and_begin_anew() -> None:
    made = roster()
    for worker, seconds in ((0, 1.0), (1, 2.0), (0, 5.0)):
        made.credit(made.members[peer_of(worker)], 1, seconds)
    assert made.end_step() == (4.0, 6.0)
    made.credit(made.members[peer_of(1)], 1, 3.0)
    assert made.end_step() == (1.5, 3.0)  # one of two that were ready got nothing
    assert made.end_step() == (0.0, 0.0)
    assert made.compute_s == 11.0


def test_a_free_place_is_filled_in_the_order_of_joining() -> None:
    made = roster()
    made.set_state(made.members[peer_of(0)], MemberState.SUSPECT)
    assert [member.rank for member in made.activate_standby(2)] == [2]
    made.validate(2)
    assert made.activate_standby(2) == []


@pytest.mark.parametrize("plant", [make_third_ready, make_first_silent, give_a_rank_twice, make_twins])
def test_validate_finds_a_planted_contradiction(plant: Callable[[Membership], None]) -> None:
    made = roster()
    plant(made)
    with pytest.raises(AssertionError):
        made.validate(2)
