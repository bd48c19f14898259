"""The list of runs: how each stands, and in what they differ."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, nn
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import default_options
from lockstep.ps.records.metrics import FailureRecord, encode_record
from lockstep.results.watch.figures import RunState
from lockstep.results.watch.run_view import STOPPED_S
from lockstep.results.watch.sources import MOST_RUNS, ONLY, WatchedRuns
from lockstep.runs.job_file import to_toml
from tests.lockstep.results.plots.records import write_steps
from tests.lockstep.results.watch.folders import running
from tests.lockstep.statuses import status


def written(folder: Path, **values: object) -> Path:
    """Write the job of a run that has not begun to train."""
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(to_toml(Job(**values), default_options()))  # type: ignore[arg-type]  # of a job
    return folder


def test_runs_differ_in_some_values_and_these_alone_are_listed(tmp_path: Path) -> None:
    written(tmp_path / "a", model="mlp", lr=0.1)
    written(tmp_path / "b", model="linear", lr=0.2, clip_norm=1.0)
    (tmp_path / "claimed").mkdir()
    (tmp_path / "claimed" / "job.toml").touch()
    found = WatchedRuns(tmp_path, is_many=True).listing()
    assert found.differing == ["lr", "clip_norm"]
    assert {run.id: (run.model, run.values) for run in found.runs} == {
        "a": ("mlp", {"lr": "0.1", "clip_norm": "none"}),
        "b": ("linear", {"lr": "0.2", "clip_norm": "1.0"}),
        "claimed": ("", {}),
    }


def test_browsers_that_ask_often_do_not_keep_a_run_from_being_read(tmp_path: Path) -> None:
    source = WatchedRuns(running(tmp_path / "run"))
    assert source.view(ONLY, 0.0) is not None
    write_steps(tmp_path / "run", [6])
    # Two of them, each four times a second.
    *_, view = [source.view(ONLY, ask / 8) for ask in range(1, 5)]
    assert view is not None
    assert view.files.metrics.steps["step"].tolist() == [*range(7)]


def test_several_runs_are_those_that_were_named(tmp_path: Path) -> None:
    first, second = written(tmp_path / "here" / "a", lr=0.1), written(tmp_path / "there" / "b", lr=0.2)
    written(tmp_path / "here" / "other")
    source = WatchedRuns.of([first, second])
    found = source.listing()
    assert ({run.id: run.values["lr"] for run in found.runs}, found.total) == ({"a": "0.1", "b": "0.2"}, 2)
    view = source.view("b", 0.0)
    assert view is not None
    assert view.files.folder == second
    assert source.view("other", 0.0) is None
    assert not WatchedRuns.of([first]).is_many
    with pytest.raises(UsageError, match="2 runs with 1 names"):
        WatchedRuns.of([first, written(tmp_path / "there" / "a")])
    with pytest.raises(UsageError, match="there' holds no run: expected run folders"):
        WatchedRuns.of([first, tmp_path / "there"])


def test_a_run_is_listed_as_it_stands(tmp_path: Path) -> None:
    written(tmp_path / "waiting")
    for name in ("running", "stopped", "failed", "interrupted"):
        running(tmp_path / name)
    for name in ("failed", "interrupted"):
        with (tmp_path / name / "metrics.jsonl").open("ab") as file:
            file.write(encode_record(FailureRecord(failure="it ended", weights_after_steps=2, cause=name)) + b"\n")
    now = 1e9
    for folder in tmp_path.iterdir():
        age = 2 * STOPPED_S if folder.name == "stopped" else 1.0
        for file_name in folder.iterdir():
            os.utime(file_name, (now - age, now - age))
    found = WatchedRuns(tmp_path, is_many=True, file_time=lambda: now).listing()
    states = ("waiting", "running", "stopped", "failed", "interrupted")
    assert {run.id: run.state for run in found.runs} == {state: RunState(state) for state in states}


def test_figures_of_the_validation_set_are_those_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data = ((x, (x[:, 0] > 0).astype(np.int64)), (x, (x[:, 0] > 0).astype(np.int64)))
    values: dict[str, Any] = {"workers": 0, "epochs": 3, "global_batch": 20, "verbose": False}
    fit(nn.Linear(4, 2), data, run_dir=tmp_path / "plain", **values)
    # No later epoch is so much better.
    values |= {"validation_split": 0.2, "keep_best": True, "min_delta": 100.0}
    kept = fit(nn.Linear(4, 2), data, run_dir=tmp_path / "kept", **values)
    assert (kept.best_epoch.epoch, len(kept.history)) == (1, 3)
    found = {run.id: run for run in WatchedRuns(tmp_path, is_many=True).listing().runs}
    assert found["kept"].tested == kept.best_epoch
    assert found["plain"].tested is not None
    assert found["plain"].tested.val_loss is None
    (tmp_path / "kept" / "result.json").unlink()
    unfinished = {run.id: run for run in WatchedRuns(tmp_path, is_many=True).listing().runs}["kept"]
    assert unfinished.tested == kept.history[-1]


def test_the_newest_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "job.toml").touch()
        os.utime(folder / "job.toml", (number, number))
    found = WatchedRuns(tmp_path, is_many=True).listing()
    assert (len(found.runs), found.total) == (MOST_RUNS, MOST_RUNS + 2)
    assert [found.runs[0].id, found.runs[-1].id] == [f"{MOST_RUNS + 1}", "2"]


def test_a_run_of_which_only_the_server_is_known_has_all_steps_that_it_reported() -> None:
    source = WatchedRuns()
    for step in (5, 9):
        source.take(status(step=step), float(step))
    view = source.view(ONLY, 10.0)
    assert view is not None
    assert view.files.metrics.steps["step"].tolist() == [4.0, 8.0]
