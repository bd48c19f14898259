"""With several servers: a result counts once all have its sums, and once only; who comes early is not forgotten."""

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, ProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Finished, Lease, Result, SumsFrame, Welcome
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Effect, Finish, RecordEpoch, Send, UpdateWeights
from lockstep.ps.coordinator.membership import MemberState
from lockstep.ps.coordinator.scheduling.stragglers import ENOUGH, FLOOR_S
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import UnusedWork
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import plan_of
from tests.lockstep.ps.runs import TEST, TRAIN, Drive, facts_of, kinds, messages, peer_of, result_of, with_options

SHARDS = events.ServersReady(addresses=("memory://0",), shares=False, obstacle="no such folder")


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
    why = "others had done it, or it came twice"
    assert again[-1] == UnusedWork(work="train", step=0, lo=late.lo, hi=late.hi, rank=0, why=why)
    (update,) = [effect for effect in finish_step(drive) if isinstance(effect, UpdateWeights)]
    assert sorted(one for share in update.account.shares for one in range(share.lo, share.hi)) == list(range(16))
    assert update.tally.count == 16


def test_a_worker_whose_slot_is_read_no_more_gets_another_lease() -> None:
    drive, late = contested()
    assert len(drive.coordinator.leases.held_by(0)) == 1
    assert kinds(acknowledge(drive, 1, late.node()), 1) == [Lease]


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
    assert drive.coordinator.membership.obstacle == "no such folder"


def test_workers_that_came_before_the_servers_are_told_of_an_interrupt() -> None:
    drive = Drive(several())
    drive.join(1)
    drive.join(2)
    effects = drive.happen(events.Interrupted())
    told = [Finished(reason="interrupted", kind=FailureKind.INTERRUPTED)]
    assert messages(effects, 1) == messages(effects, 2) == told


def test_a_worker_of_a_run_that_lost_a_server_is_not_dismissed() -> None:
    drive = begun(1)
    effects = drive.happen(events.ServerLost(text="shard 1 is gone"))
    assert effects == [Finish(failure="shard 1 is gone", kind=FailureKind.SERVER_LOST)]


def test_weights_that_are_not_finite_end_the_run_and_workers_are_told() -> None:
    drive = begun(1)
    effects = drive.happen(events.WeightsNotFinite(text="a weight is not finite"))
    assert effects == [
        Send(peer=peer_of(1), message=Finished(reason="a weight is not finite", kind=FailureKind.DIVERGED)),
        Finish(failure="a weight is not finite", kind=FailureKind.DIVERGED),
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


def test_an_obstacle_that_is_known_is_not_replaced_by_that_of_the_servers() -> None:
    drive = Drive(several())
    drive.coordinator.membership.obstacle = "first"
    drive.happen(SHARDS)
    assert drive.coordinator.membership.obstacle == "first"


def test_the_clock_of_a_run_starts_with_its_first_round() -> None:
    drive = Drive()
    drive.now = 9000.0
    drive.join(1)
    drive.now += 50.0
    drive.prepare(1)
    drive.now += 2.0
    drive.answer(1)
    progress = drive.coordinator.progress
    assert progress.started == 9050.0
    assert (progress.last_step.round_s, progress.train_s) == (2.0, 2.0)


def test_a_worker_that_comes_in_the_middle_does_not_begin_the_round_again() -> None:
    drive = Drive()
    drive.enter(1)
    drive.now += 3.0
    drive.enter(2)
    drive.now += 1.0
    while drive.coordinator.round.step == 0:
        drive.answer(next(worker for worker, leases in drive.leases.items() if leases))
    assert drive.coordinator.progress.last_step.round_s == 4.0


def test_each_round_is_timed_from_its_own_beginning() -> None:
    drive = Drive()
    drive.enter(1)
    rounds = []
    for _ in range(3):
        drive.now += 2.0
        drive.answer(1)
        rounds.append(drive.coordinator.progress.last_step.round_s)
    drive.now += 30.0
    assert drive.coordinator.round.work == "evaluate"
    drive.answer(1)
    drive.now += 2.0
    drive.answer(1)
    assert [*rounds, drive.coordinator.progress.last_step.round_s] == [2.0] * 4
    assert drive.coordinator.progress.train_s == 8.0


def test_a_sign_of_progress_extends_what_is_held() -> None:
    drive = Drive()
    drive.enter(1)
    drive.pass_time(40.0)
    drive.happen(events.Received(peer=peer_of(1), message=SumsFrame(step=0, lo=0, hi=1, start=0)))
    assert [one.deadline for one in drive.coordinator.leases.held_by(0)] == [
        drive.now + drive.info.options.lease_timeout
    ]
    drive.now += 1.0
    drive.ask(1)
    assert [one.deadline for one in drive.coordinator.leases.held_by(0)] == [
        drive.now - 1.0 + drive.info.options.lease_timeout
    ]


def test_a_sign_of_progress_gives_a_worker_the_time_that_it_takes_itself_for_all_that_it_holds() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=16), min_workers=2))
    drive.enter(1, 2)
    timeouts = drive.coordinator.stragglers.timeouts
    for rank, seconds in ((0, 1.0), (1, 2.0)):
        for _ in range(ENOUGH):
            timeouts.begin(rank, 0.0)
            timeouts.record(rank, "train", 1, seconds)
    drive.happen(events.Received(peer=peer_of(1), message=SumsFrame(step=0, lo=0, hi=1, start=0)))
    held = drive.coordinator.leases.held_by(0)
    seconds = timeouts.timeout_s(0, "train", sum(len(lease.node) for lease in held))
    assert {lease.deadline - drive.now for lease in held} == {seconds}
    assert seconds != timeouts.timeout_s(1, "train", 6)
    assert FLOOR_S < seconds < drive.info.options.lease_timeout


