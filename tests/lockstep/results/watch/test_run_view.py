"""What a page shows of a run: before it begins, while it goes on, after it failed, was resumed, or has gone."""

import shutil
from pathlib import Path

import msgspec
import pytest

from lockstep.common.protocol.messages import ShardStatus
from lockstep.ps.records.ledger import LedgerShare, RunBegun, StepDone, WorkerIn, WorkerOut
from lockstep.ps.records.metrics import FailureRecord, encode_record
from lockstep.ps.records.run_folder import read_receipt
from lockstep.results.watch.figures import RunState
from lockstep.results.watch.run_files import NOWHERE, EventKind, WatchedFiles
from lockstep.results.watch.run_view import STOPPED_S, RunView
from tests.lockstep.results.plots.records import LEDGER, TIMED_LEDGER, write_ledger, write_steps
from tests.lockstep.results.watch.folders import running, viewed
from tests.lockstep.small_runs import small_run
from tests.lockstep.statuses import status, worker


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_run_that_has_not_begun_waits(tmp_path: Path) -> None:
    view = viewed(tmp_path / "missing")
    states = [view.state]
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "job.toml").touch()
    view.refresh(2.0)
    assert [*states, view.state] == [RunState.MISSING, RunState.WAITING]
    assert view.snapshot().first_step is None
    assert (view.facts()["has_begun"], view.facts()["job"]) == (False, [])


def test_a_run_that_goes_on_shows_its_figures_workers_and_last_steps(tmp_path: Path) -> None:
    found = viewed(running(tmp_path / "mine", steps=4)).snapshot()
    assert found.state is RunState.RUNNING
    assert (found.figures.step, found.figures.epoch, found.figures.accuracy) == (4, 1, 0.5)
    assert found.figures.samples_per_s == 16.0
    assert [(one.rank, one.host) for one in found.workers] == [(0, "here"), (1, "there")]
    assert [one.share for one in found.workers] == pytest.approx([2 / 3, 1 / 3])
    assert [step.step for step in found.timeline] == [0, 1, 2, 3]
    assert found.timeline[1].used == [LedgerShare(0, 2, 0, 0.1, 0.4), LedgerShare(2, 3, 1, 0.1, 0.5)]
    # An epoch's first step has no update before it in the same epoch.
    assert [step.update_s for step in found.timeline] == [0.0, 0.1, 0.1, 0.1]
    assert [event.kind for event in found.events] == [EventKind.BEGUN, EventKind.JOINED, EventKind.JOINED]
    assert [epoch.test_accuracy for epoch in found.epochs] == [0.75]
    assert found.epoch_ends == [3]


def test_a_run_in_one_process_has_no_workers_and_one_that_waits_for_them_is_not_alone(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=4)
    assert not viewed(folder).snapshot().is_alone
    write_ledger(folder, [entry for entry in TIMED_LEDGER[:7] if not isinstance(entry, WorkerIn)])
    found = viewed(folder).snapshot()
    assert (found.is_alone, found.workers) == (True, [])
    write_ledger(folder, TIMED_LEDGER[:1])
    assert not viewed(folder).snapshot().is_alone


def test_the_steps_of_a_job_with_metrics_of_its_own_are_read(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=4)
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"lr":', b'"metrics":{"f1":0.5},"lr":'))
    assert viewed(folder).snapshot().figures.step == 4


def test_new_lines_change_the_snapshot_and_nothing_new_does_not(tmp_path: Path) -> None:
    view = viewed(running(tmp_path / "mine", steps=2))
    before = view.encoded_snapshot()
    view.refresh(2.0)
    assert view.encoded_snapshot() == before
    write_steps(tmp_path / "mine", [2])
    view.refresh(3.0)
    assert view.encoded_snapshot() != before
    assert view.snapshot().last_step == 2


