"""The roster's own check finds contradictions that are planted."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.protocol.messages import WorkerStatus
from lockstep.ps.coordinator.membership import (
    FREE_PATIENCE,
    MOST_PATIENCE,
    PROBE_S,
    Member,
    Membership,
    MemberState,
    SlowWorkerTrial,
)
from tests.lockstep.ps.runs import join_of, peer_of


def roster() -> Membership:
    made = Membership()
    for worker in range(3):
        made.activate(made.admit(peer_of(worker), join_of(worker), 0.0), capacity=2)
    return made


def member_of(made: Membership, worker: int) -> Member:
    return made.members[peer_of(worker)]


#: What is planted, and what of the complaint tells it from the others.
PLANTS: dict[str, tuple[Callable[[Membership], object], str]] = {
    "one more is ready": (lambda made: made.set_state(member_of(made, 2), MemberState.READY), "more workers are ready"),
    "a free place": (lambda made: made.set_state(member_of(made, 0), MemberState.SUSPECT), "without need"),
    "a rank twice": (lambda made: setattr(member_of(made, 1), "rank", 0), "the order of joining"),
    "ranks in another order": (lambda made: setattr(member_of(made, 0), "rank", 2), "the order of joining"),
    "a rank to come": (lambda made: setattr(made, "next_rank", 2), "^$"),
    "another's peer": (lambda made: setattr(member_of(made, 0), "peer", b"other"), "^$"),
    "twins": (lambda made: setattr(member_of(made, 1), "join", join_of(0)), "twins"),
    "a state uncounted": (lambda made: setattr(member_of(made, 2), "state", MemberState.SUSPECT), "counted wrongly"),
    "fewer prepared": (lambda made: setattr(made, "most_prepared", 2), "^$"),
    "one that is not probed": (lambda made: made.probes.drop(peer_of(1)), "those that are probed"),
}


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


def with_teams(*sizes: int) -> Membership:
    """Return teams of so many processes, all of which are ready."""
    made = Membership()
    for worker, processes in enumerate(sizes):
        made.activate(made.admit(peer_of(worker), join_of(worker, processes=processes), 0.0), capacity=8)
    return made


def test_people_count_processes() -> None:
    made = with_teams(4, 1)
    made.admit(peer_of(2), join_of(2, processes=16), 0.0)
    made.validate(8)
    assert (made.count_prepared(), made.processes_prepared()) == (2, 5)
    made.remove(peer_of(0))
    made.validate(8)
    assert (made.processes_prepared(), made.most_teams, made.most_prepared) == (1, 2, 5)


def test_the_seconds_of_a_team_are_those_of_all_its_processes() -> None:
    made = with_teams(4, 1)
    team, single = made.ready()
    made.credit(team, 1, 6.0, 2.0)
    made.credit(team, 1, 2.0)
    made.credit(single, 1, 1.0)
    # Nine seconds of five processes; the slowest had two, and half a second of what is only known of all four.
    assert made.end_step() == (1.8, 2.5)
    assert team.compute_s == 8.0


def test_a_free_place_is_filled_in_the_order_of_joining() -> None:
    made = roster()
    made.set_state(made.members[peer_of(0)], MemberState.SUSPECT)
    assert [member.rank for member in made.activate_standby(2)] == [2]
    made.validate(2)
    assert made.activate_standby(2) == []


@pytest.mark.parametrize(("plant", "complaint"), PLANTS.values(), ids=PLANTS)
def test_validate_finds_a_planted_contradiction(plant: Callable[[Membership], object], complaint: str) -> None:
    made = roster()
    plant(made)
    with pytest.raises(AssertionError, match=complaint):
        made.validate(2)


def test_a_member_is_found_by_its_rank_its_incarnation_and_its_peer_as_long_as_it_is_there() -> None:
    made = roster()
    second = member_of(made, 1)
    assert made.by_rank(1) is made.by_incarnation(join_of(1).incarnation) is made.on_message(peer_of(1), 0.0) is second
    assert made.remove(peer_of(1)) is second
    made.activate_standby(2)
    made.validate(2)
    assert made.by_rank(1) is made.by_incarnation(join_of(1).incarnation) is made.on_message(peer_of(1), 0.0) is None
    assert made.remove(peer_of(1)) is None
    made.validate(2)


def test_whoever_prepares_is_not_among_those_that_are_prepared_and_gets_a_rank_of_its_own() -> None:
    made = roster()
    made.remove(peer_of(2))
    newcomer = made.admit(peer_of(3), join_of(3), 5.0)
    assert (newcomer.rank, newcomer.state) == (3, MemberState.PREPARING)
    assert (made.count_prepared(), made.count(MemberState.PREPARING)) == (2, 1)
    assert made.activate(newcomer, capacity=2) is False
    assert made.activate(newcomer, capacity=3) is True
    assert [member.rank for member in made.ready()] == [0, 1, 3]


def test_as_many_leave_standby_as_there_are_free_places() -> None:
    made = Membership()
    for worker in range(4):
        made.activate(made.admit(peer_of(worker), join_of(worker), 0.0), capacity=1)
    assert [member.rank for member in made.activate_standby(3)] == [1, 2]
    made.validate(3)


def test_what_an_audit_computes_counts_for_the_step_alone() -> None:
    made = roster()
    first, second = member_of(made, 0), member_of(made, 1)
    made.credit(first, 4, 1.0)
    for _ in range(2):
        made.credit_audit(first, 2.0)
    made.credit_audit(second, 3.0)
    assert (first.samples, first.compute_s) == (4, 1.0)
    assert made.end_step() == (4.0, 5.0)


def test_a_status_says_who_a_member_is_and_what_it_did() -> None:
    made = roster()
    member = member_of(made, 1)
    made.credit(member, 7, 1.5)
    join = member.join
    assert member.named() == f"worker 1 (host {join.host}, pid {join.pid})"
    assert member.status(is_busy=True) == WorkerStatus(
        rank=1, host=join.host, pid=join.pid, state="computing", samples=7, compute_s=1.5
    )
    assert member.status(is_busy=False).state == "ready"
    assert member_of(made, 2).status(is_busy=False).state == "standby"


def test_a_probe_waits_twice_as_long_each_time_until_its_member_says_something() -> None:
    made, now = Membership(), 500.0
    member = made.admit(peer_of(0), join_of(0), now)
    waits = []
    for _ in range(3):
        due = made.probes.soonest()
        assert due is not None
        waits.append(due - now)
        now = due
        assert made.to_probe(now) == [member]
    assert waits == [PROBE_S, 2 * PROBE_S, 4 * PROBE_S]
    assert made.on_message(member.peer, now) is member
    assert made.to_probe(now + PROBE_S) == [member]
    assert made.probes.soonest() == now + PROBE_S + 2 * PROBE_S


def test_members_are_probed_in_the_order_of_their_ranks() -> None:
    made = Membership()
    for worker, at in ((0, 3.0), (1, 1.0), (2, 2.0)):
        made.admit(peer_of(worker), join_of(worker), at)
    assert [member.rank for member in made.to_probe(10.0)] == [0, 1, 2]


def test_samples_of_a_member_add_up_and_the_most_that_were_prepared_is_kept() -> None:
    made = roster()
    member = made.members[peer_of(1)]
    made.credit(member, 3, 1.0)
    made.credit(member, 4, 0.5)
    assert (member.samples, member.compute_s) == (7, 1.5)
    made.remove(peer_of(2))
    made.remove(peer_of(0))
    made.activate(made.admit(peer_of(9), join_of(9), 0.0), capacity=2)
    assert made.most_prepared == 3


def test_a_worker_that_left_within_a_step_is_among_those_that_computed_it() -> None:
    made = roster()
    for worker in (0, 1):
        made.credit(made.members[peer_of(worker)], 1, 2.0)
    for worker in (0, 1):
        made.remove(peer_of(worker))
    assert made.end_step() == (2.0, 2.0)


def test_a_member_that_is_late_is_not_shown_as_computing() -> None:
    made = roster()
    first = made.members[peer_of(0)]
    assert first.status(is_busy=True).state == "computing"
    made.set_state(first, MemberState.SUSPECT)
    assert first.status(is_busy=True).state == "suspect"


def test_more_that_are_ready_than_can_have_work_let_nobody_in() -> None:
    made = roster()
    made.activate(made.admit(peer_of(3), join_of(3), 0.0), capacity=2)
    assert made.activate_standby(1) == []


def test_the_seconds_of_a_step_of_one_worker_are_its_own_and_of_none_are_none() -> None:
    made = Membership()
    assert made.end_step() == (0.0, 0.0)
    member = made.admit(peer_of(0), join_of(0), 0.0)
    made.activate(member, capacity=1)
    made.credit(member, 1, 3.0)
    assert made.end_step() == (3.0, 3.0)


# Cores


def on_machines(*places: tuple[str, set[int]]) -> Membership:
    """Return members on machines, each with the cores that it may use."""
    made = Membership()
    for worker, (machine, cores) in enumerate(places):
        join = msgspec.structs.replace(join_of(worker), machine=machine, cores=sorted(cores))
        made.admit(peer_of(worker), join, 0.0)
    return made


@pytest.mark.parametrize(
    ("places", "crowded", "has_spare"),
    [
        ([("one", {0, 1}), ("one", {0, 1})], [False, False], True),
        ([("one", {0, 1}), ("one", {0, 1}), ("one", {0, 1})], [True, True, True], False),
        # Each in a container of its own, on the same machine.
        ([("one", {0}), ("one", {1})], [False, False], True),
        ([("one", {0}), ("one", {0})], [True, True], False),
        # One on each machine, and one of two machines.
        ([("one", {0}), ("two", {0})], [False, False], True),
        ([("one", {0}), ("one", {0}), ("two", {0, 1}), ("two", {0, 1})], [True, True, False, False], True),
        ([("one", {0}), ("one", {0}), ("two", {0})], [True, True, False], False),
        # Nobody knows how many there are.
        ([("", set()), ("", set())], [True, True], False),
        # Alone, it has nobody to help.
        ([("one", {0, 1, 2})], [False], False),
    ],
)
def test_a_machine_is_crowded_if_its_members_may_use_fewer_cores_than_they_are(
    places: list[tuple[str, set[int]]], crowded: list[bool], has_spare: bool
) -> None:
    made = on_machines(*places)
    assert [made.is_crowded(member) for member in made.members.values()] == crowded
    assert made.has_spare_cores() is has_spare


@pytest.mark.parametrize(("processes", "is_crowded"), [(3, False), (4, True)])
def test_a_machine_is_crowded_by_processes(processes: int, is_crowded: bool) -> None:
    made = Membership()
    for worker, size in enumerate((1, processes)):
        join = msgspec.structs.replace(join_of(worker, processes=size), machine="one", cores=[0, 1, 2, 3])
        made.admit(peer_of(worker), join, 0.0)
    assert [made.is_crowded(member) for member in made.members.values()] == [is_crowded, is_crowded]
    assert made.has_spare_cores() is not is_crowded


#: Machine, processes and cores of each worker -> what is noticed of the last one.
CROWDING = {
    "enough cores": ([("one", 2, [0, 1, 2, 3]), ("one", 2, [0, 1, 2, 3])], ""),
    "other machines": ([("one", 2, [0, 1]), ("two", 2, [0, 1])], ""),
    "one team": ([("one", 9, [0, 1])], ""),
    "unknown machines": ([("", 2, []), ("", 2, [])], ""),
    "too few": ([("one", 2, [0, 1]), ("one", 3, [1, 2])], "5 processes in 2 teams share the 3 cores of host host"),
}


@pytest.mark.parametrize(("places", "text"), CROWDING.values(), ids=CROWDING)
def test_teams_that_share_too_few_cores_are_noticed_once(places: list[tuple[str, int, list[int]]], text: str) -> None:
    made, found = Membership(), list[str]()
    for worker, (machine, processes, cores) in enumerate(places):
        join = msgspec.structs.replace(join_of(worker, processes=processes), machine=machine, cores=cores)
        found.append(made.notice_crowding(made.admit(peer_of(worker), join, 0.0)))
    assert found[-1].startswith(text)
    assert bool(found[-1]) is bool(text)
    assert made.crowding == found[-1]
    assert made.notice_crowding(made.admit(peer_of(7), join, 0.0)) == ("" if text else made.crowding)


def test_a_machine_is_crowded_no_more_once_members_leave_and_spare_cores_go_with_theirs() -> None:
    made = on_machines(("one", {0, 1}), ("one", {0, 1}), ("one", {0, 1}), ("two", {5}))
    assert not made.has_spare_cores()
    made.remove(peer_of(1))
    assert [made.is_crowded(member) for member in made.members.values()] == [False, False, False]
    assert made.has_spare_cores()
    made.remove(peer_of(3))
    assert made.has_spare_cores()
    made.remove(peer_of(0))
    assert not made.has_spare_cores()
    made.remove(peer_of(2))
    assert not made.has_spare_cores()


def test_the_cores_of_one_that_leaves_are_counted_no_more() -> None:
    made = on_machines(("one", {0, 1}), ("one", {2}), ("one", {2}))
    assert made.has_spare_cores()
    made.remove(peer_of(0))
    assert [made.is_crowded(member) for member in made.members.values()] == [True, True]
    assert not made.has_spare_cores()


CORE_SETS = st.sets(st.integers(0, 3), max_size=3)
COMINGS = st.lists(st.tuples(st.sampled_from(["one", "two", ""]), CORE_SETS), max_size=12)


@settings(derandomize=True, deadline=None)
@given(COMINGS, st.sets(st.integers(0, 11)))
def test_whoever_comes_and_goes_spare_cores_are_those_of_who_is_there(
    places: list[tuple[str, set[int]]], gone: set[int]
) -> None:
    made = on_machines(*places)
    for worker in gone:
        made.remove(peer_of(worker))
    made.validate(capacity=0)
    left = [place for worker, place in enumerate(places) if worker not in gone]
    # The same members, and nobody else before.
    assert made.has_spare_cores() == on_machines(*left).has_spare_cores()
    for member, (machine, _) in zip(made.members.values(), left, strict=True):
        cores = [of for on, of in left if on == machine]
        assert made.is_crowded(member) == (len(cores) > len(set().union(*cores)))


# Members that are too slow


def rounds_until_tried(trial: SlowWorkerTrial, *, is_free: bool) -> int:
    rounds = 1
    while not trial.begins(is_free=is_free):
        rounds += 1
    return rounds


@pytest.mark.parametrize(("is_free", "most"), [(True, FREE_PATIENCE), (False, MOST_PATIENCE)])
def test_one_that_is_too_slow_is_tried_after_twice_as_many_rounds_each_time_up_to_a_limit(
    is_free: bool, most: int
) -> None:
    trial, waits, expected = SlowWorkerTrial(), list[int](), 1
    for _ in range(10):
        waits.append(rounds_until_tried(trial, is_free=is_free) - 1)
        assert waits[-1] == expected
        expected = min(2 * expected, most)
    assert waits[-2:] == [most, most]


def test_once_a_trial_costs_nothing_the_next_but_one_comes_soon() -> None:
    trial = SlowWorkerTrial()
    for _ in range(10):
        rounds_until_tried(trial, is_free=False)
    assert rounds_until_tried(trial, is_free=True) - 1 == MOST_PATIENCE
    assert rounds_until_tried(trial, is_free=True) - 1 == FREE_PATIENCE
