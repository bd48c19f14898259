"""What a status says, and that it always fits a header."""

import msgspec
import pytest

from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import HISTORY_LIMIT, EpochRecord, ServerMessage, Status, WorkerStatus
from lockstep.ps.coordinator.status import REMINDER_S, Reminder, status_of
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.plan import Round
from lockstep.ps.run.progress import Progress
from tests.lockstep.ps.runs import facts_of

EPOCH = EpochRecord(epoch=1, loss=0.123456789, accuracy=0.5, test_loss=0.1, test_accuracy=0.123456789, wall_s=1e9 / 3)
WORKER = WorkerStatus(
    rank=4000,
    host="a-host-of-some-length.example",
    pid=2**22,
    state="computing",
    samples=10**9,
    compute_s=1 / 3,
    processes=256,
)


def status(phase: RunPhase, at: Round, progress: Progress | None = None) -> Status:
    return status_of(facts_of(), progress or Progress(), phase, at, 0.0, [])


def test_epoch_and_step_in_training_evaluation_and_at_the_end() -> None:
    def place(phase: RunPhase, at: Round) -> tuple[int, int]:
        told = status(phase, at)
        return told.epoch, told.step

    assert place(RunPhase.TRAINING, Round("train", 2, 4)) == (1, 2)
    assert place(RunPhase.EVALUATING, Round("evaluate", 3, 1)) == (1, 3)
    assert place(RunPhase.TRAINING, Round("train", 3, 4)) == (2, 3)
    assert place(RunPhase.FINISHED, Round("evaluate", 6, 1)) == (2, 6)


def test_between_two_epochs_it_has_the_figures_of_the_last_one_and_no_zeros() -> None:
    progress = Progress(history=[EPOCH])
    told = status(RunPhase.FINISHED, Round("evaluate", 6, 1), progress)
    assert (told.loss, told.accuracy) == (EPOCH.loss, EPOCH.accuracy)
    progress.end_step(Tally(3.0, 2, metrics=(1, 2)), 1.0, (0.1, 0.1))
    told = status(RunPhase.TRAINING, Round("train", 4, 4), progress)
    assert (told.loss, told.accuracy) == (1.5, 0.5)


def test_the_longest_status_fits_a_header() -> None:
    progress = Progress()
    progress.history = [msgspec.structs.replace(EPOCH, epoch=number) for number in range(1, HISTORY_LIMIT + 10)]
    info = facts_of(Job(model=f"{'x' * 300}.py:build", global_batch=16))
    told = status_of(info, progress, RunPhase.TRAINING, Round("train", 2, 4), 0.0, [WORKER] * 4096, "x" * 50_000)
    decoded, _ = decode(encode(told), ServerMessage)
    assert decoded == told
    assert told.history[-1].epoch == HISTORY_LIMIT + 9


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
