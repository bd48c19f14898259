"""Who computed what, from a ledger with a worker that leaves and a restart."""

import errno
import os
from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.ps.records.ledger import LedgerShare, RunBegun, StepDone, WorkerIn
from lockstep.results.reports.plots.worker_timeline import ComputedShare, read_timeline
from tests.lockstep.results.reports.plots.records import LEDGER, TIMED_LEDGER, write_ledger


def test_workers_have_a_row_each_and_ranks_count_anew_after_a_restart(tmp_path: Path) -> None:
    write_ledger(tmp_path, LEDGER)
    workers = read_timeline(tmp_path)
    assert workers.names == ["0: here, pid 11", "1: there, pid 22", "0: new, pid 33, after restart 1"]
    assert workers.used == {
        0: [ComputedShare(0, 0, 2, 0), ComputedShare(0, 2, 4, 1)],
        1: [ComputedShare(1, 0, 4, 2)],
    }
    assert workers.unused == [ComputedShare(1, 2, 4, 1)]
    assert workers.micro_batches == 4


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
