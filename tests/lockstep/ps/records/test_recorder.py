"""What a run leaves on disk: lines of JSON, weights that others can read, a result with the fixed names."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from lockstep.common import nn
from lockstep.common.aggregation.layout import ParameterLayout, layout_of, weights_digest
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import FailureKind, FileFormatError, UsageError
from lockstep.common.job.tally import Tally, pack_losses
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.ledger import Account, EpochDone, LedgerShare, RunBegun, StepDone, UnusedWork, read_lines
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.recorder import MetricsRecorder, Setting, carried
from lockstep.ps.records.run_folder import (
    JOB,
    LEDGER,
    RECEIPT,
    RESULT,
    WEIGHTS,
    RunFolder,
    read_receipt,
    read_result,
    read_statement,
)
from lockstep.ps.run.progress import Moved, Progress, Split
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.lockstep.ps.runs import facts_of

#: The issue's names, on which others rely.
FIXED_NAMES = [
    "model",
    "dataset",
    "seed",
    "workers",
    "servers",
    "transport",
    "epochs",
    "steps",
    "global_batch",
    "micro_batches",
    "wall_s",
    "train_s",
    "images_per_s",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "weights_sha256",
    "history",
]
HISTORY_NAMES = ["loss", "accuracy", "wall_s", "weights_sha256"]

EPOCHS = [
    EpochRecord(epoch=number, loss=1.0 / number, accuracy=0.5, test_loss=0.5, test_accuracy=0.75, wall_s=2.0 * number)
    for number in (1, 2)
]


def layout() -> ParameterLayout:
    return layout_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def weights() -> Vector:
    return np.arange(layout().size, dtype=np.float32)


def recorder_in(folder: Path | None) -> MetricsRecorder:
    setting = Setting(transport="ipc", started=5.0)
    recorder = MetricsRecorder(facts_of(), setting, layout(), RunFolder(folder) if folder else None)
    recorder.begin(weights_digest(weights()))
    return recorder


def account() -> Account:
    """Return what a step came to that two workers have shared, a third having left."""
    made = Account(4)
    made.add(UnusedWork(work="train", step=0, lo=2, hi=4, rank=2, why="it left"))
    made.record_accepted(Node(2, 4), 1, pack_losses([3.0, 4.0]))
    made.record_accepted(Node(0, 2), 0, pack_losses([1.0, 2.0]))
    return made


def record(folder: Path | None) -> MetricsRecorder:
    """Record a run of two epochs to its end."""
    recorder, progress = recorder_in(folder), Progress()
    progress.begin_round(10.0)
    progress.compute_s = 4.0
    for step in range(6):
        progress.end_step(Tally(16.0, 16, metrics=(8, 16)), 12.0, (1.0, 1.5))
        progress.end_update(0.25)
        moved = Moved(sums=1000 * step, weights=300 * step)
        recorder.step(step, Tally(16.0, 16, metrics=(8, 16)), 0.1, 0.25, progress.last_step, moved)
        recorder.account(step, account(), checksum=7)
        if step % 3 == 2:
            recorder.epoch(EPOCHS[step // 3], weights())
    recorder.finish(progress, workers=3, teams=2, weights=weights(), now=20.0)
    recorder.close()
    return recorder


def test_the_result_has_the_fixed_names(tmp_path: Path) -> None:
    record(tmp_path)
    result = json.loads((tmp_path / RESULT).read_text())
    assert set(FIXED_NAMES) <= set(result)
    assert len(result["history"]) == 2
    assert all(set(HISTORY_NAMES) <= set(epoch) for epoch in result["history"])


def test_the_result_says_what_happened(tmp_path: Path) -> None:
    recorder = record(tmp_path)
    result = read_result(tmp_path)
    assert result == recorder.result
    assert (result.model, result.dataset, result.seed) == ("linear", "mnist", 0)
    assert (result.workers, result.teams, result.servers, result.transport) == (3, 2, 1, "ipc")
    assert (result.epochs, result.steps, result.global_batch, result.micro_batches) == (2, 6, 16, 4)
    assert (result.wall_s, result.train_s, result.images_per_s) == (15.0, 12.0, 8.0)
    assert (result.compute_s, result.update_s) == (4.0, 1.5)
    assert result.moved == Moved(sums=2500, weights=750)
    assert result.parameters == 2 * 3 + 3 + 2 * 3
    assert result.split == Split(steps=4, compute_s=1.0, exchange_s=0.25, update_s=0.25, waiting_s=0.5)
    assert (result.train_loss, result.test_loss, result.test_accuracy) == (0.5, 0.5, 0.75)
    assert result.weights_sha256 == weights_digest(weights())


@pytest.mark.parametrize(
    ("sharing", "transport"), [({True}, "shm"), ({False}, "ipc"), ({True, False}, "shm+ipc"), (set(), "ipc")]
)
def test_the_transport_is_what_carried_the_vectors(sharing: set[bool], transport: str) -> None:
    assert carried(Setting(transport="ipc", started=0.0), sharing, "").transport == transport


def test_the_first_obstacle_to_sharing_is_told() -> None:
    none = Setting(transport="ipc", started=0.0)
    full = Setting(transport="ipc", obstacle="no room", started=0.0)
    assert [carried(setting, {False}, "elsewhere").obstacle for setting in (none, full)] == ["elsewhere", "no room"]


def test_crowded_cores_are_told() -> None:
    assert carried(Setting(transport="ipc", started=0.0), {True}, "", "4 wait").crowding == "4 wait"


def test_every_line_of_the_metrics_is_json(tmp_path: Path) -> None:
    record(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step"] * 3 + ["epoch"] + ["step"] * 3 + ["epoch"]
    assert lines[4] == {
        "kind": "step",
        "epoch": 2,
        "step": 3,
        "loss": 1.0,
        "accuracy": 0.5,
        "lr": 0.1,
        "samples": 16,
        "round_s": 2.0,
        "mean_s": 1.0,
        "slowest_s": 1.5,
        "update_s": 0.25,
        "sums_bytes": 3000,
        "weights_bytes": 900,
    }
    assert lines[3] == {"kind": "epoch", **msgspec.to_builtins(EPOCHS[0]), "weights_sha256": weights_digest(weights())}


def test_finished_epochs_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.step(0, Tally(1.0, 1), 0.1, 0.0, Progress().last_step)
    recorder.epoch(EPOCHS[0], weights())
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2
    recorder.close()


def test_the_weights_open_with_the_safetensors_package(tmp_path: Path) -> None:
    record(tmp_path)
    with safe_open(tmp_path / WEIGHTS, "numpy") as file:
        assert file.metadata() == {"run": "test", "model": "linear", "steps": "6"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    expected = layout().read(weights())
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_scalar_keeps_its_shape(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(np.float32(2.0))

    RunFolder(tmp_path).keep_weights(layout_of(Scaled()), np.array([3.0], np.float32), {})
    with safe_open(tmp_path / WEIGHTS, "numpy") as file:
        assert file.get_tensor("scale").shape == ()


def test_a_run_whose_records_were_deleted_has_no_result(tmp_path: Path) -> None:
    recorder = record(tmp_path)
    for name in (LEDGER, RESULT):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=LEDGER):
        recorder.finish(Progress(), workers=3, teams=2, weights=weights(), now=20.0)
    assert not (tmp_path / RESULT).exists()


def test_nothing_half_written_is_left_beside_the_files(tmp_path: Path) -> None:
    record(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, LEDGER, WEIGHTS, RESULT, RECEIPT}


def test_a_failed_run_keeps_its_weights_and_the_reason_but_no_result(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.step(0, Tally(1.0, 1), 0.1, 0.0, Progress().last_step)
    recorder.fail("the loss is not finite", FailureKind.DIVERGED, weights(), 1)
    recorder.close()
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, LEDGER, WEIGHTS, RECEIPT}
    last = json.loads((tmp_path / METRICS).read_text().splitlines()[-1])
    assert last == {
        "kind": "failure",
        "failure": "the loss is not finite",
        "weights_after_steps": 1,
        "cause": "diverged",
    }


def test_a_run_without_a_folder_is_kept_in_memory() -> None:
    recorder = record(None)
    assert recorder.result is not None
    assert len(recorder.result.history) == 2
    recorder.fail("late", FailureKind.AUDIT, weights(), 6)


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_result_that_cannot_be_read_is_told(tmp_path: Path, damage: str) -> None:
    record(tmp_path)
    path = tmp_path / RESULT
    if damage == "gone":
        shutil.move(path, tmp_path / "elsewhere")
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else b'{"model": 3}')
    with pytest.raises(FileFormatError, match="result"):
        read_result(tmp_path)


def test_the_ledger_tells_who_computed_what_and_what_was_in_vain(tmp_path: Path) -> None:
    record(tmp_path)
    lines = read_lines((tmp_path / LEDGER).read_bytes(), "ledger")
    again, done = account().entries, account().step_done(0, 7)
    assert lines[:3] == [RunBegun(step=0, weights_sha256=weights_digest(weights())), *again, done]
    assert done == StepDone(step=0, shares=[LedgerShare(2, 4, 1), LedgerShare(0, 2, 0)], losses=done.losses, checksum=7)
    assert done.loss_sums().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [line.step for line in lines if isinstance(line, StepDone)] == list(range(6))


def test_the_receipt_of_a_finished_run_is_about_its_files(tmp_path: Path) -> None:
    (tmp_path / JOB).write_text("seed = 3\n")
    recorder = recorder_in(tmp_path)
    assert [subject.name for subject in read_statement(tmp_path).subject] == [JOB]
    recorder.close()
    record(tmp_path)
    subjects = {subject.name: subject.digest for subject in read_statement(tmp_path).subject}
    assert subjects.keys() == {JOB, WEIGHTS, LEDGER, METRICS, RESULT}
    for name, digest in subjects.items():
        assert digest == {"sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}


def test_the_receipt_and_the_ledger_have_the_same_chain(tmp_path: Path) -> None:
    recorder = record(tmp_path)
    receipt = read_receipt(tmp_path)
    assert receipt.chain == recorder.chain
    assert [(link.epoch, link.step) for link in receipt.chain] == [(0, 0), (1, 3), (2, 6)]
    assert len({link.link for link in receipt.chain}) == 3
    lines = read_lines((tmp_path / LEDGER).read_bytes(), "ledger")
    assert [line.link for line in lines if isinstance(line, EpochDone)] == [link.link for link in receipt.chain[1:]]


@LINUX_ONLY
def test_a_run_folder_that_is_closed_leaves_nothing_open(tmp_path: Path) -> None:
    with nothing_left_open():
        record(tmp_path)
        failed = recorder_in(tmp_path)
        failed.fail("a loss is not finite", FailureKind.DIVERGED, weights(), 3)
        failed.close()
    # A second close is none of a descriptor that somebody else has got meanwhile.
    taken = os.open(tmp_path, os.O_RDONLY)
    failed.close()
    os.close(taken)


@LINUX_ONLY
def test_a_run_folder_that_another_run_has_leaves_nothing_open(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.ledger.open()
    with nothing_left_open(), pytest.raises(UsageError, match="is in use by a run that is not over"):
        RunFolder(tmp_path).ledger.open()
    first.close()
