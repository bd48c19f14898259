"""What a resumed run takes over from a checkpoint: both slots of weights, all figures, whatever the clock shows."""

from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.errors import DataError, FileFormatError, JobError, ModelError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import Guess
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.checkpoint.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    CheckpointIdentity,
    RunProgress,
    read_checkpoint,
    sealed_parts,
)
from lockstep.ps.checkpoint.resuming import (
    Resumption,
    begin_again,
    check_identity,
    coordinator_of,
    fill,
    first_round,
    last_to_resume,
    resume,
)
from lockstep.ps.records.ledger import RunBegun, StepDone, read_lines
from lockstep.ps.records.receipt import first_link, next_link
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import RunFolder
from lockstep.ps.run.plan import Round
from lockstep.ps.setup import RunSetup, open_run
from tests.lockstep.ps.runs import facts_of
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
    count=9,
    metrics=(5, 9),
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
LOST = b"".join(msgspec.json.encode(StepDone(step=step, shares=[], losses=b"", checksum=0)) + b"\n" for step in (4, 5))


def opened(job: Job = JOB) -> RunSetup:
    """Return the setup of a run whose samples have two targets each, as a regression's may."""
    setup = open_run("run", job, digits(), RunOptions())
    return replace(setup, info=replace(setup.info, targets=2, guess=Guess(0.25, 0.5)))


def checkpoint_of(setup: RunSetup, path: Path, saved: RunProgress = SAVED) -> Checkpoint:
    rng = generator(0, Purpose.CANARY)
    state = {name: rng.standard_normal(slot.size, dtype=np.float32) for name, slot in setup.shard.state.items()}
    weights = rng.standard_normal(setup.layout.size, dtype=np.float32)
    write_atomically(path, sealed_parts(CheckpointIdentity.of(setup.info), saved, setup.layout, weights, state))
    return read_checkpoint(path)


def recorder_of(setup: RunSetup, folder: RunFolder) -> MetricsRecorder:
    setting = Setting(transport="memory", started=STARTED_S)
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
    weights, state = checkpoint.held(setup.layout, setup.shard.state)
    assert [slot.tobytes() for slot in setup.shard.slots] == [weights.tobytes()] * 2
    assert setup.shard.kept_weights(is_diverged=True)[0].tobytes() == weights.tobytes()
    assert setup.shard.updates == steps
    assert {name: slot.tobytes() for name, slot in setup.shard.state.items()} == {
        name: slot.tobytes() for name, slot in state.items()
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


def test_a_new_run_begins_with_the_first_step_and_with_what_its_score_is_measured_by() -> None:
    setup = opened()
    start = first_round(setup)
    assert (start.round, start.progress.compute_s) == (Round("train", 0, JOB.micro_batches), 0.0)
    assert (start.progress.targets, start.progress.guess) == (2, Guess(0.25, 0.5))


def test_every_figure_goes_on_from_where_it_was(tmp_path: Path) -> None:
    setup, recorder, _, start = resumed(tmp_path)
    assert start.round == Round("train", 4, JOB.micro_batches)
    progress = start.progress
    assert (progress.steps, progress.samples, progress.train_s) == (4, 56, 70.0)
    assert (progress.audited, progress.unaudited) == (11, 13)
    assert progress.epoch == Tally(2.5, 9, metrics=(5, 9))
    assert progress.history == [msgspec.structs.replace(EPOCH, weights_sha256="")]
    assert (progress.targets, progress.guess) == (2, Guess(0.25, 0.5))
    assert (progress.compute_s, progress.update_s) == (60.0, 3.0)
    coordinator = coordinator_of(setup.info, start)
    assert coordinator.round == start.round
    assert coordinator.progress is progress
    assert (recorder.steps, recorder.history) == (4, [EPOCH])


def test_time_runs_on_although_the_clock_of_the_new_server_begins_anywhere(tmp_path: Path) -> None:
    _, recorder, _, start = resumed(tmp_path)
    now = STARTED_S + 20.0
    assert now - recorder.setting.started == 130.0 + 20.0
    progress = start.progress
    assert progress.elapsed(now) == 100.0
    progress.begin_round(now)
    assert progress.elapsed(now + 2.0) == 102.0
    # Of the time until then nothing is training, and the speed is that of the new steps alone.
    progress.end_step(Tally(1.0, 16), now + 2.0)
    assert (progress.last_step.round_s, progress.train_s) == (2.0, 72.0)
    assert progress.recent == deque([(70.0, 56), (72.0, 64)])
    assert progress.images_per_s() == 4.0


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
    resume(setup, recorder, folder, checkpoint).progress.history.append(EPOCH)
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
    assert (start.progress.steps, start.progress.compute_s) == (0, 0.0)


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
    with pytest.raises(FileFormatError) as caught:
        resume(setup, recorder_of(setup, folder), folder, checkpoint)
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoint'}: is from the end of a run, so there is nothing to resume: remove the file"
    )


