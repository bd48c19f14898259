"""Between two epochs the coordinator waits for callbacks where it is told to, and for nothing else."""

from lockstep.common.protocol.messages import CallbackDecision, Finished, Lease
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import INTERRUPT, Drive, facts_of, finished, kinds, messages, result_of, with_options

#: Two epochs of three steps.
FACTS = with_options(facts_of(), pause=True)


def paused() -> Drive:
    """Return a run of two workers between its epochs."""
    drive = Drive(FACTS)
    drive.enter(1, 2)
    for _ in range(4):
        drive.finish_round()
    assert drive.coordinator.phase is RunPhase.PAUSED
    return drive


def say(drive: Drive, epoch: int, *, stops: bool) -> list[Effect]:
    return drive.happen(events.Received(peer=b"callbacks", message=CallbackDecision(epoch=epoch, stops=stops)))


def test_no_work_is_given_out_before_the_word() -> None:
    drive = paused()
    assert drive.leased() == []
    assert Lease not in kinds(drive.enter(3) + drive.pass_time(5.0) + drive.leave(3))
    effects = say(drive, 1, stops=False)
    assert {(lease.work, lease.step) for lease in messages(effects) if isinstance(lease, Lease)} == {("train", 3)}
    drive.finish()
    # There is no pause after the last epoch: nothing is left to be decided.
    assert [finish.failure for finish in finished(drive.effects)] == [""]


def test_the_run_ends_by_the_word() -> None:
    drive = paused()
    effects = say(drive, 1, stops=True)
    assert [message for message in messages(effects) if isinstance(message, Finished)] == [Finished(reason="")] * 2
    assert [finish.failure for finish in finished(effects)] == [""]
    status = drive.coordinator.status(drive.now)
    assert (status.epoch, status.step, status.phase) == (1, 3, "finished")


def test_waiting_is_no_time_of_training() -> None:
    drive = paused()
    before = drive.coordinator.progress.train_s
    drive.pass_time(1000.0)
    say(drive, 1, stops=False)
    drive.finish_round()
    assert drive.coordinator.progress.train_s == before


def test_what_comes_late_is_not_counted() -> None:
    drive = Drive(FACTS)
    drive.enter(1)
    for _ in range(3):
        drive.finish_round()
    late = result_of(drive.leases[1][0])
    drive.finish_round()
    assert drive.send(1, late) == []
    assert say(drive, 2, stops=True) == []
    assert drive.coordinator.phase is RunPhase.PAUSED


def test_one_that_begins_between_two_epochs_asks_before_it_goes_on() -> None:
    drive = Drive(FACTS)
    drive.coordinator = Coordinator(
        FACTS, all_parts(), progress=paused().coordinator.progress, start=Round("train", 3, 4)
    )
    drive.enter(1)
    assert drive.coordinator.phase is RunPhase.PAUSED
    assert Lease in kinds(say(drive, 1, stops=False))


def test_an_interrupt_ends_a_pause() -> None:
    drive = paused()
    assert [finish.failure for finish in finished(drive.happen(INTERRUPT))] == ["interrupted"]