def test_the_server_says_more_of_its_workers(tmp_path: Path) -> None:
    view = viewed(running(tmp_path / "mine"))
    workers = [worker(0), worker(1, state="suspect"), worker(7, state="preparing", samples=0, compute_s=0.0)]
    shards = [ShardStatus(host="beta", address="tcp://beta:7"), ShardStatus(host="gamma", address="tcp://gamma:8")]
    view.refresh(2.0, status(workers=workers, refused=2, broken=1, shards=shards))
    found = view.snapshot()
    assert [(one.rank, one.state, one.samples_per_s) for one in found.workers] == [
        (0, "computing", 12_000.0),
        (1, "suspect", 12_000.0),
        (7, "preparing", None),
    ]
    assert [one.processes for one in found.workers] == [1, 1, 1]
    assert found.refused == 3
    assert found.slices == ["beta", "gamma"]
    assert [tile.value for tile in found.tiles if tile.name == "slices of the weights also on"] == ["beta, gamma"]
    assert found.figures.left_s == 200.0


def test_a_run_that_waits_says_what_for_and_has_no_speed(tmp_path: Path) -> None:
    view = viewed(running(tmp_path / "mine"))
    assert view.snapshot().figures.samples_per_s > 0.0
    view.refresh(2.0, status(waiting="waiting for a worker: none is left"))
    found = view.snapshot()
    assert found.phase == "waiting for a worker: none is left"
    assert (found.figures.samples_per_s, found.figures.left_s) == (0.0, None)


def test_a_team_is_shown_with_its_processes_and_what_each_has_computed(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=1)
    shares = [LedgerShare(0, 2, 0, 0.1, 0.4), LedgerShare(2, 4, 0, 0.1, 0.5)]
    step = StepDone(step=0, shares=shares, losses=bytes(16), checksum=1, processes=[0, 1])
    write_ledger(folder, [RunBegun(step=0, weights_sha256="00"), WorkerIn(rank=0, host="a", pid=7, processes=2), step])
    view = viewed(folder)
    found = view.snapshot()
    assert [(one.rank, one.processes) for one in found.workers] == [(0, 2)]
    assert [(step.used, step.processes) for step in found.timeline] == [(shares, [0, 1])]
    view.refresh(2.0, status(workers=[worker(0, processes=2)]))
    assert [(one.processes, one.samples_per_s) for one in view.snapshot().workers] == [(2, 24_000.0)]


