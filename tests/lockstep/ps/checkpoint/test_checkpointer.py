"""Checkpoints are taken as a run goes on; a disk that is full or fails costs checkpoints and nothing else."""

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.files.atomic import write_atomically
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.checkpoint.checkpoint import CheckpointIdentity, RunProgress, read_checkpoint
from lockstep.ps.checkpoint.checkpointer import SPARING, CheckpointSchedule
from lockstep.ps.records.ledger import WeightsAt, read_lines
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.recorder import NO_TRANSPORT, Setting
from lockstep.ps.records.run_folder import RESULT, LineFile
from lockstep.ps.run.progress import Progress
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.session import Destination, RunSession, open_session
from lockstep.runs.single_process import SerialRun
from tests.lockstep.common.files.test_atomic import failing_at
from tests.simulation.small import digits, job_of

#: Seven steps, three an epoch.
JOB = job_of(steps=7)


@dataclass
class Disk:
    """Has no room for checkpoints before a number of attempts, and none for lines while there are none left."""

    failures: int
    lines_fail: int = 0
    error: int = errno.ENOSPC

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(self.error, os.strerror(self.error))
        write_atomically(path, parts)

    def write_lines(self, descriptor: int, data: bytes) -> int:
        if self.lines_fail:
            self.lines_fail -= 1
            raise OSError(self.error, os.strerror(self.error))
        return os.write(descriptor, data)


def session_in(folder: Path, said: list[str], **values: Any) -> tuple[RunSetup, RunSession]:
    opening = open_run("run", JOB, digits(), RunOptions())
    launch = RunOptions(**{"checkpoint_every_steps": 1, "checkpoint_keep": 3, **values})
    setting = Setting(transport=NO_TRANSPORT, started=0.0)
    return opening, open_session(
        opening, setting, Destination(folder=folder / "run", options=launch), ManualClock(), said.append
    )


def train(opening: RunSetup, session: RunSession, waited_s: list[float] | None = None) -> str:
    """Train to the end; waiting takes no time, and is counted in `waited_s`."""
    waited_s = [] if waited_s is None else waited_s
    serial = SerialRun(
        opening,
        session.recorder,
        ManualClock(),
        lambda status: None,
        session.start,
        session.checkpointer,
        say=session.checkpointer.folder.say,
        wait=waited_s.append,
    )
    return serial.train().weights_sha256


def calm(folder: Path) -> str:
    return train(*session_in(folder, []))


def test_those_of_epochs_and_of_steps_are_taken_and_the_best_stays(tmp_path: Path) -> None:
    opening, session = session_in(tmp_path, [], checkpoint_keep=1)
    train(opening, session)
    # When the last one was taken, the last epoch was not evaluated yet.
    best = min(session.recorder.history[:2], key=lambda epoch: epoch.test_loss).epoch
    assert session.checkpointer.folder.steps() == [3 * best, 7]


def test_none_is_taken_where_none_is_kept(tmp_path: Path) -> None:
    opening, session = session_in(tmp_path, [], checkpoint_keep=0)
    train(opening, session)
    assert session.checkpointer.folder.steps() == []


def test_a_disk_that_fails_costs_checkpoints_and_is_told_each_time(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    expected = calm(tmp_path / "calm")
    said, waited_s = list[str](), list[float]()
    opening, session = session_in(tmp_path, said)
    session.checkpointer.folder.write = Disk(failures=4, error=errno.EIO).write
    assert train(opening, session, waited_s) == expected
    assert len(said) == 4
    begin, folder = "warning: cannot write checkpoint", session.checkpointer.folder
    assert all(text.startswith(f"{begin} '{folder.path}") and os.strerror(errno.EIO) in text for text in said)
    assert said[-1].endswith(": the run continues without it, and there is no checkpoint yet")
    assert session.checkpointer.folder.steps()[-1] == 7
    assert (tmp_path / "run" / RESULT).exists()
    assert not waited_s


@pytest.mark.parametrize(("failures", "lines_fail"), [(4, 0), (0, 4)])
def test_a_full_disk_costs_time_and_neither_a_checkpoint_nor_a_line(
    tmp_path: Path, failures: int, lines_fail: int
) -> None:
    (tmp_path / "calm").mkdir()
    expected = calm(tmp_path / "calm")
    said, waited_s = list[str](), list[float]()
    opening, session = session_in(tmp_path, said)
    disk = Disk(failures=failures, lines_fail=lines_fail)
    session.checkpointer.folder.write = disk.write
    session.checkpointer.run.metrics.write = disk.write_lines
    assert train(opening, session, waited_s) == expected
    assert waited_s
    assert [text.partition(":")[0] for text in said] == ["warning", "notice"]
    assert f"the run pauses: the disk of '{tmp_path}/run' is full" in said[0]
    assert session.checkpointer.folder.steps() == [5, 6, 7]
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(7))


