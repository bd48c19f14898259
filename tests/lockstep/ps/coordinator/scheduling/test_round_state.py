"""The state of a round: results that servers are still to acknowledge, and what counts, once."""

from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import Lease, Result
from lockstep.ps.coordinator.membership import Member, MemberState
from lockstep.ps.coordinator.scheduling.lease_table import LeaseTable
from lockstep.ps.coordinator.scheduling.round_state import PendingAcknowledgements, RoundState
from lockstep.ps.records.ledger import UnusedWork
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import join_of, peer_of, result_of

ROUND = Round("train", 5, 8)
NODE, OTHER = Node(0, 2), Node(2, 4)


def member_of(rank: int) -> Member:
    return Member(peer_of(rank), rank, join_of(rank), MemberState.READY)


def result(node: Node = NODE, number: int = 1, *, step: int = 5) -> Result:
    return result_of(Lease(work="train", step=step, lo=node.lo, hi=node.hi, number=number))


def leased(*members: Member, chosen: frozenset[int] = frozenset()) -> RoundState:
    """Return a round of which each member holds two micro-batches, in turn."""
    state = RoundState(ROUND, chosen)
    for member in members:
        lease = state.leases.lease(member.rank, 2, 9.0, is_alone=False)
        assert lease is not None
    return state


def again(state: RoundState) -> Iterator[tuple[str, int, int, int, str]]:
    for entry in state.account.entries:
        assert isinstance(entry, UnusedWork)
        yield entry.work, entry.step, entry.lo, entry.rank, entry.why


def test_a_result_is_awaited_once_and_the_first_one_counts() -> None:
    pending, first = PendingAcknowledgements(), result(number=1)
    assert pending.add(0, first)
    assert not pending.add(0, result(number=2))
    assert pending.acknowledge(0, NODE) is first
    assert pending.acknowledge(0, NODE) is None


def test_results_are_told_apart_by_worker_and_node() -> None:
    pending = PendingAcknowledgements()
    assert pending.add(0, result(number=1))
    assert pending.add(0, result(OTHER, number=2))
    assert pending.add(1, result(number=3))
    assert [pending.has(rank) for rank in range(3)] == [True, True, False]


def test_what_is_awaited_of_a_worker_that_is_gone_is_forgotten_and_nothing_else() -> None:
    pending = PendingAcknowledgements()
    pending.add(0, result())
    pending.add(0, result(OTHER))
    pending.add(1, result())
    pending.remove(0)
    assert list(pending.results) == [(1, NODE)]


def test_what_a_worker_held_that_is_gone_is_listed_and_what_other_servers_read_is_still_awaited() -> None:
    state = leased(member_of(0))
    state.on_result(member_of(0), result(), has_shards=True)
    assert state.release(0, "it left: killed", 9.0) == [NODE]
    assert state.pending.has(0)
    assert list(again(state)) == [("train", 5, 0, 0, "it left: killed")]


def timed() -> RoundState:
    """Return a round that began at 100 s, and of which rank 0 was leased two nodes at 102 and 103 s, rank 1 one."""
    state = RoundState(ROUND, began=100.0)
    for rank, now in ((0, 102.0), (0, 103.0), (1, 104.0)):
        state.leases.lease(rank, 2, 200.0, now, is_alone=False)
    return state


def times(state: RoundState) -> list[tuple[float | None, float | None]]:
    return [(entry.began_s, entry.ended_s) for entry in state.account.entries if isinstance(entry, UnusedWork)]


def test_times_in_the_ledger_are_counted_from_the_begin_of_the_round() -> None:
    state = timed()
    state.accept(member_of(0), result(OTHER), 107.5)
    assert [(share.lo, share.began_s, share.ended_s) for share in state.account.shares] == [(2, 3.0, 7.5)]
    state.release(0, "it left", 108.0)
    assert times(state) == [(2.0, 8.0)]
    # What is accepted although its lease had ended, or in other parts, was given out at some time.
    state.accept(member_of(0), result(), 109.0)
    state.accept(member_of(1), result(Node(4, 5)), 110.0)
    assert [(share.began_s, share.ended_s) for share in state.account.shares[1:]] == [(None, 9.0), (None, 10.0)]


def test_the_times_of_a_lease_are_those_of_whoever_was_first() -> None:
    state = timed()
    state.leases.copy(1, NODE, 200.0, 105.0)
    ended, _ = state.accept(member_of(1), result(), 106.0)
    assert [lease.rank for lease in ended] == [0]
    assert [(share.rank, share.began_s, share.ended_s) for share in state.account.shares] == [(1, 5.0, 6.0)]


def test_a_result_that_is_refused_is_listed_with_the_times_of_its_lease_if_it_was_withdrawn() -> None:
    state = timed()
    state.accept(member_of(3), result(), 105.0)
    state.on_result(member_of(0), result(), has_shards=False, times=(2.0, 6.0))
    state.on_result(member_of(0), result(), has_shards=False)
    assert times(state) == [(2.0, 6.0), (None, None)]


@pytest.mark.parametrize("has_shards", [False, True])
def test_a_result_counts_at_once_or_when_all_servers_have_its_sums(has_shards: bool) -> None:
    member = member_of(0)
    assert leased(member).on_result(member, result(), has_shards=has_shards) is not has_shards


