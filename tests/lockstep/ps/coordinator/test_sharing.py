"""The coordinator and workers that share memory: no vector is sent, and no slot read that may be written."""

import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RefusalKind
from lockstep.common.protocol.messages import SLOTS, Lease, Refused
from lockstep.ps.coordinator.effects import AddSharedSums, Effect, ForgetWorker, SendWeights
from tests.lockstep.ps.runs import Drive, facts_of, kinds, messages, peer_of, result_of, said


def added(effects: list[Effect]) -> list[AddSharedSums]:
    return [effect for effect in effects if isinstance(effect, AddSharedSums)]


def sent_weights(effects: list[Effect]) -> list[bytes]:
    return [effect.peer for effect in effects if isinstance(effect, SendWeights)]


def test_a_worker_that_shares_is_sent_leases_and_no_weights() -> None:
    drive = Drive(facts_of(min_workers=2))
    effects = drive.enter(1, shares=True) + drive.enter(2)
    assert kinds(effects, 1)[1:] == [Lease, Lease]
    assert sent_weights(effects) == [peer_of(2)]
    effects = drive.finish_round()
    assert set(kinds(effects, 1)) == {Lease}
    assert sent_weights(effects) == [peer_of(2)]


def test_the_leases_that_a_worker_holds_name_different_slots() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2, shares=True)
    slots = [[lease.slot for lease in leases] for leases in drive.leases.values()]
    assert slots == [list(range(SLOTS))] * 2
    numbers = [lease.number for leases in drive.leases.values() for lease in leases]
    assert sorted(numbers) == [1, 2, 3, 4]


def test_sums_are_added_from_the_slot_of_the_lease_or_came_before_the_result() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, shares=True)
    drive.enter(2)
    first, second = drive.leases[1]
    expected = [
        AddSharedSums(node=Node(first.lo, first.hi), rank=0, slot=0),
        AddSharedSums(node=Node(second.lo, second.hi), rank=0, slot=1),
    ]
    assert added(drive.answer(1)) + added(drive.answer(1)) == expected
    other = drive.leases[2][0]
    assert added(drive.answer(2)) == []
    assert drive.counted[-1] == Node(other.lo, other.hi)


def late() -> tuple[Drive, Lease, Lease]:
    """A worker whose two leases ended, and that got two others when it answered the first; the second, and the last."""
    drive = Drive(replace(facts_of(min_workers=2), needs_memory=True))
    drive.enter(1, 2, shares=True)
    first, second = drive.leases[1]
    drive.leases[2].clear()
    drive.pass_time(drive.info.options.lease_timeout)
    drive.leases[1] = []
    drive.send(1, result_of(first))
    assert [lease.slot for lease in drive.leases[1]] == [0, 1]
    return drive, second, drive.leases[1][1]


def test_a_late_result_is_ignored_once_another_lease_names_its_slot() -> None:
    drive, second, last = late()
    assert (second.slot, last.slot) == (1, 1)
    before = drive.coordinator.leases.held_by(0)
    assert added(drive.send(1, result_of(second))) == []
    assert [held.node for held in drive.coordinator.leases.held_by(0)] == [held.node for held in before]
    assert added(drive.send(1, result_of(last))) == [AddSharedSums(node=Node(last.lo, last.hi), rank=0, slot=1)]


def test_a_result_that_arrives_twice_is_added_once() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2, shares=True)
    result = result_of(drive.leases[1][0])
    assert len(added(drive.send(1, result)) + added(drive.send(1, result))) == 1


def test_a_run_of_workers_that_share_comes_to_its_end() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2, 3, shares=True)
    effects = drive.finish()
    assert sent_weights(effects) == []
    assert drive.coordinator.membership.sharing == {True}


def test_why_a_worker_does_not_share_is_said() -> None:
    drive = Drive()
    drive.join(1)
    effects = drive.prepare(1, obstacle="no such folder")
    assert (
        said(effects)
        == "worker 0 (host host, pid 1) exchanges gradients and weights through its socket: no such folder"
    )
    assert sent_weights(effects) == [peer_of(1)]
    assert drive.coordinator.membership.sharing == {False}


def test_where_memory_must_be_shared_whoever_does_not_is_sent_away() -> None:
    drive = Drive(replace(facts_of(), needs_memory=True))
    drive.join(1)
    effects = drive.prepare(1, obstacle="no such folder")
    (refused,) = messages(effects, 1)
    assert refused == Refused(reason="it does not share the server's memory: no such folder", kind=RefusalKind.MEMORY)
    assert said(effects).startswith("refused worker 0 (host host, pid 1): it does not share")
    assert ForgetWorker(peer=peer_of(1), rank=0) in effects
    assert not drive.coordinator.membership.members
    assert Lease in kinds(drive.enter(2, shares=True), 2)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_what_was_kept_for_a_worker_is_given_back_when_it_goes(is_prepared: bool) -> None:
    drive = Drive()
    drive.enter(1)
    drive.join(2)
    if is_prepared:
        drive.prepare(2, shares=True)
    effects = drive.leave(2)
    assert ForgetWorker(peer=peer_of(2), rank=1) in effects