@pytest.mark.parametrize("name", ["metrics", "ledger"])
def test_a_file_that_is_shorter_than_at_the_checkpoint_is_an_error_and_nothing_is_cut(
    tmp_path: Path, name: str
) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    file = folder.metrics if name == "metrics" else folder.ledger
    for path in (folder.metrics.path, folder.ledger.path):
        path.write_bytes(b"x" * 10)
    sizes = {"metrics_bytes": 10, "ledger_bytes": 10, f"{name}_bytes": 11}
    checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", msgspec.structs.replace(SAVED, **sizes))
    with pytest.raises(FileFormatError) as caught:
        resume(setup, recorder_of(setup, folder), folder, checkpoint)
    assert str(caught.value) == (
        f"{file.path}: 10 bytes: expected at least 11, as when the checkpoint was written; put the run's own file back"
    )
    folder.close()
    assert folder.metrics.path.stat().st_size == folder.ledger.path.stat().st_size == 10


@pytest.mark.parametrize("ledger", [b"not JSON\n", b""])
def test_a_ledger_of_something_else_is_named(tmp_path: Path, ledger: bytes) -> None:
    setup, folder = opened(), RunFolder(tmp_path)
    folder.ledger.path.write_bytes(ledger)
    saved = msgspec.structs.replace(SAVED, ledger_bytes=len(ledger))
    checkpoint = checkpoint_of(setup, tmp_path / "checkpoint", saved)
    with pytest.raises(FileFormatError) as caught:
        resume(setup, recorder_of(setup, folder), folder, checkpoint)
    folder.close()
    assert str(caught.value).startswith(f"{folder.ledger.path}: ")


def taken_by(**values: Any) -> Checkpoint:
    """Return a checkpoint of a run that differs from that of `facts_of` in these values of its identity."""
    identity = msgspec.structs.replace(CheckpointIdentity.of(facts_of()), **values)
    return Checkpoint(path=Path("step-4"), identity=identity, progress=SAVED, arrays={})


HERE = facts_of()
OTHER_JOB = msgspec.structs.replace(HERE.job, epochs=3, seed=9, model="mlp")
OTHER_NUMERICS = msgspec.structs.replace(HERE.fingerprint, kernel="Z80", threads=7)
#: What differs, and what is reported: the first difference in this order.
DIFFERENCES: list[tuple[dict[str, Any], type[UsageError], str]] = [
    (
        {"job": OTHER_JOB, "source": "b" * 64},
        JobError,
        (
            "step-4 belongs to another job: model = 'mlp' in the run, 'linear' here; seed = 9 in the run, 0 here; "
            "epochs = 3 in the run, 2 here: expected the same; a new run may start from --initial step-4"
        ),
    ),
    (
        {"source": "b" * 64, "dataset": "b" * 64},
        ModelError,
        (
            "the file of model 'linear' has changed since step-4 was written "
            "(SHA-256 bbbbbbbbbbbb… then, aaaaaaaaaaaa… now): expected the same file"
        ),
    ),
    (
        {"dataset": "b" * 64, "numerics": OTHER_NUMERICS},
        DataError,
        (
            "the dataset 'mnist' has changed since step-4 was written "
            "(SHA-256 bbbbbbbbbbbb… then, 0123456789ab… now): expected the same data"
        ),
    ),
    (
        {"numerics": OTHER_NUMERICS, "layout": "b" * 64},
        UsageError,
        (
            "the numerics differ from those that wrote step-4, and so would the bits: "
            f"kernel 'Z80' in the run, {HERE.fingerprint.kernel!r} here; threads 7 in the run, "
            f"{HERE.fingerprint.threads} here: use the machine and version of the run"
        ),
    ),
    (
        {"numerics": msgspec.structs.replace(OTHER_NUMERICS, code="9a7f17e401bd27a7")},
        UsageError,
        (
            "another version of Lockstep wrote step-4, and with this one the bits may differ (code 9a7f17e401bd27a7 "
            f"then, {HERE.fingerprint.code} now): resume the run with that version; a new run may start from "
            "--initial step-4"
        ),
    ),
    (
        {"layout": "b" * 64},
        ModelError,
        (
            "model 'linear' has other parameters than when step-4 was written, or other values of frozen ones: "
            "expected the same"
        ),
    ),
]


