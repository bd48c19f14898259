"""What is set aside, recorded and said after a conviction."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.errors import FileFormatError
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.coordinator.findings import AuditFinding, Conviction, MicroBatchOutcome
from lockstep.ps.records.ledger import LedgerShare, Line, RunBegun, StepDone, UnusedCause, UnusedWork, WorkerIn
from lockstep.ps.records.run_folder import CHECKPOINTS, RunFolder, read_convictions
from lockstep.ps.server.conviction import quarantine_checkpoints

LIAR = AuditFinding(1, "b", "process b", "worker 1 (host host, pid 7)", MicroBatchOutcome(digest="b" * 64))

OTHER = AuditFinding(2, "c", "process c", "worker 2 (host host, pid 8)", MicroBatchOutcome(digest="c" * 64))

CONVICTION = Conviction(
    9, 2, (LIAR,), MicroBatchOutcome(digest="a" * 64), ("worker 0 (host host, pid 6)", "the server")
)


def folder_of(path: Path, *lines: Line, steps: tuple[int, ...] = (0, 4, 6, 8)) -> tuple[RunFolder, CheckpointFolder]:
    """Return a run's folder in which the liar is worker 1, with empty checkpoints after so many steps."""
    folder, checkpoints = RunFolder(path), CheckpointFolder(path / CHECKPOINTS, lambda text: None)
    start = [RunBegun(step=0, weights_sha256=""), WorkerIn(rank=1, host="host", pid=7, identity="process b")]
    for line in [*start, *lines]:
        folder.ledger.append(msgspec.json.encode(line))
    checkpoints.path.mkdir()
    for step in steps:
        checkpoints.file_of(step).touch()
    return folder, checkpoints


def done(step: int, rank: int) -> StepDone:
    return StepDone(step=step, shares=[LedgerShare(2, 3, rank)], losses=b"", checksum=0)


def audited(step: int) -> UnusedWork:
    return UnusedWork(work="audit", step=step, lo=2, hi=3, rank=0, why="", cause=UnusedCause.AUDITED)


def convict(folder: RunFolder, checkpoints: CheckpointFolder, *wrong: AuditFinding) -> tuple[int, list[str], list[str]]:
    taken: list[str] = []

    def take() -> bool:
        taken.append("now")
        checkpoints.file_of(9).touch()
        return True

    conviction = replace(CONVICTION, wrong=wrong) if wrong else CONVICTION
    return *quarantine_checkpoints(conviction, folder, checkpoints, take), taken


def test_the_run_goes_back_to_the_last_checkpoint_before_the_first_result_in_doubt(tmp_path: Path) -> None:
    folder, checkpoints = folder_of(tmp_path, audited(5), done(5, 1), done(6, 1), done(7, 0), done(8, 1))
    back_to, lines, taken = convict(folder, checkpoints)
    # The weights after 6 steps do not depend on the results of step 6.
    assert (back_to, checkpoints.steps(), taken) == (6, [0, 4, 6], [])
    assert (checkpoints.path / "step-00000008.safetensors.doubtful").exists()
    (line,) = lines
    assert line == (
        "worker 1 (host host, pid 7): any of its results may be wrong that was accepted and not audited: 2 from step "
        "6 on, 2 since its last audit that agreed, in steps 6 to 8"
    )
    (kept,) = read_convictions(tmp_path)
    assert (kept.back_to, kept.first_unconfirmed, kept.unconfirmed_count) == (6, 6, 2)
    assert [result.step for result in kept.since] == [6, 8]


@pytest.mark.parametrize("wrong", [(LIAR, OTHER), (OTHER, LIAR)], ids=["the later first", "the earlier first"])
def test_of_two_that_were_wrong_the_earlier_result_in_doubt_counts(
    tmp_path: Path, wrong: tuple[AuditFinding, AuditFinding]
) -> None:
    joined = WorkerIn(rank=2, host="host", pid=8, identity="process c")
    folder, checkpoints = folder_of(tmp_path, joined, done(3, 0), done(5, 2), done(7, 1), done(8, 2))
    back_to, _, taken = convict(folder, checkpoints, *wrong)
    # The weights after 6 steps do not depend on the first culprit, but on what the other one sent in step 5.
    assert (back_to, checkpoints.steps(), taken) == (4, [0, 4], [])
    kept = {one.worker: (one.first_unconfirmed, one.back_to) for one in read_convictions(tmp_path)}
    assert kept == {LIAR.named: (7, 4), OTHER.named: (5, 4)}


def test_of_two_that_were_wrong_one_may_have_no_result_in_doubt(tmp_path: Path) -> None:
    joined = WorkerIn(rank=2, host="host", pid=8, identity="process c")
    folder, checkpoints = folder_of(tmp_path, joined, done(6, 2), done(7, 0))
    back_to, _, taken = convict(folder, checkpoints, LIAR, OTHER)
    assert (back_to, checkpoints.steps(), taken) == (6, [0, 4, 6], [])
    assert [one.first_unconfirmed for one in read_convictions(tmp_path)] == [None, 6]


def test_without_such_a_checkpoint_it_begins_again(tmp_path: Path) -> None:
    folder, checkpoints = folder_of(tmp_path, done(0, 1), steps=(4, 6))
    back_to, *_ = convict(folder, checkpoints)
    assert (back_to, checkpoints.steps()) == (0, [])


def test_if_nothing_is_in_doubt_the_weights_at_hand_are_right(tmp_path: Path) -> None:
    folder, checkpoints = folder_of(tmp_path, audited(8), done(8, 1))
    back_to, lines, taken = convict(folder, checkpoints)
    assert (back_to, checkpoints.steps(), taken) == (9, [0, 4, 6, 8, 9], ["now"])
    assert lines == ["worker 1 (host host, pid 7): no result of it was accepted that an audit has not confirmed"]


def test_with_a_ledger_that_cannot_be_written_all_is_in_doubt(tmp_path: Path) -> None:
    folder, checkpoints = folder_of(tmp_path, audited(8), done(8, 1), steps=(4,))

    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    folder.ledger.write = write
    back_to, *_ = convict(folder, checkpoints)
    assert (back_to, checkpoints.steps()) == (0, [])


def test_what_cannot_be_recorded_is_an_error(tmp_path: Path) -> None:
    folder, checkpoints = folder_of(tmp_path, done(8, 1))
    (tmp_path / "convictions.jsonl").mkdir()
    with pytest.raises(FileFormatError, match=os.strerror(errno.EISDIR)):
        convict(folder, checkpoints)
