"""While the disk has no room for the records, no work is given out, and what was given out is still accepted."""

import errno
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.protocol.messages import Lease, Withdrawal
from lockstep.ps.coordinator.effects import Effect, UpdateWeights
from lockstep.ps.coordinator.scheduling.stragglers import FLOOR_S
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.run_folder import DiskRoom
from lockstep.ps.server.room import RoomWatch
from tests.lockstep.ps.coordinator.parts.test_multi_step import Team, begun
from tests.lockstep.ps.coordinator.scheduling.test_stragglers import practised
from tests.lockstep.ps.runs import Drive, finished, kinds, said


@dataclass
class Disk:
    """The disk of a run that is driven by hand."""

    drive: Drive
    free_bytes: int = 2**20
    watch: RoomWatch = field(init=False)

    def __post_init__(self) -> None:
        room = DiskRoom(Path("run"), lambda path: self.free_bytes)
        self.watch = RoomWatch(self.drive.coordinator, room, lambda: None, lambda text: None)

    def fill(self) -> list[Effect]:
        """Let a write fail."""
        self.free_bytes = 0
        assert self.watch.deadline() is None
        assert self.watch.room.refuse(OSError(errno.ENOSPC, ""), 1)
        return self._look()

    def free(self) -> list[Effect]:
        """Let there be room again, after a look that finds none."""
        assert self._look() == []
        self.free_bytes = 2**20
        found = self._look()
        assert self.watch.deadline() is None
        return found

    def _look(self) -> list[Effect]:
        assert self.watch.deadline() is not None
        return [effect for event in self.watch.on_time(self.drive.now) for effect in self.drive.happen(event)]


def test_no_work_is_given_out_and_what_was_is_taken() -> None:
    drive = Drive()
    disk = Disk(drive)
    drive.enter(1, 2)
    assert drive.leased()
    disk.fill()
    for worker in (1, 2):
        while drive.leases.get(worker):
            assert Lease not in kinds(drive.answer(worker))
    assert Lease not in kinds(drive.enter(3) + drive.leave(1) + drive.pass_time(1.0))
    assert drive.coordinator.status(drive.now).waiting == disk.watch.missing != ""
    assert Lease in kinds(disk.free())
    assert drive.coordinator.status(drive.now).waiting == ""
    drive.finish()
    assert [finish.failure for finish in finished(drive.effects)] == [""]


def test_a_worker_that_is_late_meanwhile_does_not_keep_the_server_awake() -> None:
    drive = practised()
    Disk(drive).fill()
    assert "to be leased again as soon as a worker is free" in said(drive.pass_time(2 * FLOOR_S))


def test_a_person_is_reminded_of_what_is_missing() -> None:
    drive = Drive()
    disk = Disk(drive)
    drive.enter(1)
    assert "the run pauses" in said(disk.fill())
    assert said(drive.pass_time(4.0)) == ""
    assert "the run pauses" in said(drive.pass_time(2.0))
    assert "the run pauses" not in said(disk.free())


def test_waiting_for_room_is_no_time_of_training() -> None:
    drive = Drive()
    disk = Disk(drive)
    drive.enter(1)
    disk.fill()
    while drive.leases[1]:
        drive.answer(1)
    before = drive.coordinator.progress.train_s
    drive.pass_time(1.0)
    disk.free()
    drive.finish_round()
    assert drive.coordinator.progress.train_s == before


def test_a_team_makes_no_more_steps_by_itself_and_begins_again() -> None:
    drive = Team()
    disk = Disk(drive)
    drive.begin()
    drive.team.inside = {1}
    assert kinds(disk.fill()) == [Withdrawal]
    drive.team.made = 2
    drive.team.inside = set()
    assert Lease not in kinds(drive.pass_time(0.01))
    assert drive.coordinator.phase is RunPhase.TRAINING
    assert Lease in kinds(disk.free())


def test_no_team_begins_to_make_steps_by_itself_meanwhile() -> None:
    drive = Team()
    disk = Disk(drive)
    drive.enter_team(1)
    disk.fill()
    effects = []
    while drive.leases[1]:
        effects += drive.answer(1)
    assert not begun(effects)
    assert not [effect for effect in effects if isinstance(effect, UpdateWeights) and effect.step > 0]
