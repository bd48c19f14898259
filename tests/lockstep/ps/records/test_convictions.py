"""Which results are in doubt after a conviction, by the ledger of a run."""

from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.ps.records.ledger import (
    LedgerShare,
    Line,
    ResultInDoubt,
    RunBegun,
    StepDone,
    UnusedCause,
    UnusedWork,
    WorkerConvicted,
    WorkerIn,
)
from lockstep.ps.records.run_folder import CONVICTIONS, doubt_of, keep_convictions, read_convictions

BEGUN = RunBegun(step=0, weights_sha256="")


def worker(rank: int, identity: str) -> WorkerIn:
    return WorkerIn(rank=rank, host="host", pid=rank, identity=identity)


def step(number: int, *shares: tuple[int, int, int]) -> StepDone:
    return StepDone(step=number, shares=[LedgerShare(*share) for share in shares], losses=b"", checksum=0)


def audit(number: int, micro_batch: int, rank: int, cause: UnusedCause | None = UnusedCause.AUDITED) -> UnusedWork:
    return UnusedWork(work="audit", step=number, lo=micro_batch, hi=micro_batch + 1, rank=rank, why="", cause=cause)


#: Two workers, of which the second is looked at.
START: list[Line] = [BEGUN, worker(0, "process a"), worker(1, "process b")]


def results(lines: list[Line], *identities: str) -> list[ResultInDoubt]:
    return list(doubt_of(lines, identities or ("process b",)).results)


def test_all_is_in_doubt_that_no_audit_has_confirmed() -> None:
    lines = [*START, step(0, (0, 2, 0), (2, 4, 1)), audit(1, 2, 0), step(1, (0, 2, 0), (2, 3, 1), (3, 4, 1))]
    assert results(lines) == [ResultInDoubt(0, 2, 4), ResultInDoubt(1, 3, 4)]
    assert doubt_of(lines, ["process b"]).first == 0


def test_an_audit_that_did_not_end_confirms_nothing() -> None:
    lines = [*START, audit(0, 2, 0, None), step(0, (0, 2, 0), (2, 3, 1))]
    assert results(lines) == [ResultInDoubt(0, 2, 3)]


def test_nothing_is_in_doubt_of_who_was_always_audited() -> None:
    lines = [*START, audit(0, 0, 0), step(0, (0, 1, 1), (1, 2, 0))]
    assert results(lines) == []
    assert doubt_of(lines, ["process b"]).first is None


def test_an_audit_shows_only_where_the_likeliest_faults_begin() -> None:
    before = [*START, step(0, (0, 1, 1)), step(1, (0, 1, 1))]
    was_audited = [*before, audit(2, 0, 0), step(2, (0, 1, 1)), step(3, (0, 1, 1))]
    has_audited = [*before, audit(2, 0, 1), step(2, (0, 1, 0)), step(3, (0, 1, 1))]
    for lines in (was_audited, has_audited):
        doubt = doubt_of(lines, ["process b"])
        assert doubt.since == [ResultInDoubt(3, 0, 1)]
        assert doubt.first == 0


def test_an_audit_that_did_not_end_and_one_of_another_worker_show_nothing_of_where_faults_begin() -> None:
    before = [*START, step(0, (0, 1, 1))]
    for checked in (audit(1, 0, 1, None), audit(1, 1, 0)):
        doubt = doubt_of([*before, checked, step(1, (0, 2, 0))], ["process b"])
        assert doubt.since == [ResultInDoubt(0, 0, 1)]


def test_a_rank_is_nobodys_after_a_restart_until_somebody_has_it() -> None:
    again = RunBegun(step=1, weights_sha256="")
    assert results([*START, step(0, (0, 1, 1)), again, step(1, (0, 1, 1))]) == [ResultInDoubt(0, 0, 1)]


def test_a_rank_is_another_workers_after_a_restart() -> None:
    again = RunBegun(step=1, weights_sha256="")
    lines = [*START, step(0, (0, 1, 1)), again, worker(1, "process a"), worker(5, "process b"), step(1, (0, 1, 1))]
    assert results(lines) == [ResultInDoubt(0, 0, 1)]
    assert results([*lines, step(2, (0, 2, 5))])[1:] == [ResultInDoubt(2, 0, 2)]


def convicted() -> WorkerConvicted:
    return WorkerConvicted(
        worker="worker 1 (host host, pid 7)",
        identity="key b",
        step=3,
        micro_batch=1,
        found="a" * 64,
        right="b" * 64,
        judges=["worker 0 (host host, pid 6)", "the server"],
        since=[ResultInDoubt(2, 0, 2)],
        since_count=1,
        unconfirmed_count=4,
        first_unconfirmed=0,
        back_to=0,
    )


def test_convictions_are_kept(tmp_path: Path) -> None:
    assert read_convictions(tmp_path) == []
    keep_convictions(tmp_path, [convicted()])
    assert read_convictions(tmp_path) == [convicted()]
    assert convicted().why() == (
        "worker 1 (host host, pid 7) computed micro-batch 1 of step 3 wrongly, as an audit found"
    )


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / CONVICTIONS).write_bytes(b"nonsense\n")
    with pytest.raises(FileFormatError, match=r"convictions\.jsonl: line 1 is not an entry of a ledger"):
        read_convictions(tmp_path)
