"""From a run's folder and some flags to what goes on."""

from pathlib import Path

import pytest

from common.errors import JobError, UsageError
from common.job.job import Job
from lockstep.runs.launch import Launch
from lockstep.runs.resume import check_alone, finished, resumed_job
from lockstep.runs.run_dir import make_run_dir

JOB = Job(model="mlp", lr=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run_dir(tmp_path / "run", JOB, Launch(workers=3, min_workers=3, transport="tcp", checkpoint_keep=5))
    return tmp_path / "run"


def test_the_job_is_the_runs_and_flags_change_how_it_is_carried_out(folder: Path) -> None:
    assert resumed_job(folder, {}) == (JOB, Launch(workers=3, transport="tcp", checkpoint_keep=5))
    launch = Launch(workers=0, transport="tcp", checkpoint_keep=5, checkpoint_every_steps=7)
    assert resumed_job(folder, {"workers": 0, "checkpoint_every_steps": 7}) == (JOB, launch)


def test_a_flag_that_says_the_same_is_no_other_job(folder: Path) -> None:
    assert resumed_job(folder, {"lr": 0.3, "model": "mlp"})[0] == JOB


def test_another_job_is_refused_with_both_named(folder: Path) -> None:
    told = (
        r"is a run of another job: epochs = 3 in the run, 4 here; lr = 0\.3 in the run, 0\.2 here: leave such flags out"
    )
    with pytest.raises(JobError, match=told):
        resumed_job(folder, {"lr": 0.2, "epochs": 4})


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="holds no run to go on with"):
        resumed_job(tmp_path, {})
    assert finished(tmp_path) is None


@pytest.mark.parametrize(("job", "run_dir"), [(Path("a.toml"), None), (None, Path("new"))])
def test_what_the_run_settles_itself_cannot_be_given(job: Path | None, run_dir: Path | None) -> None:
    check_alone(job=None, run_dir=None)
    with pytest.raises(UsageError, match="with --resume: a run goes on in its own folder and with its own job"):
        check_alone(job=job, run_dir=run_dir)