def test_the_result_waits_for_room_and_an_interrupt_ends_that(tmp_path: Path) -> None:
    said = list[str]()
    opening, session = session_in(tmp_path, said, checkpoint_keep=0)
    disk = Disk(failures=0, lines_fail=10**6)
    session.checkpointer.run.ledger.write = disk.write_lines

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    serial = SerialRun(opening, session.recorder, ManualClock(), None, session.start, say=said.append, wait=interrupt)
    with pytest.raises(KeyboardInterrupt):
        serial.train()
    assert "the disk of" in said[0]
    assert not (tmp_path / "run" / RESULT).exists()


def test_lines_that_wait_cost_checkpoints_and_no_line(tmp_path: Path) -> None:
    said: list[str] = []
    opening, session = session_in(tmp_path, said)
    assert session.recorder.folder is not None
    session.recorder.folder.metrics.write = Disk(failures=0, lines_fail=3, error=errno.EIO).write_lines
    train(opening, session)
    assert len(said) == 2
    assert said[0].startswith(f"warning: cannot write to '{tmp_path}/run/{METRICS}'")
    assert said[1] == f"'{tmp_path}/run/{METRICS}' can be written to again"
    # What they would have referred to was not on the disk.
    assert len(session.checkpointer.folder.steps()) == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(7))


@pytest.mark.parametrize("name", ["metrics", "ledger"])
def test_lines_that_the_disk_fails_to_keep_cost_a_checkpoint_that_would_refer_to_them(
    tmp_path: Path, name: str
) -> None:
    said: list[str] = []
    opening, session = session_in(tmp_path, said)
    file: LineFile = getattr(session.checkpointer.run, name)
    file.fsync = failing_at(2)
    train(opening, session)
    lost = f"warning: cannot write checkpoint '{session.checkpointer.folder.file_of(2)}': {os.strerror(errno.EIO)}"
    assert said == [f"{lost}: the run continues without it, and that of step 1 stays"]
    assert session.checkpointer.folder.steps()[-1] == 7
    assert (tmp_path / "run" / RESULT).exists()


@pytest.mark.parametrize("odd", ["steps", "history"])
def test_books_that_disagree_are_not_kept(tmp_path: Path, odd: str) -> None:
    opening, session = session_in(tmp_path, [])
    progress = Progress()
    assert session.checkpointer.take(opening.shard, progress)
    if odd == "steps":
        progress.steps = 1  # an interrupt came in the middle of the first update
    else:
        progress.history.append(books_status())
    assert not session.checkpointer.take(opening.shard, progress)
    session.recorder.close()


def books_status() -> Any:
    progress = Progress()
    return progress.end_epoch(1, progress.epoch, 0.0)


EPOCHS = [
    EpochRecord(
        epoch=number,
        loss=0.1,
        accuracy=0.5,
        test_loss=test_loss,
        test_accuracy=0.7,
        wall_s=40.0,
        weights_sha256=str(number) * 64,
    )
    for number, test_loss in ((1, 0.3), (2, 0.2), (3, 0.25))
]


def in_the_middle(opening: RunSetup, session: RunSession, steps: int, epochs: int) -> Progress:
    """Let a session be after some steps and epochs, 150 s after an arbitrary start; return its progress."""
    recorder, checkpointer = session.recorder, session.checkpointer
    checkpointer.clock = ManualClock(150.0)
    checkpointer.schedule = CheckpointSchedule(every_s=1e9, cost_s=1e9)
    recorder.setting = replace(recorder.setting, started=20.0)
    recorder.history = EPOCHS[:epochs]
    opening.shard.updates = recorder.steps = steps
    return Progress(
        started=50.0,
        before_s=1.0,
        steps=steps,
        epoch=Tally(2.5, 9, metrics=(5, 9)),
        history=EPOCHS[:epochs],
        samples=56,
        audited=11,
        unaudited=13,
        train_s=70.0,
        compute_s=60.0,
        update_s=3.0,
    )


