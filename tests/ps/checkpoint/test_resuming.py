"""What a resumed run takes over from a checkpoint: both slots of weights, all figures, whatever the clock shows."""

from collections import deque
from pathlib import Path

import msgspec
import numpy as np
import pytest

from common.errors import FileFormatError
from common.files.atomic import write_atomically
from common.job.tally import Tally
from common.random import Purpose, generator
from ps.checkpoint.checkpoint import (
    Checkpoint,
    CheckpointIdentity,
    HeldState,
    RunProgress,
    read_checkpoint,
    sealed_parts,
)
from ps.checkpoint.resuming import Resumption, begin_again, coordinator_of, fill, resume
from ps.records.ledger import RunBegun, read_lines
from ps.records.metrics import EpochRecord
from ps.records.receipt import first_link, next_link
from ps.records.recorder import MetricsRecorder, Setting
from ps.records.run_folder import RunFolder
from ps.run.plan import Round
from ps.setup import AdmissionPolicy, RunSetup, open_run
from tests.simulation.small import digits, job_of

#: Seven steps, three an epoch.
JOB = job_of(steps=7, momentum=0.9, wire_weights="bfloat16")

#: When the server that resumes the run was started: clocks do not begin at zero.
STARTED_S = 5000.0

EPOCH = EpochRecord(
    epoch=1, loss=0.1, accuracy=0.5, test_loss=0.2, test_accuracy=0.7, wall_s=40.0, weights_sha256="0" * 64
)

#: Each figure is another number.
SAVED = RunProgress(
    steps=4,
    is_evaluated=False,
    loss_sum=2.5,
    correct=5,
    count=9,
    samples=56,
    history=[EPOCH],
    elapsed_s=100.0,
    wall_s=130.0,
    train_s=70.0,
    compute_s=60.0,
    update_s=3.0,
    metrics_bytes=0,
    ledger_bytes=0,
    audited=11,
    unaudited=13,
)

#: What was recorded of the run before and after its checkpoint: lines of two steps come after it.
METRICS_LINES = (b'{"before":1}\n', b'{"after":1}\n')
LOST = b'{"kind":"step"}\n{"kind":"step"}\n'


def opened() -> RunSetup:
    return open_run("run", JOB, digits(), AdmissionPolicy())


def checkpoint_of(setup: RunSetup, path: Path, saved: RunProgress = SAVED) -> Checkpoint:
    rng = generator(0, Purpose.CANARY)
    state = {name: rng.standard_normal(slot.size, dtype=np.float32) for name, slot in setup.shard.state.items()}
    held = HeldState(weights=rng.standard_normal(setup.layout.size, dtype=np.float32), state=state)
    write_atomically(path, sealed_parts(CheckpointIdentity.of(setup.info), saved, setup.layout, held))
    return read_checkpoint(path)


def recorder_of(setup: RunSetup, folder: RunFolder) -> MetricsRecorder:
    setting = Setting(servers=1, transport="memory", started=STARTED_S)
    return MetricsRecorder(setup.info, setting, setup.layout, folder)


def ledger_before(setup: RunSetup) -> bytes:
    """Return the lines of a run's first epoch."""
    first = first_link(setup.info, "1" * 64)
    link = next_link(first, epoch=1, step=3, weights_sha256="0" * 64)
    lines = (
        {"kind": "begun", "step": 0, "weights_sha256": "1" * 64},
        {"kind": "epoch", "epoch": 1, "step": 3, "weights_sha256": "0" * 64, "link": link.link},
    )
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def resumed(path: Path) -> tuple[RunSetup, MetricsRecorder, RunFolder, Resumption]:
    """Resume the run of a checkpoint in a folder whose files have lines of two more steps."""
    setup, folder = opened(), RunFolder(path)
    before = ledger_before(setup)
    folder.metrics.path.write_bytes(b"".join(METRICS_LINES))
    folder.ledger.path.write_bytes(before + LOST)
    sizes = {"metrics_bytes": len(METRICS_LINES[0]), "ledger_bytes": len(before)}
    checkpoint = checkpoint_of(setup, path / "checkpoint", msgspec.structs.replace(SAVED, **sizes))
    recorder = recorder_of(setup, folder)
    start = resume(setup, recorder, folder, checkpoint)
    folder.close()
    return setup, recorder, folder, start


@pytest.mark.parametrize("steps", [4, 5])
def test_both_slots_have_the_weights_of_the_checkpoint(tmp_path: Path, steps: int) -> None:
    # A run that diverges at its first step after a resume keeps the weights before the last update.
    setup = opened()
    checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", msgspec.structs.replace(SAVED, steps=steps))
    fill(setup.shard, checkpoint, setup)
    held = checkpoint.held(setup.layout, setup.shard.state)
    assert [slot.tobytes() for slot in setup.shard.slots] == [held.weights.tobytes()] * 2
    assert setup.shard.previous_weights()[0].tobytes() == held.weights.tobytes()
    assert setup.shard.updates == steps
    assert {name: slot.tobytes() for name, slot in setup.shard.state.items()} == {
        name: slot.tobytes() for name, slot in held.state.items()
    }


