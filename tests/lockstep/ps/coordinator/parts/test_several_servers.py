"""With several servers: a result counts once all have its sums, and once only; who comes early is not forgotten."""

import msgspec
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, ProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Finished, Lease, Result, ShardStatus, Welcome
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Effect, Finish, Send, UpdateWeights
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import UnusedCause, UnusedWork
from lockstep.ps.run.info import RunInfo
from tests.lockstep.ps.runs import (
    INTERRUPT,
    Drive,
    facts_of,
    join_of,
    kinds,
    messages,
    peer_of,
    result_of,
    with_options,
)

#: Workers that come early and leave.
LEAVING = 9

SHARDS = events.ServersReady(shards=(ShardStatus(host="a", address="memory://0"),))


def several(*, min_workers: int = 1, job: Job | None = None) -> RunInfo:
    return with_options(facts_of(job, min_workers=min_workers), servers=2)


def begun(*workers: int, job: Job | None = None) -> Drive:
    """Return a run of two servers whose workers have their first leases."""
    drive = Drive(several(min_workers=len(workers), job=job))
    drive.happen(SHARDS)
    drive.enter(*workers)
    return drive


def acknowledge(drive: Drive, worker: int, node: Node) -> list[Effect]:
    rank = drive.coordinator.membership.members[peer_of(worker)].rank
    return drive.happen(events.SumsAcknowledged(rank=rank, node=node))


def finish_step(drive: Drive) -> list[Effect]:
    """Let all leases be answered, and acknowledged at once, until the step is updated."""
    effects: list[Effect] = []
    while not any(isinstance(effect, UpdateWeights) for effect in effects):
        worker = next(worker for worker, leases in drive.leases.items() if leases)
        lease = drive.leases[worker].pop(0)
        effects += drive.send(worker, result_of(lease)) + acknowledge(drive, worker, Node(lease.lo, lease.hi))
    return effects


def test_a_result_counts_once_all_servers_have_its_sums() -> None:
    drive = begun(1, 2)
    result = result_of(drive.leases[1].pop(0))
    assert drive.send(1, result) == []
    assert drive.counted == []
    acknowledge(drive, 1, result.node())
    assert drive.counted == [result.node()]
    assert drive.coordinator.state.pending.results == {}


def test_a_result_counts_at_once_if_all_servers_have_its_sums_before_it_comes() -> None:
    drive = begun(1, 2)
    result = result_of(drive.leases[1].pop(0))
    assert acknowledge(drive, 1, result.node()) == []
    drive.send(1, result)
    assert drive.counted == [result.node()]


def contested() -> tuple[Drive, Result]:
    """Return a run in which a late worker's sums are on their way, and another's of the same node have counted."""
    job = Job(model="linear", epochs=2, global_batch=16, micro_batches=16)
    drive = begun(1, 2, job=job)
    late = result_of(drive.leases[1].pop(0))
    drive.leases.clear()
    drive.pass_time(61.0)
    drive.ask(2)
    (whole,) = drive.leases[2]
    drive.send(1, late)
    drive.send(2, msgspec.structs.replace(late, number=whole.number))
    drive.leases.clear()
    acknowledge(drive, 2, late.node())
    assert drive.counted == [late.node()]
    return drive, late


def test_sums_that_are_acknowledged_after_another_workers_are_not_counted_again() -> None:
    drive, late = contested()
    acknowledge(drive, 1, late.node())
    assert drive.counted == [late.node()]
    again = [entry for entry in drive.coordinator.state.account.entries if isinstance(entry, UnusedWork)]
    cause = UnusedCause.FASTER
    assert again[-1] == UnusedWork(
        work="train", step=0, lo=late.lo, hi=late.hi, rank=0, why="others had done it, or it came twice", cause=cause
    )
    (update,) = [effect for effect in finish_step(drive) if isinstance(effect, UpdateWeights)]
    assert sorted(one for share in update.account.shares for one in range(share.lo, share.hi)) == list(range(16))
    assert update.tally.count == 16


def unacknowledged(workers: tuple[int, ...]) -> tuple[Drive, list[tuple[int, Result]]]:
    """Return a run whose workers have computed all, and have leases of the same again: a server lacks the sums."""
    drive, results = begun(*workers), list[tuple[int, Result]]()
    for worker in workers:
        while drive.leases[worker]:
            results.append((worker, result_of(drive.leases[worker].pop(0))))
            drive.send(*results[-1])
    drive.pass_time(drive.info.options.lease_timeout)
    for worker in workers:
        drive.ask(worker)
    assert (drive.counted, drive.coordinator.leases.free()) == ([], 0)
    return drive, results


def covered(drive: Drive) -> list[int]:
    return sorted(one for node in drive.counted for one in range(node.lo, node.hi))


@pytest.mark.parametrize("workers", [(1,), (1, 2)])
def test_what_did_not_reach_all_servers_is_computed_again_by_the_same_workers(workers: tuple[int, ...]) -> None:
    drive, _ = unacknowledged(workers)
    finish_step(drive)
    assert covered(drive) == [*range(drive.info.job.micro_batches)]


