"""Leases on demand: what is given out names only slots that nobody reads any more."""

import pytest

from common.aggregation.tree import Node
from common.job.job import Job
from common.protocol.messages import SLOTS, Lease
from ps.coordinator.effects import Effect, Send, SendWeights
from ps.coordinator.membership import Member, MemberState
from ps.coordinator.scheduling.audit import Audit
from ps.coordinator.scheduling.lease_table import HeldLease
from ps.coordinator.scheduling.round_state import RoundState
from ps.coordinator.scheduling.scheduler import assign_leases
from ps.coordinator.scheduling.stragglers import ENOUGH, LeaseTimeouts
from ps.run.plan import Round
from tests.ps.runs import Drive, facts_of, join_of, messages, peer_of, result_of

ROUND = Round("train", 0, 16)
LIMIT_S, NOW = 60.0, 1000.0


def state_of(chosen: frozenset[int] = frozenset()) -> RoundState:
    return RoundState(ROUND, Audit(ROUND, chosen))


def member_of(worker: int, *, shares: bool = True) -> Member:
    return Member(peer_of(worker), worker, join_of(worker), MemberState.READY, shares=shares)


def leases_in(effects: list[Effect]) -> list[Lease]:
    return [message for message in messages(effects) if isinstance(message, Lease)]


def assign(state: RoundState, *members: Member, ready: int = 2) -> list[Lease]:
    return leases_in(assign_leases(state, members, ready, LeaseTimeouts(LIMIT_S), NOW))


@pytest.mark.parametrize("answered", range(SLOTS))
def test_a_slot_that_servers_still_read_is_not_named(answered: int) -> None:
    state, member = state_of(), member_of(0)
    first = assign(state, member)[answered]
    state.on_result(member, result_of(first), has_shards=True)
    # Its leases run out, while a server is still to read the sums of one.
    state.leases.release(member.rank)
    (another,) = assign(state, member)
    assert another.slot == 1 - first.slot
    # All slots are in use: it gets nothing more.
    assert assign(state, member) == []
    state.pending.acknowledge(member.rank, result_of(first).node())
    assert [lease.slot for lease in assign(state, member)] == [first.slot]


def test_a_lease_lasts_from_now_and_as_long_as_all_that_is_held() -> None:
    state, member = state_of(), member_of(0)
    assign(state, member)
    assert {lease.deadline for lease in state.leases.held_by(0)} == {NOW + LIMIT_S}


def test_a_second_lease_does_not_begin_the_time_again() -> None:
    state, member, timeouts = state_of(), member_of(0), LeaseTimeouts(LIMIT_S)
    assign_leases(state, [member], 2, timeouts, NOW)
    first, _ = state.leases.held_by(0)
    state.leases.accept(first.node)
    assign_leases(state, [member], 2, timeouts, NOW + 5.0)
    assert timeouts.held_s(0, NOW + 7.0) == 7.0


def practise(timeouts: LeaseTimeouts, rank: int, seconds: float) -> None:
    """Record that a worker has taken so many seconds for each of its micro-batches so far."""
    for _ in range(ENOUGH):
        timeouts.begin(rank, 0.0)
        one = result_of(Lease(work="train", step=0, lo=0, hi=1))
        timeouts.record(rank, one, [HeldLease(Node(0, 1), rank, 0.0)], seconds)


def test_the_time_for_a_lease_goes_by_what_its_own_worker_took_before() -> None:
    state, timeouts = state_of(), LeaseTimeouts(LIMIT_S)
    for rank, seconds in ((0, 1.0), (1, 3.0)):
        practise(timeouts, rank, seconds)
    assign_leases(state, [member_of(0), member_of(1)], 2, timeouts, NOW)
    first, second = (state.leases.held_by(rank)[0].deadline - NOW for rank in range(2))
    assert (first, second) == (timeouts.timeout_s(0, "train", 4), timeouts.timeout_s(1, "train", 3))
    assert first != second


def test_the_time_for_a_lease_counts_what_is_held_before_it() -> None:
    state, member, timeouts = state_of(), member_of(0), LeaseTimeouts(LIMIT_S)
    practise(timeouts, 0, 1.0)
    assign_leases(state, [member], 2, timeouts, NOW)
    first, second = state.leases.held_by(0)
    assert (len(first.node), len(second.node)) == (4, 2)
    # The second one is for at most three, of which two are a node.
    assert first.deadline - NOW == timeouts.timeout_s(0, "train", 4)
    assert second.deadline - NOW == timeouts.timeout_s(0, "train", 4 + 3)


def test_a_micro_batch_that_is_audited_asks_for_a_digest_and_others_do_not() -> None:
    leases = assign(state_of(frozenset({0})), member_of(0))
    assert [(lease.lo, lease.is_digested) for lease in leases] == [(0, True), (1, False)]


def test_a_worker_that_shares_no_memory_is_sent_the_weights_of_a_step_once() -> None:
    state, member = state_of(), member_of(0, shares=False)
    effects = assign_leases(state, [member], 2, LeaseTimeouts(LIMIT_S), NOW)
    assert [type(effect) for effect in effects] == [SendWeights, Send, Send]
    assert effects[0] == SendWeights(peer=member.peer, step=ROUND.step)
    assert member.weights_step == ROUND.step


def test_the_one_ready_worker_is_given_again_what_failed_on_it() -> None:
    state, member = state_of(), member_of(0)
    assign(state, member, ready=1)
    state.leases.record_failure(Node(0, 16), 0)
    assert assign(state, member, ready=2) == []
    assert [(lease.lo, lease.hi) for lease in assign(state, member, ready=1)] == [(0, 16)]


def test_only_the_one_ready_worker_gets_the_whole_round() -> None:
    assert [(lease.lo, lease.hi) for lease in assign(state_of(), member_of(0), ready=1)] == [(0, 16)]
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=16), min_workers=3))
    drive.enter(1, 2, 3)
    assert max(len(node) for node in drive.leased()) <= 4
