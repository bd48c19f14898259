"""The flow of rounds: how they are timed, what extends leases, and what the record of an epoch has."""

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import SumsFrame
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import RecordEpoch
from lockstep.ps.coordinator.membership import MemberState
from lockstep.ps.coordinator.scheduling.stragglers import ENOUGH, FLOOR_S
from lockstep.ps.records.ledger import UnusedWork
from lockstep.ps.run.plan import plan_of
from tests.lockstep.ps.runs import TEST, TRAIN, Drive, facts_of, peer_of, result_of


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
    [(True, "a worker holds leases that is not ready"), (False, "no worker has work, and no reminder is due")],
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