@pytest.mark.parametrize("workers", [(1,), (1, 2)])
def test_the_first_sums_still_count_if_they_are_late(workers: tuple[int, ...]) -> None:
    drive, results = unacknowledged(workers)
    again = [(worker, result_of(lease)) for worker, leases in drive.leases.items() for lease in leases]
    for worker, result in results:
        acknowledge(drive, worker, result.node())
    for worker, result in again:
        drive.send(worker, result)
    assert drive.coordinator.round.step == 1
    assert covered(drive) == [*range(drive.info.job.micro_batches)]


def test_a_worker_whose_sums_are_on_their_way_has_the_whole_time_of_a_lease() -> None:
    drive = begun(1, 2)
    while drive.coordinator.round.step < 2:
        drive.now += 0.1
        finish_step(drive)
    lease = drive.leases[1].pop(0)
    drive.send(1, result_of(lease))
    held = drive.coordinator.leases.held_by(0)
    assert {one.deadline for one in held} == {drive.now + drive.info.options.lease_timeout}


def test_workers_that_came_before_the_servers_are_welcomed_with_them_in_order() -> None:
    drive = Drive(several())
    assert drive.join(2) == drive.join(1) == []
    effects = drive.happen(SHARDS)
    welcomes = {worker: messages(effects, worker) for worker in (1, 2)}
    assert [message.rank for worker in (2, 1) for message in welcomes[worker] if isinstance(message, Welcome)] == [0, 1]
    assert [message.shards for message in messages(effects) if isinstance(message, Welcome)] == [["memory://0"]] * 2
    assert drive.coordinator.admission.early == {}


def test_workers_that_came_before_the_servers_are_told_of_an_interrupt() -> None:
    drive = Drive(several())
    drive.join(1)
    drive.join(2)
    effects = drive.happen(INTERRUPT)
    told = [Finished(reason="interrupted", kind=FailureKind.INTERRUPTED)]
    assert messages(effects, 1) == messages(effects, 2) == told


def test_a_worker_of_a_run_that_lost_a_server_is_not_dismissed() -> None:
    drive = begun(1)
    effects = drive.happen(events.PartFailed(text="shard 1 is gone", kind=FailureKind.SERVER_LOST))
    assert effects == [Finish(failure="shard 1 is gone", kind=FailureKind.SERVER_LOST)]


def test_weights_that_are_not_finite_end_the_run_and_workers_are_told() -> None:
    drive = begun(1)
    effects = drive.happen(events.PartFailed(text="a weight is not finite", kind=FailureKind.DIVERGED))
    assert effects == [
        Finish(failure="a weight is not finite", kind=FailureKind.DIVERGED),
        Send(peer=peer_of(1), message=Finished(reason="a weight is not finite", kind=FailureKind.DIVERGED)),
    ]
    assert drive.coordinator.status(drive.now).failure == "a weight is not finite"


def test_a_worker_that_left_before_the_servers_were_ready_is_not_welcomed() -> None:
    drive = Drive(several())
    drive.join(1)
    drive.join(2)
    drive.leave(1)
    assert [effect.peer for effect in drive.happen(SHARDS) if isinstance(effect, Send)] == [peer_of(2)]


def test_sums_that_are_not_awaited_are_acknowledged_in_vain() -> None:
    drive = begun(1)
    assert acknowledge(drive, 1, Node(0, 1)) == []
    assert drive.happen(events.SumsAcknowledged(rank=9, node=Node(0, 1))) == []


def test_the_next_round_begins_when_this_step_is_updated_and_an_update_of_another_is_an_error() -> None:
    coordinator = begun(1).coordinator
    now = 200.0
    (lease,) = coordinator.leases.held_by(0)
    result = result_of(Lease(work="train", step=0, lo=lease.node.lo, hi=lease.node.hi, number=1))
    coordinator.handle(events.Received(peer=peer_of(1), message=result), now)
    coordinator.handle(events.SumsAcknowledged(rank=0, node=lease.node), now)
    assert coordinator.phase is RunPhase.UPDATING
    with pytest.raises(ProtocolError, match="StepUpdated led to updating: not a transition of the table"):
        coordinator.handle(events.StepUpdated(step=1), now)
    assert coordinator.phase is RunPhase.UPDATING
    assert kinds(coordinator.handle(events.StepUpdated(step=0), now)) == [Lease]
    assert coordinator.round.step == 1


@pytest.mark.parametrize("times", [1, 3])
def test_who_came_early_and_left_is_not_kept(times: int) -> None:
    drive = Drive(several())
    for number in range(LEAVING):
        for _ in range(times):
            drive.happen(events.Received(peer=peer_of(number), message=join_of(number)))
        assert [*drive.coordinator.admission.early] == [peer_of(number)]
        drive.happen(events.PeerLeft(peer=peer_of(number), reason="its connection is gone"))
    assert drive.coordinator.admission.early == {}


def test_the_status_has_the_hosts_of_all_slices() -> None:
    drive = Drive(several())
    assert drive.coordinator.status(drive.now).shards == []
    drive.happen(events.ServersReady(shards=(ShardStatus(host="b", address="tcp://b:7"),)))
    assert drive.coordinator.status(drive.now).shards == [ShardStatus(host="b", address="tcp://b:7")]