def test_a_result_that_comes_again_while_the_first_is_awaited_is_refused_and_listed() -> None:
    member = member_of(0)
    state = leased(member)
    state.on_result(member, result(), has_shards=True)
    assert not state.on_result(member, result(), has_shards=True)
    assert list(again(state)) == [("train", 5, 0, 0, "others had done it, or it came twice")]


@pytest.mark.parametrize(("rank", "node"), [(0, OTHER), (0, Node(4, 6)), (1, NODE)])
def test_a_result_that_no_lease_asked_its_worker_for_is_refused_and_listed_although_it_is_needed(
    rank: int, node: Node
) -> None:
    state = leased(member_of(0), member_of(1))
    assert state.is_needed(result(node))
    assert not state.on_result(member_of(rank), result(node), has_shards=False)
    assert [(entry[2], entry[3]) for entry in again(state)] == [(node.lo, rank)]


def test_a_result_of_a_lease_that_others_have_done_is_refused() -> None:
    state = leased(member_of(0))
    state.accept(member_of(3), result(), 9.0)
    assert [(share.rank, share.lo, share.hi) for share in state.account.shares] == [(3, 0, 2)]
    assert not state.on_result(member_of(0), result(), has_shards=False)


def test_what_is_evaluated_waits_for_no_server() -> None:
    member, state = member_of(0), RoundState(Round("evaluate", 5, 8))
    state.leases.lease(0, 2, 9.0, is_alone=False)
    one = msgspec.structs.replace(result(), work="evaluate")
    assert state.on_result(member, one, has_shards=True)
    state.accept(member, one, 9.0)
    assert state.account.shares == []


def test_a_result_is_needed_if_it_is_of_this_round_and_not_done() -> None:
    state = leased(member_of(0))
    assert state.is_needed(result())
    assert not state.is_needed(result(step=4))
    assert not state.is_needed(msgspec.structs.replace(result(), work="audit"))
    state.accept(member_of(0), result(), 9.0)
    assert not state.is_needed(result())


@pytest.mark.parametrize(("step", "is_listed"), [(4, True), (5, True), (6, False)])
def test_a_result_of_a_step_to_come_is_not_listed(step: int, is_listed: bool) -> None:
    state = leased(member_of(0))
    state.refuse(member_of(0), result(step=step))
    assert bool(state.account.entries) is is_listed


def test_a_result_ends_the_leases_of_others_that_overlap_it_and_frees_what_it_has_not_of_them() -> None:
    first, second = member_of(0), member_of(1)
    state = leased(first, second)
    (lease,) = state.leases.held_by(0)
    assert state.accept(first, result(), 9.0) == ([], False)
    state = leased(first, second)
    assert state.accept(second, result(), 9.0) == ([lease], False)
    state = leased(first, second)
    assert state.accept(first, result(Node(0, 1)), 9.0) == ([], True)
    state = leased(first, second)
    assert state.accept(second, result(Node(0, 1)), 9.0) == ([lease], True)


AUDIT = replace(ROUND, work="audit")


def audited(state: RoundState) -> RoundState:
    """Let micro-batch 3, which rank 0 has computed, be all that is left."""
    for micro_batch in range(8):
        state.accept(member_of(0), result(Node(micro_batch, micro_batch + 1)), 9.0)
    state.continue_with(AUDIT, LeaseTable.for_audit(8, {3: frozenset({0})}, state.numbers))
    return state


# Its own check


def test_that_nobody_works_while_somebody_could_is_a_contradiction() -> None:
    state = RoundState(ROUND)
    with pytest.raises(AssertionError, match=r"^\[0, 2\] wait for nothing$"):
        state.validate([0, 2])
    # Who cannot be given anything waits for what the others do.
    state.validate([])


def test_if_anybody_works_the_others_may_wait_for_the_end_of_the_plan() -> None:
    state = leased(member_of(0))
    state.validate([0, 1])
    state.leases.release(0)
    with pytest.raises(AssertionError, match="wait for nothing"):
        state.validate([1])


def test_who_may_be_given_nothing_of_what_is_free_may_wait() -> None:
    state = audited(RoundState(ROUND, frozenset({3})))
    state.validate([0])
    with pytest.raises(AssertionError, match=r"^\[0, 1\] wait for nothing$"):
        state.validate([0, 1])


def test_where_something_failed_all_may_wait_for_another_worker() -> None:
    state = leased(member_of(0))
    state.leases.record_failure(state.leases.held_by(0)[0])
    state.validate([0])


def test_the_check_of_a_round_is_that_of_its_leases_too() -> None:
    state = leased(member_of(0))
    state.leases.held[1] = []
    with pytest.raises(AssertionError, match="rank 1 holds an empty list"):
        state.validate([])


def test_an_audits_leases_are_numbered_on_and_nothing_is_expected_of_those_before() -> None:
    state = RoundState(ROUND, frozenset({3}))
    lease = state.leases.lease(0, 8, 9.0, is_alone=True)
    assert lease is not None
    state.expected.add(lease, 1.0, 0.0)
    assert not state.leases.may_accept(Node(2, 4))
    audited(state)
    assert (state.leases.free(), state.expected.latest(state.leases)) == (1, None)
    first = state.leases.lease(1, 8, 9.0, is_alone=False)
    assert first is not None
    assert first.number == lease.number + 1
