"""Leases on demand: what is given out names only slots that nobody reads any more."""

import pytest

from common.aggregation.tree import Node
from common.job.job import Job
from common.protocol.messages import SLOTS, Lease
from ps.coordinator.effects import Effect
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


def test_the_time_for_a_lease_counts_what_is_held_before_it() -> None:
    state, member, timeouts = state_of(), member_of(0), LeaseTimeouts(LIMIT_S)
    for _ in range(ENOUGH):  # a second for each micro-batch
        timeouts.begin(0, 0.0)
        timeouts.record(0, result_of(Lease(work="train", step=0, lo=0, hi=1)), [HeldLease(Node(0, 1), 0, 0.0)], 1.0)
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
    assert [type(effect).__name__ for effect in effects] == ["SendWeights", "Send", "Send"]
    assert member.weights_step == ROUND.step


def test_only_the_one_ready_worker_gets_the_whole_round() -> None:
    assert [(lease.lo, lease.hi) for lease in assign(state_of(), member_of(0), ready=1)] == [(0, 16)]
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=16), min_workers=3))
    drive.enter(1, 2, 3)
    assert max(len(node) for node in drive.leased()) <= 4