def test_a_run_that_failed_says_why_and_one_that_goes_on_again_does_not(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    append(folder / "metrics.jsonl", encode_record(FailureRecord(failure="it diverged", weights_after_steps=2)) + b"\n")
    view = viewed(folder)
    assert (view.state, view.snapshot().failure) == (RunState.FAILED, "it diverged")
    write_steps(folder, [2])
    view.refresh(2.0)
    assert (view.state, view.snapshot().failure) == (RunState.RUNNING, "")


def test_a_resumed_run_marks_where_and_its_ranks_are_new(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    write_ledger(folder, LEDGER)
    found = viewed(folder).snapshot()
    assert [(event.kind, event.step) for event in found.events][-3:] == [
        (EventKind.REASSIGNED, 1),
        (EventKind.RESUMED, 1),
        (EventKind.JOINED, 1),
    ]
    assert found.restarts == 1
    assert [(one.rank, one.host) for one in found.workers] == [(0, "new")]


def test_a_worker_that_left_stays_with_its_reason_and_nobody_gets_its_colour(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=1)
    joined = [WorkerIn(rank=rank, host="a", pid=rank, processes=2) for rank in range(3)]
    write_ledger(folder, [RunBegun(step=0, weights_sha256="00"), *joined, WorkerOut(rank=1, why="it was killed")])
    view = viewed(folder)
    before = view.snapshot()
    assert [(one.first, one.is_gone, one.reason) for one in before.workers] == [
        (0, False, ""),
        (2, True, "it was killed"),
        (4, False, ""),
    ]
    assert (before.events[-1].kind, before.events[-1].text) == (
        EventKind.LEFT,
        "team 1 (host a, pid 1, 2 workers) left: it was killed",
    )
    # The server only knows who is there, and who came since.
    view.refresh(2.0, status(workers=[worker(0, processes=2), worker(3)]))
    after = view.snapshot()
    assert [(one.rank, one.first, one.state) for one in after.workers] == [
        (0, 0, "computing"),
        (1, 2, "gone"),
        (2, 4, "gone"),
        (3, 6, "computing"),
    ]


def test_figures_of_the_last_steps_do_not_jump(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    figures = viewed(folder).snapshot().figures
    assert (figures.loss, figures.recent_loss, figures.recent_steps) == (1.0, 1.5, 2)


def test_a_run_that_writes_nothing_has_stopped_unless_its_server_answers(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine")
    written = (folder / "metrics.jsonl").stat().st_mtime
    states = []
    for age, answer in ((0.0, None), (2 * STOPPED_S, None), (2 * STOPPED_S, status())):
        view = RunView(WatchedFiles(folder), file_time=lambda age=age: written + age)  # type: ignore[misc]  # bound at once
        view.refresh(100.0, answer)
        states.append(view.state)
    assert states == [RunState.RUNNING, RunState.STOPPED, RunState.RUNNING]


def test_a_run_that_somebody_ended_is_interrupted(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    line = FailureRecord(failure="interrupted", weights_after_steps=2, cause="interrupted")
    append(folder / "metrics.jsonl", encode_record(line) + b"\n")
    assert viewed(folder).state is RunState.INTERRUPTED


def test_steps_that_were_cut_off_are_gone(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=6)
    view = viewed(folder)
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    view.refresh(2.0)
    found = view.snapshot()
    assert (found.last_step, found.epochs) == (1, [])


def test_damaged_lines_cost_no_other(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    append(folder / "metrics.jsonl", b'{"kind":"step","step":\n\xff\xfe\n{"kind":"of another version"}\n[]\n')
    append(folder / "ledger.jsonl", b'{"kind":"step","step":2,"shares":[[3,1,0]],"losses":"","mark":0}\nnonsense\n')
    write_steps(folder, [2])
    found = viewed(folder).snapshot()
    assert found.last_step == 2


def test_a_folder_that_vanishes_is_missing(tmp_path: Path) -> None:
    view = viewed(running(tmp_path / "mine"))
    shutil.rmtree(tmp_path / "mine")
    view.refresh(2.0)
    found = view.snapshot()
    assert (found.state, found.first_step, found.workers) == (RunState.MISSING, None, [])


def test_a_finished_run_has_its_digest_and_a_receipt(tmp_path: Path) -> None:
    run = small_run(tmp_path, epochs=1, lr=1e-6)
    view = viewed(run.folder)
    assert view.state is RunState.FINISHED
    assert view.snapshot().weights_sha256 == run.weights_sha256
    facts = view.facts()
    assert facts["receipt"]["weights_sha256"] == run.weights_sha256
    assert facts["receipt"]["job_sha256"] == read_receipt(run.folder).job_sha256
    assert view.snapshot().figures.left_s is None


def test_a_server_alone_has_figures_too() -> None:
    view = RunView(WatchedFiles(NOWHERE))
    view.refresh(1.0, status(workers=[worker(0)]))
    view.refresh(2.0, status(workers=[worker(0)], step=710, loss=0.5))
    view.refresh(3.0, status(workers=[worker(0)], step=710, loss=0.5))
    found = view.snapshot()
    assert (found.name, found.state, found.model) == ("20261124-231714-lenet", RunState.RUNNING, "lenet")
    assert (found.figures.step, found.figures.loss) == (710, 0.5)
    assert view.files.metrics.steps["step"].tolist() == [699, 709]
    assert [epoch.epoch for epoch in found.epochs] == [1]
    assert found.folder == ""


def test_a_snapshot_is_valid_json_whatever_was_computed(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine", steps=2)
    append(
        folder / "metrics.jsonl", b'{"kind":"step","step":2,"epoch":1,"loss":1e308,"lr":0.1,"samples":8,"round_s":0}\n'
    )
    view = viewed(folder)
    view.refresh(2.0, status(loss=float("nan"), eta_s=float("inf")))
    assert msgspec.json.decode(msgspec.json.encode(view.snapshot()))["figures"]["left_s"] is None
