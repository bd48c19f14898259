"""When checkpoints are due: by steps, by time, and at the end of epochs that last long enough."""

import pytest

from ps.checkpoint.checkpointer import SPARING, CheckpointSchedule


def test_every_so_many_steps_wherever_it_began() -> None:
    schedule, due = CheckpointSchedule(every_steps=4, every_s=1e9, last_steps=6), []
    for steps in range(7, 20):
        if schedule.is_due(steps, 0.0, ends_epoch=False):
            due.append(steps)
            schedule.record_taken(steps, 0.0, 0.0)
    assert due == [8, 12, 16]


def test_steps_that_were_missed_are_made_up_for() -> None:
    schedule = CheckpointSchedule(every_steps=4, last_steps=3)
    assert schedule.is_due(9, 0.0, ends_epoch=False)


@pytest.mark.parametrize(("now", "is_due"), [(59.9, False), (60.0, True), (500.0, True)])
def test_every_so_many_seconds(now: float, is_due: bool) -> None:
    assert CheckpointSchedule(every_s=60.0).is_due(1, now, ends_epoch=False) is is_due


def test_epochs_that_are_shorter_than_their_checkpoint_is_worth_have_none() -> None:
    schedule = CheckpointSchedule(last_s=100.0)
    assert schedule.is_due(5, 100.0, ends_epoch=True)
    schedule.record_taken(5, 100.0, 100.5)
    assert not schedule.is_due(10, 100.5 + SPARING * 0.5 - 0.1, ends_epoch=True)
    assert schedule.is_due(10, 100.5 + SPARING * 0.5, ends_epoch=True)
