"""What raises, diverges or is interrupted ends the run with a clear word."""

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import TEXT_LIMIT, ComputeFailed, Eviction, Finished, Lease
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.transitions import RunPhase
from tests.lockstep.ps.runs import INTERRUPT, Drive, facts_of, finished, kinds, messages, peer_of, said


def test_a_micro_batch_that_raised_goes_to_another_worker_and_the_traceback_is_said() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    node = Node(drive.leases[1][0].lo, drive.leases[1][0].hi)
    effects = drive.fail(1, "Traceback: ValueError: odd image")
    assert f"micro-batches {node} of step 0 on worker 0 (host host, pid 1) raised" in said(effects)
    assert "ValueError: odd image" in said(effects)
    while node not in [Node(lease.lo, lease.hi) for lease in drive.leases[2]]:
        drive.answer(2)
    drive.finish()
    assert drive.coordinator.phase is RunPhase.FINISHED


def test_a_micro_batch_that_raises_on_two_workers_stops_the_run_with_the_traceback() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    node = drive.leases[1][0]
    drive.fail(1)
    while drive.leases[2][0].lo != node.lo:
        drive.answer(2)
    effects = drive.fail(2, "Traceback: ValueError: odd image")
    (finish,) = finished(effects)
    assert "raised, as it did before:\n  Traceback: ValueError: odd image" in finish.failure
    assert "worker 1 (host host, pid 2)" in finish.failure
    assert finish.kind is FailureKind.COMPUTE
    assert kinds(effects) == [Finished, Finished]


def test_a_micro_batch_that_raises_twice_on_the_only_worker_stops_the_run() -> None:
    drive = Drive()
    drive.enter(1)
    assert not finished(drive.fail(1))
    assert finished(drive.fail(1))


def test_micro_batches_of_different_steps_may_each_raise_once() -> None:
    drive = Drive()
    drive.enter(1)
    while not drive.coordinator.is_over():
        drive.fail(1)
        drive.answer(1)
    assert drive.coordinator.phase is RunPhase.FINISHED


def test_a_failure_of_what_is_not_held_is_ignored() -> None:
    drive = Drive()
    drive.enter(1)
    number = drive.leases[1][0].number
    failed = ComputeFailed(number=number + 1, traceback="")
    assert drive.happen(events.Received(peer=peer_of(1), message=failed)) == []
    failed = ComputeFailed(number=number, traceback="")
    assert kinds(drive.happen(events.Received(peer=peer_of(9), message=failed))) == [Eviction]


def test_the_failure_that_workers_are_told_is_short_enough_for_them() -> None:
    drive = Drive()
    drive.enter(1)
    drive.fail(1)
    effects = drive.fail(1, "\n".join(["x" * 400] * (TEXT_LIMIT // 400)))
    (told,) = messages(effects)
    assert isinstance(told, Finished)
    assert len(told.reason) <= TEXT_LIMIT
    assert len(finished(effects)[0].failure) > TEXT_LIMIT
    assert len(drive.coordinator.status(drive.now).failure) <= TEXT_LIMIT


def test_divergence_stops_the_run_and_names_the_place() -> None:
    drive = Drive()
    drive.enter(1)
    drive.finish_round()
    effects = drive.diverge(1)
    (finish,) = finished(effects)
    assert finish.kind is FailureKind.DIVERGED
    assert "the loss of step 1, micro-batch 2, is not finite; first seen in layer 3 (Linear)" in finish.failure
    assert "--set clip_norm=1" in finish.failure
    assert messages(effects) == [Finished(reason=finish.failure, kind=FailureKind.DIVERGED)]


def test_divergence_in_an_evaluation_is_told_as_such() -> None:
    drive = Drive()
    drive.enter(1)
    for _ in range(3):
        drive.finish_round()
    (finish,) = finished(drive.diverge(1, micro_batch=0))
    assert "the loss of step 3, evaluation chunk 0, is not finite" in finish.failure


def test_divergence_is_believed_of_one_who_was_asked() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    theirs = drive.leases[2][0].lo
    assert drive.diverge(1, theirs) == []
    assert finished(drive.diverge(2, theirs))


def test_divergence_of_a_lease_that_has_ended_or_a_strangers_is_ignored() -> None:
    drive = Drive()
    drive.enter(1)
    ended = drive.leases[1][0]
    drive.finish_round()
    drive.leases[1].insert(0, ended)
    assert drive.diverge(1) == []
    assert kinds(drive.diverge(9)) == [Eviction]


def test_an_interrupt_ends_the_run_and_everybody_is_told() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1)
    drive.join(2)
    effects = drive.happen(INTERRUPT)
    assert messages(effects) == [Finished(reason="interrupted", kind=FailureKind.INTERRUPTED)] * 2
    assert finished(effects) == [Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)]
    assert drive.coordinator.phase is RunPhase.FAILED


def test_the_others_finish_the_step_without_a_worker_on_which_all_fails() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2, 3)
    while not drive.coordinator.is_over():
        worker = next(worker for worker in (1, 2, 3) if drive.leases[worker])
        failing = worker == 1 and drive.coordinator.round.step == 0
        effects = drive.fail(worker) if failing else drive.answer(worker)
    assert finished(effects) == [Finish()]
    assert Lease in kinds(drive.effects, 1)