def test_samples_are_counted_by_sample_and_not_by_target() -> None:
    drive = Drive(replace(facts_of(), targets=2))
    drive.enter(1)
    result = result_of(drive.leases[1].pop(0))
    drive.send(1, msgspec.structs.replace(result, count=32))
    samples = drive.coordinator.membership.members[peer_of(1)].samples
    assert samples == 16
    assert isinstance(samples, int)
    assert drive.coordinator.progress.samples == 16


def test_what_a_smaller_result_sets_free_goes_to_others_too() -> None:
    drive = Drive()
    drive.enter(1)
    (whole,) = drive.leases[1]
    drive.enter(2)
    assert not drive.leases.get(2)
    drive.send(1, result_of(msgspec.structs.replace(whole, hi=2)))
    assert drive.leases[2]


def test_what_is_lost_in_a_validation_is_listed_with_its_epoch() -> None:
    info = facts_of(min_workers=2)
    drive = Drive(replace(info, plan=plan_of(info.job, TRAIN, TEST, 20)))
    drive.enter(1, 2)
    while drive.coordinator.round.work == "train":
        drive.finish_round()
    assert drive.coordinator.round.work == "validate"
    (holder,) = [worker for worker, leases in drive.leases.items() if leases]
    drive.leave(holder)
    drive.finish_round()
    (record,) = [effect for effect in drive.finish_round() if isinstance(effect, RecordEpoch)]
    assert [entry.work for entry in record.account.entries if isinstance(entry, UnusedWork)] == ["validate"]
    assert (record.epoch.epoch, record.epoch.val_loss, record.epoch.test_loss) == (1, 1.0, 1.0)
    assert [effect for effect in drive.effects if isinstance(effect, RecordEpoch)] == [record]


def test_an_epoch_may_have_one_step_and_a_run_stops_early_by_its_history() -> None:
    drive = Drive(facts_of(Job(model="linear", epochs=5, global_batch=40, micro_batches=4, patience=2)))
    drive.enter(1)
    drive.finish()
    # No epoch was better than the first.
    assert [effect.epoch.epoch for effect in drive.effects if isinstance(effect, RecordEpoch)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("is_held", "told"),
    [(True, "a worker holds leases that is not ready"), (False, "nobody works, and nobody is reminded")],
)
def test_validate_finds_a_planted_contradiction(is_held: bool, told: str) -> None:
    drive = Drive()
    drive.enter(1)
    coordinator = drive.coordinator
    coordinator.membership.set_state(coordinator.membership.members[peer_of(1)], MemberState.SUSPECT)
    if not is_held:
        coordinator.leases.release(0)
    with pytest.raises(AssertionError) as caught:
        coordinator.validate()
    assert str(caught.value) == told


@pytest.mark.parametrize("shares", [False, True])
def test_memory_is_offered_where_all_servers_see_it(shares: bool) -> None:
    drive = Drive(replace(several(), memory="lockstep-1"))
    drive.happen(msgspec.structs.replace(SHARDS, shares=shares))
    (welcome,) = messages(drive.join(1))
    assert isinstance(welcome, Welcome)
    assert welcome.memory == ("lockstep-1" if shares else "")
