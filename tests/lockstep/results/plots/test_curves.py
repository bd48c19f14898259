"""A run's figures and the work of its workers, read back from its lines: finished or not, restarted, damaged."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.errors import FileFormatError
from lockstep.ps.records.ledger import LedgerShare, RunBegun, StepDone, WorkerIn
from lockstep.results.plots.curves import ComputedShare, read_curves, read_timeline, smoothed
from tests.lockstep.results.plots.records import LEDGER, TIMED_LEDGER, write_ledger, write_steps


def test_steps_and_epochs_are_read_in_order(tmp_path: Path) -> None:
    write_steps(tmp_path / "run", range(6))
    course = read_curves(tmp_path / "run")
    assert course.name == "run"
    assert course.steps["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert course.steps["loss"].tolist() == [2 / (step + 1) for step in range(6)]
    assert course.seconds.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert [epoch.test_accuracy for epoch in course.epochs] == [0.75]
    assert course.ends == {1: 4, 2: 6}


def test_a_step_that_was_made_again_counts_as_it_was_made_last(tmp_path: Path) -> None:
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(4, 8), loss=30.0)
    course = read_curves(tmp_path)
    assert course.steps["step"].tolist() == list(range(8))
    assert course.steps["loss"][3:6].tolist() == [0.5, 6.0, 5.0]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind":"step","epo')
    assert read_curves(tmp_path).steps.count == 2


def test_what_is_no_record_is_reported_with_its_line(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"kind":"failure","failure":"not plotted","weights_after_steps":2}\n{"kind":"step","step":"two"}\n'
        )
    with pytest.raises(FileFormatError, match="line 4 is not a record of a run: "):
        read_curves(tmp_path)


def test_a_folder_without_steps_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=f"{os.strerror(errno.ENOENT)}: expected the folder of a run"):
        read_curves(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(FileFormatError, match="has no step yet"):
        read_curves(tmp_path)


def test_smoothing_is_the_mean_of_what_is_in_the_window() -> None:
    values = np.array([4.0, 2.0, 6.0, 8.0])
    assert smoothed(values, 2).tolist() == [4.0, 3.0, 4.0, 7.0]
    assert smoothed(values, 1).tolist() == values.tolist()
    assert smoothed(values, 100).tolist() == [4.0, 3.0, 4.0, 5.0]


def test_workers_have_a_row_each_and_ranks_count_anew_after_a_restart(tmp_path: Path) -> None:
    write_ledger(tmp_path, LEDGER)
    workers = read_timeline(tmp_path)
    assert workers.names == ["0: here, pid 11", "1: there, pid 22", "0: new, pid 33, after restart 1"]
    assert workers.used == {
        0: [ComputedShare(0, 0, 2, 0), ComputedShare(0, 2, 4, 1)],
        1: [ComputedShare(1, 0, 4, 2)],
    }
    assert workers.unused == [ComputedShare(1, 2, 4, 1)]


def test_shares_are_of_the_micro_batches_of_some_steps(tmp_path: Path) -> None:
    write_ledger(tmp_path, LEDGER)
    shares, edges = read_timeline(tmp_path).shares(bins=9)
    assert edges.tolist() == [0, 1, 2]
    assert shares.tolist() == [[0.5, 0], [0.5, 0], [0, 1]]
    together, _ = read_timeline(tmp_path).shares(bins=1)
    assert together.tolist() == [[0.25], [0.25], [0.5]]


def test_a_process_alone_is_a_row_too(tmp_path: Path) -> None:
    step = StepDone(step=0, shares=[LedgerShare(0, 8, 0)], losses=bytes(32), checksum=1)
    write_ledger(tmp_path, [RunBegun(step=0, weights_sha256="00"), step])
    assert read_timeline(tmp_path).names == ["this process"]


def test_the_processes_of_a_team_have_a_row_each_in_steps_that_say_who_it_was(tmp_path: Path) -> None:
    shares = [LedgerShare(0, 4, 0), LedgerShare(4, 8, 0)]
    team = WorkerIn(rank=0, host="here", pid=11, processes=2)
    told = StepDone(step=0, shares=shares, losses=bytes(32), checksum=1, processes=[0, 1])
    untold = StepDone(step=1, shares=[LedgerShare(0, 8, 0)], losses=bytes(32), checksum=1)
    write_ledger(tmp_path, [RunBegun(step=0, weights_sha256="00"), team, told, untold])
    workers = read_timeline(tmp_path)
    assert workers.names == ["0.0: here", "0.1: here", "0: here"]
    assert workers.used[0] == [ComputedShare(0, 0, 4, 0), ComputedShare(0, 4, 8, 1)]
    assert workers.used[1] == [ComputedShare(1, 0, 8, 2)]


def test_times_of_shares_are_read_and_labels_are_short(tmp_path: Path) -> None:
    write_ledger(tmp_path, TIMED_LEDGER)
    workers = read_timeline(tmp_path)
    assert workers.used[4] == [ComputedShare(4, 0, 2, 0, 0.1, 0.3), ComputedShare(4, 2, 3, 0, 0.11, 0.5)]
    assert workers.unused == [ComputedShare(4, 2, 3, 1, 0.12, 0.5)]
    assert [share.named() for share in workers.used[4]] == ["0-1", "2"]


def test_a_folder_without_a_ledger_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=rf"ledger.jsonl': {os.strerror(errno.ENOENT)}"):
        read_timeline(tmp_path)
    write_ledger(tmp_path, LEDGER[:3])
    with pytest.raises(FileFormatError, match=r"ledger.jsonl' has no step yet"):
        read_timeline(tmp_path)
