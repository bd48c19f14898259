"""A reminder is due when waiting begins, and again while it lasts."""

import pytest

from ps.coordinator.status import REMINDER_S, Reminder


def test_it_is_due_at_once_and_then_every_few_seconds() -> None:
    reminder = Reminder()
    due = [at for at in range(21) if reminder.is_due(float(at), is_waiting=True)]
    assert due == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("pause", [0.1, 100.0])
def test_waiting_that_begins_anew_is_told_at_once(pause: float) -> None:
    reminder = Reminder()
    assert reminder.is_due(0.0, is_waiting=True)
    assert not reminder.is_due(0.1, is_waiting=False)
    assert reminder.due is None
    assert reminder.is_due(0.1 + pause, is_waiting=True)
    assert reminder.due == 0.1 + pause + REMINDER_S