@pytest.mark.parametrize(("steps", "epochs", "is_evaluated"), [(4, 1, False), (3, 1, True), (3, 0, False)])
def test_a_checkpoint_has_every_figure_of_the_run_and_the_ledger_its_weights(
    tmp_path: Path, steps: int, epochs: int, is_evaluated: bool
) -> None:
    opening, session = session_in(tmp_path, [])
    progress = in_the_middle(opening, session, steps, epochs)
    checkpointer, run = session.checkpointer, session.checkpointer.run
    run.metrics.append(b"a line")
    assert checkpointer.take(opening.shard, progress)
    checkpoint = read_checkpoint(checkpointer.folder.file_of(steps))
    assert checkpoint.progress == RunProgress(
        steps=steps,
        is_evaluated=is_evaluated,
        loss_sum=2.5,
        count=9,
        metrics=(5, 9),
        samples=56,
        history=EPOCHS[:epochs],
        elapsed_s=101.0,
        wall_s=130.0,
        train_s=70.0,
        compute_s=60.0,
        update_s=3.0,
        metrics_bytes=run.metrics.path.stat().st_size,
        ledger_bytes=run.ledger.path.stat().st_size,
        audited=11,
        unaudited=13,
    )
    assert run.metrics.path.read_bytes() == b"a line\n"
    *_, entry = read_lines(run.ledger.path.read_bytes(), "ledger")
    assert entry == WeightsAt(step=steps, weights_sha256=opening.shard.digest())
    assert checkpoint.identity == CheckpointIdentity.of(opening.info)
    weights, _ = checkpoint.held(opening.layout, opening.shard.state)
    assert weights.tobytes() == opening.shard.weights.tobytes()
    assert (checkpointer.schedule.last_steps, checkpointer.schedule.last_s) == (steps, 150.0)
    session.recorder.close()


@pytest.mark.parametrize(
    ("steps", "epochs", "seen", "is_kept"),
    [
        (6, 2, (5, 1), True),
        (7, 3, (6, 2), False),  # which is not better
        (6, 2, (5, 2), False),  # no epoch has ended since
        (6, 2, (6, 2), False),
    ],
)
@pytest.mark.parametrize("is_large", [False, True])
def test_the_end_of_the_best_epoch_is_kept_in_memory_until_the_next_checkpoint_or_at_once_if_it_is_large(
    tmp_path: Path,
    is_large: bool,
    steps: int,
    epochs: int,
    seen: tuple[int, int],
    is_kept: bool,
) -> None:
    opening, session = session_in(tmp_path, [])
    progress = in_the_middle(opening, session, steps, epochs)
    checkpointer, shard, digest = session.checkpointer, opening.shard, opening.shard.digest()
    checkpointer.seen, checkpointer.most_pending_bytes = seen, 0 if is_large else 2**20
    checkpointer.take_if_due(shard, progress)
    assert checkpointer.seen == (steps, epochs)
    assert checkpointer.folder.steps() == ([steps] if is_kept and is_large else [])
    # The next step changes the weights, and its checkpoint comes with that of the best epoch.
    for slot in shard.slots:
        slot += 1.0
    shard.updates = session.recorder.steps = progress.steps = steps + 1
    assert checkpointer.take(shard, progress)
    session.recorder.close()
    assert checkpointer.folder.steps() == [*([steps] if is_kept else []), steps + 1]
    if is_kept:
        best = read_checkpoint(checkpointer.folder.file_of(steps))
        assert best.progress.compute_s == 60.0
        assert best.is_of(EPOCHS[epochs - 1])
        assert weights_digest(best.held(opening.layout, shard.state)[0]) == digest


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_best_epoch_of_a_run_of_short_epochs_has_its_checkpoint(tmp_path: Path, keep_best: bool) -> None:
    """The clock stands still: no epoch is long enough for a checkpoint of its own."""
    opening, session = session_in(tmp_path, [], checkpoint_every_steps=None, checkpoint_every_seconds=1e6)
    session.recorder.info = replace(opening.info, job=msgspec.structs.replace(JOB, keep_best=keep_best))
    session.checkpointer.schedule.cost_s = 1.0
    train(opening, session)
    best = min(session.recorder.history, key=lambda epoch: epoch.test_loss).epoch
    assert best == 2
    assert session.checkpointer.folder.steps() == [6]


@pytest.mark.parametrize("name", ["metrics", "ledger"])
@pytest.mark.parametrize("what", ["write", "keep"])
def test_there_is_no_checkpoint_without_the_lines_to_which_it_refers(tmp_path: Path, name: str, what: str) -> None:
    opening, session = session_in(tmp_path, [])
    progress = in_the_middle(opening, session, 4, 1)
    checkpointer = session.checkpointer
    file: LineFile = getattr(checkpointer.run, name)
    file.append(b"a line")
    if what == "write":
        file.write = Disk(failures=0, lines_fail=9).write_lines
    else:
        file.fsync = failing_at(1)
    assert not checkpointer.take(opening.shard, progress)
    assert checkpointer.folder.steps() == []
    # The next one is due as if it had been taken: a disk that fails is not tried after each step.
    assert (checkpointer.schedule.last_steps, checkpointer.schedule.last_s) == (4, 150.0)


def test_the_end_of_a_run_has_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    opening, session = session_in(tmp_path, [], checkpoint_every_steps=None, checkpoint_every_seconds=1e6)
    train(opening, session)
    assert session.checkpointer.folder.steps() == [3, 6]


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