@pytest.mark.parametrize(("values", "kind", "text"), DIFFERENCES)
def test_a_checkpoint_of_another_run_is_refused_with_the_first_difference(
    values: dict[str, Any], kind: type[UsageError], text: str
) -> None:
    source = "a" * 64
    with pytest.raises(UsageError) as caught:
        check_identity(taken_by(**{"source": source, **values}), replace(HERE, source=source))
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_a_checkpoint_of_the_same_run_is_accepted_and_of_other_numerics_if_that_is_allowed() -> None:
    check_identity(taken_by(), HERE)
    check_identity(taken_by(numerics=OTHER_NUMERICS), HERE, allows_mixed_numerics=True)
    with pytest.raises(ModelError, match="other parameters"):
        check_identity(taken_by(numerics=OTHER_NUMERICS, layout="b" * 64), HERE, allows_mixed_numerics=True)


#: Two epochs, of which the first is the better one.
EPOCHS = [
    msgspec.structs.replace(EPOCH, epoch=number, test_loss=0.1 * number, weights_sha256=str(number) * 64)
    for number in (1, 2)
]


def saved_epochs(
    path: Path, setup: RunSetup, *saved_at: tuple[int, list[EpochRecord]]
) -> tuple[CheckpointFolder, list[str]]:
    """Save checkpoints after these steps with these epochs, by default those of two epochs."""
    said: list[str] = []
    folder = CheckpointFolder(path / "checkpoints", said.append)
    for steps, history in saved_at or ((3, EPOCHS[:1]), (6, EPOCHS)):
        saved = msgspec.structs.replace(SAVED, steps=steps, is_evaluated=True, history=history)
        weights, state = np.full(setup.layout.size, steps, np.float32), setup.shard.state
        folder.save(steps, sealed_parts(CheckpointIdentity.of(setup.info), saved, setup.layout, weights, state), None)
    return folder, said


def test_a_run_that_keeps_the_best_weights_resumes_with_those_so_far(tmp_path: Path) -> None:
    setup = opened(job_of(steps=7, momentum=0.9, keep_best=True))
    folder, said = saved_epochs(tmp_path, setup)
    found = last_to_resume(folder)
    assert found is not None
    assert [each and each.path for each in found] == [folder.file_of(6), folder.file_of(3)]
    assert said == []


def test_a_checkpoint_without_the_best_epochs_is_not_used_and_that_is_told(tmp_path: Path) -> None:
    setup = opened(job_of(steps=7, momentum=0.9, keep_best=True))
    folder, said = saved_epochs(tmp_path, setup)
    folder.file_of(3).unlink()
    assert last_to_resume(folder) is None
    assert said == [f"warning: {folder.file_of(6)}: the best epoch's weights are gone: using the one before it"]


@pytest.mark.parametrize(("keep_best", "history"), [(True, []), (False, EPOCHS)])
def test_a_run_needs_no_best_weights_before_its_first_epoch_or_if_it_does_not_keep_them(
    tmp_path: Path, keep_best: bool, history: list[EpochRecord]
) -> None:
    setup = opened(job_of(steps=7, momentum=0.9, keep_best=keep_best))
    folder, said = saved_epochs(tmp_path, setup, (6, history))
    found = last_to_resume(folder)
    assert found is not None
    assert [each and each.path for each in found] == [folder.file_of(6), None]
    assert said == []


def test_the_same_data_may_be_somewhere_else_by_now() -> None:
    check_identity(taken_by(job=msgspec.structs.replace(HERE.job, data="moved/data.npz")), HERE)