def test_what_workers_are_served_is_rounded_as_after_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    setup = opened()
    fill(setup.shard, checkpoint_of(setup, tmp_path / "checkpoint"), setup)
    there = setup.shard.served_weights.tobytes()
    setup.shard.refresh_served()
    assert setup.shard.served_weights.tobytes() == there


def test_memory_that_others_map_is_filled_and_not_replaced(tmp_path: Path) -> None:
    setup = opened()
    shard = setup.shard
    before = [*shard.slots, *shard.served, *shard.state.values()]
    fill(shard, checkpoint_of(setup, tmp_path / "checkpoint"), setup)
    after = [*shard.slots, *shard.served, *shard.state.values()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_every_figure_goes_on_from_where_it_was(tmp_path: Path) -> None:
    setup, recorder, _, start = resumed(tmp_path)
    assert start.round == Round("train", 4, JOB.micro_batches)
    progress = start.progress
    assert (progress.steps, progress.samples, progress.train_s) == (4, 56, 70.0)
    assert (progress.audited, progress.unaudited) == (11, 13)
    assert progress.epoch == Tally(2.5, 5, 9)
    assert progress.history == [EPOCH.status()]
    assert (progress.targets, progress.guess) == (setup.info.targets, setup.info.guess)
    assert start.compute_s == 60.0
    assert coordinator_of(setup.info, start).membership.compute_s == 60.0
    assert (recorder.steps, recorder.update_s, recorder.history) == (4, 3.0, [EPOCH])


def test_time_runs_on_although_the_clock_of_the_new_server_begins_anywhere(tmp_path: Path) -> None:
    _, recorder, _, start = resumed(tmp_path)
    now = STARTED_S + 20.0
    assert now - recorder.setting.started == 130.0 + 20.0
    progress = start.progress
    assert progress.elapsed(now) == 100.0
    progress.begin_round(now)
    assert progress.elapsed(now + 2.0) == 102.0
    # Of the time until then nothing is training, and the speed is that of the new steps alone.
    progress.end_step(Tally(1.0, 0, 16), now + 2.0)
    assert (progress.last_step.round_s, progress.train_s) == (2.0, 72.0)
    assert progress.recent == deque([(70.0, 56), (72.0, 72)])
    assert progress.images_per_s() == 8.0


def test_lines_after_the_checkpoint_are_cut_off_and_counted(tmp_path: Path) -> None:
    setup, recorder, folder, _ = resumed(tmp_path)
    assert folder.metrics.path.read_bytes() == METRICS_LINES[0]
    *_, begun = read_lines(folder.ledger.path.read_bytes(), "ledger")
    assert begun == RunBegun(step=4, weights_sha256=setup.shard.digest(), lost_steps=2)
    assert [link.epoch for link in recorder.chain] == [0, 1]


def test_the_history_of_a_checkpoint_is_not_changed_by_the_run(tmp_path: Path) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    folder.ledger.path.write_bytes(ledger_before(setup))
    size = folder.ledger.path.stat().st_size
    checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", msgspec.structs.replace(SAVED, ledger_bytes=size))
    recorder = recorder_of(setup, folder)
    resume(setup, recorder, folder, checkpoint).progress.history.append(EPOCH.status())
    recorder.history.append(EPOCH)
    assert checkpoint.progress.history == [EPOCH]
    folder.close()


def test_a_run_without_a_checkpoint_begins_again_with_empty_files(tmp_path: Path) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    folder.metrics.path.write_bytes(METRICS_LINES[0])
    folder.ledger.path.write_bytes(LOST)
    start = begin_again(setup, recorder_of(setup, folder), folder)
    folder.close()
    assert folder.metrics.path.read_bytes() == b""
    lines = read_lines(folder.ledger.path.read_bytes(), "ledger")
    assert lines == [RunBegun(step=0, weights_sha256=setup.shard.digest(), lost_steps=2)]
    assert start.round == setup.info.plan.first()
    assert (start.progress.steps, start.compute_s) == (0, 0.0)


def test_an_evaluated_checkpoint_goes_on_with_the_next_step(tmp_path: Path) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    before = ledger_before(setup)
    folder.ledger.path.write_bytes(before)
    for is_evaluated, work in ((True, "train"), (False, "evaluate")):
        saved = msgspec.structs.replace(SAVED, steps=3, is_evaluated=is_evaluated, ledger_bytes=len(before))
        checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", saved)
        start = resume(setup, recorder_of(setup, folder), folder, checkpoint)
        assert (start.round.work, start.round.step) == (work, 3)
        folder.close()


def test_the_checkpoint_of_an_ended_run_is_an_error(tmp_path: Path) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    saved = msgspec.structs.replace(SAVED, steps=7, is_evaluated=True)
    checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", saved)
    with pytest.raises(FileFormatError, match="is of a run's end"):
        resume(setup, recorder_of(setup, folder), folder, checkpoint)
