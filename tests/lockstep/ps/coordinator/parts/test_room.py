"""While the disk has no room for the records, no work is given out, and what was given out is still accepted."""

from lockstep.common.protocol.messages import Lease, MultiStepWithdrawal
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.transitions import RunPhase
from tests.lockstep.ps.coordinator.parts.test_multi_step import Team, begun
from tests.lockstep.ps.runs import Drive, finished, kinds, said

MISSING = events.RoomChanged(missing="the run pauses: the disk is full")
FREE = events.RoomChanged(missing="")


def test_no_work_is_given_out_and_what_was_is_taken() -> None:
    drive = Drive()
    drive.enter(1, 2)
    assert drive.leased()
    drive.happen(MISSING)
    for worker in (1, 2):
        while drive.leases.get(worker):
            assert Lease not in kinds(drive.answer(worker))
    assert Lease not in kinds(drive.enter(3) + drive.leave(1) + drive.pass_time(1.0))
    assert drive.coordinator.status(drive.now).phase == "waiting for room on the disk"
    assert Lease in kinds(drive.happen(FREE))
    assert drive.coordinator.status(drive.now).phase == "training"
    drive.finish()
    assert [finish.failure for finish in finished(drive.effects)] == [""]


def test_a_person_is_reminded_of_what_is_missing() -> None:
    drive = Drive()
    drive.enter(1)
    assert "the disk is full" in said(drive.happen(MISSING))
    assert said(drive.pass_time(4.0)) == ""
    assert "the disk is full" in said(drive.pass_time(2.0))
    assert "the disk is full" not in said(drive.happen(FREE))


def test_waiting_for_room_is_no_time_of_training() -> None:
    drive = Drive()
    drive.enter(1)
    drive.happen(MISSING)
    while drive.leases[1]:
        drive.answer(1)
    before = drive.coordinator.progress.train_s
    drive.pass_time(1.0)
    drive.happen(FREE)
    drive.finish_round()
    assert drive.coordinator.progress.train_s == before


def test_a_team_makes_no_more_steps_by_itself_and_begins_again() -> None:
    drive = Team()
    drive.begin()
    drive.team.is_inside = True
    assert kinds(drive.happen(MISSING)) == [MultiStepWithdrawal]
    drive.team.made = 2
    drive.team.is_inside = False
    assert Lease not in kinds(drive.pass_time(0.01))
    assert drive.coordinator.phase is RunPhase.TRAINING
    assert Lease in kinds(drive.happen(FREE))


def test_no_team_begins_to_make_steps_by_itself_meanwhile() -> None:
    drive = Team()
    drive.enter_team(1)
    drive.happen(MISSING)
    effects = []
    while drive.leases[1]:
        effects += drive.answer(1)
    assert not begun(effects)
    assert not [effect for effect in effects if isinstance(effect, UpdateWeights) and effect.step > 0]
