"""A worker is told when another was faster with its lease, and may have work again once it has answered."""

import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import Dropped, Eviction, Lease, SumsFrame, Withdrawal
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.membership import MemberState
from lockstep.ps.records.ledger import UnusedCause, UnusedWork
from tests.lockstep.ps.runs import Drive, finished, kinds, messages, peer_of, result_of, said


def withdrawn() -> tuple[Drive, Lease, list[Effect]]:
    """Let worker 1 be late with a round, and then faster with it than worker 2, which has held it for 1.5 s by then.

    Return the run, the lease of worker 2, and the effects of the result.
    """
    drive = Drive()
    drive.enter(1)
    drive.pass_time(61.0)
    drive.enter(2)
    (lease,) = drive.leases[2]
    drive.pass_time(1.5)
    return drive, lease, drive.answer(1)


def drop(drive: Drive, worker: int, lease: Lease, computed: int) -> list[Effect]:
    dropped = Dropped(number=lease.number, computed=computed)
    return drive.happen(events.Received(peer=peer_of(worker), message=dropped))


def listed(drive: Drive, worker: int) -> list[UnusedWork]:
    """Return what the ledger lists of a worker in the round at hand."""
    entries = drive.coordinator.state.account.entries
    return [entry for entry in entries if isinstance(entry, UnusedWork) and entry.rank == worker - 1]


def test_a_worker_is_told_at_once_that_another_was_faster_and_gets_nothing_before_it_has_answered() -> None:
    drive, lease, effects = withdrawn()
    assert messages(effects, 2) == [Withdrawal(number=lease.number)]
    assert drive.coordinator.round.step == 1
    # There is work for both.
    assert kinds(effects, 1)[-1] is Lease
    assert drive.coordinator.leases.held_by(1) == []
    assert drive.coordinator.leases.free()
    effects = drop(drive, 2, lease, 0)
    assert set(kinds(effects, 2)) == {Lease}
    assert drive.coordinator.leases.held_by(1)


@pytest.mark.parametrize(("computed", "hi"), [(1, 1), (3, 3), (4, 4), (2**31, 4)])
def test_what_was_computed_in_vain_is_listed_with_its_times(computed: int, hi: int) -> None:
    drive, lease, _ = withdrawn()
    drive.pass_time(0.5)
    drop(drive, 2, lease, computed)
    (entry,) = listed(drive, 2)
    assert (entry.work, entry.step, entry.node(), entry.cause) == ("train", 0, Node(0, hi), UnusedCause.FASTER)
    assert entry.began_s is not None
    assert entry.ended_s == pytest.approx(entry.began_s + 2.0)


def test_of_one_that_had_not_begun_nothing_is_listed() -> None:
    drive, lease, _ = withdrawn()
    drop(drive, 2, lease, 0)
    assert listed(drive, 2) == []


def test_an_answer_counts_once_and_for_its_own_worker_and_lease_alone() -> None:
    drive, lease, _ = withdrawn()
    other = Lease(work="train", step=0, lo=0, hi=4, number=lease.number + 1)
    assert drop(drive, 1, lease, 4) == drop(drive, 2, other, 4) == []
    assert kinds(drop(drive, 9, lease, 4), 9) == [Eviction]
    assert listed(drive, 1) == listed(drive, 2) == []
    drop(drive, 2, lease, 4)
    drop(drive, 2, lease, 4)
    assert len(listed(drive, 2)) == 1


def test_a_result_that_was_on_its_way_is_an_answer_too_and_is_not_applied() -> None:
    drive, lease, _ = withdrawn()
    counted = list(drive.counted)
    drive.pass_time(0.5)
    drive.send(2, result_of(lease))
    assert drive.counted == counted
    (entry,) = listed(drive, 2)
    assert (entry.node(), entry.cause) == (Node(0, 4), UnusedCause.FASTER)
    assert entry.began_s is not None
    assert entry.ended_s == pytest.approx(entry.began_s + 2.0)
    # What it says of the withdrawal, which it reads later, changes nothing.
    assert drop(drive, 2, lease, 0) == []


def test_one_that_leaves_instead_of_answering_is_not_waited_for() -> None:
    drive, _, _ = withdrawn()
    drive.leave(2)
    assert drive.coordinator.scheduler.withdrawals.deadlines.soonest() is None
    drive.finish()
    assert finished(drive.effects)


def test_one_that_does_not_answer_within_the_time_of_the_lease_is_late() -> None:
    drive, _, _ = withdrawn()
    drive.leases[2].clear()
    told = []
    for _ in range(59):
        told.append(said(drive.pass_time(1.0)))
        drive.happen(events.Received(peer=peer_of(1), message=SumsFrame(step=0, lo=0, hi=1, start=0)))
        drive.ask(2)
    text = "worker 1 (host host, pid 2) has sent nothing for "
    assert text in "\n".join(told)
    assert "others have computed its micro-batches" in "\n".join(told)
    member = drive.coordinator.membership.members[peer_of(2)]
    assert member.state is MemberState.SUSPECT
    drive.finish()
    assert finished(drive.effects)


def test_after_the_end_of_the_run_an_answer_is_ignored() -> None:
    drive, lease, _ = withdrawn()
    while not drive.coordinator.is_over():
        drive.leases[2] = []
        drive.finish_round()
    assert drop(drive, 2, lease, 2) == []
