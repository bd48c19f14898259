"""A run's folder: claimed by one run alone, and resumed with its own job."""

from pathlib import Path

import pytest

from lockstep.common.errors import JobError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.runs.run_dir import (
    check_resume_flags,
    claimed_run_dir,
    finished,
    has_begun,
    keep_parts,
    make_run_dir,
    resumed_job,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_that_begin_in_one_moment_get_folders_of_their_own() -> None:
    with (
        claimed_run_dir(None, "mlp") as first,
        claimed_run_dir(None, "mlp") as second,
        claimed_run_dir(None, "mlp") as third,
    ):
        assert len({first, second, third}) == 3
        make_run_dir(second, Job(), RunOptions())
    assert not first.exists()
    assert has_begun(second)


def test_a_folder_that_is_asked_for_is_claimed_once(folder: Path) -> None:
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        assert claimed == Path("mine")
        with pytest.raises(UsageError, match="is not empty"), claimed_run_dir(Path("mine"), "mlp"):
            pytest.fail("claimed twice")
        assert claimed.is_dir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("left", [["job.toml"], ["job.toml", ".job.toml.7.partial"], ["job.toml", "data.npz"]])
def test_a_folder_of_a_process_that_was_killed_while_it_began_is_as_good_as_empty(left: list[str]) -> None:
    Path("mine").mkdir()
    for name in left:
        (Path("mine") / name).touch()
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        make_run_dir(claimed, Job(), RunOptions())
        with pytest.raises(UsageError, match="is not empty"), claimed_run_dir(Path("mine"), "mlp"):
            pytest.fail("claimed twice")
    assert resumed_job(Path("mine"), {})[0] == Job()


@pytest.mark.parametrize("left", ["checkpoints/step-10", "convictions.jsonl", ".a.7.partial"])
def test_parts_of_a_run_are_not_taken_for_another_run_and_can_be_moved_away(folder: Path, left: str) -> None:
    part, said = folder / "mine" / left, list[str]()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"parts of a run without its job\.toml.*: mv mine mine-parts$"):
        claimed_run_dir(Path("mine"), "mlp").__enter__()
    keep_parts(Path("mine"), said.append)
    assert (folder / "mine-parts" / left).read_bytes() == b"{}"
    assert said == ["notice: 'mine' has parts of a run without its job.toml: they are kept in mine-parts"]
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        make_run_dir(claimed, Job(), RunOptions())


@pytest.mark.parametrize("left", ["job.toml", "mirror.json", "notes.txt"])
def test_a_run_a_mirror_and_a_folder_of_a_persons_own_are_not_moved(folder: Path, left: str) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / left).write_text("text")
    (folder / "mine/checkpoints").mkdir()
    keep_parts(Path("mine"), pytest.fail)
    assert (folder / "mine" / left).exists()


def test_a_claim_is_replaced_by_the_whole_job(folder: Path) -> None:
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        (folder / "claim").hardlink_to(claimed / "job.toml")
        make_run_dir(claimed, Job(), RunOptions())
    assert (folder / "claim").read_text() == ""


def test_an_empty_folder_of_the_persons_own_may_be_used() -> None:
    Path("mine").mkdir()
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        make_run_dir(claimed, Job(), RunOptions())
    assert has_begun(Path("mine"))


def test_what_could_not_begin_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed_run_dir(Path("a/b/c"), "mlp"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), claimed_run_dir(None, "examples/my_model.py:build"):
        raise ZeroDivisionError
    assert list(folder.iterdir()) == []


JOB = Job(model="mlp", lr=0.3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run_dir(tmp_path / "run", JOB, RunOptions(workers=3, min_workers=3, transport="tcp", checkpoint_keep=5))
    return tmp_path / "run"


def test_the_job_is_the_runs_and_flags_change_how_it_is_carried_out(run: Path) -> None:
    assert resumed_job(run, {}) == (JOB, RunOptions(workers=3, transport="tcp", checkpoint_keep=5))
    launch = RunOptions(workers=0, transport="tcp", checkpoint_keep=5, checkpoint_every_steps=7)
    assert resumed_job(run, {"workers": 0, "checkpoint_every_steps": 7}) == (JOB, launch)


def test_a_flag_that_says_the_same_is_no_other_job(run: Path) -> None:
    assert resumed_job(run, {"lr": 0.3, "model": "mlp"})[0] == JOB


def test_of_a_run_that_has_weights_it_is_told_how_to_go_on_from_them(run: Path) -> None:
    with pytest.raises(JobError, match=r"or begin a new run$"):
        resumed_job(run, {"epochs": 4})
    (run / "weights.safetensors").touch()
    with pytest.raises(JobError, match=r"or begin a new run, from its weights with --initial \S+/weights.safetensors$"):
        resumed_job(run, {"epochs": 4})


def test_another_job_is_refused_with_both_named(run: Path) -> None:
    told = (
        r"is a run of another job: epochs = 3 in the run, 4 here; lr = 0\.3 in the run, 0\.2 here: remove these flags"
    )
    with pytest.raises(JobError, match=told):
        resumed_job(run, {"lr": 0.2, "epochs": 4})


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="holds no run to resume"):
        resumed_job(tmp_path, {})
    assert finished(tmp_path) is None
    (tmp_path / "job.toml").touch()
    with pytest.raises(JobError, match="was killed before it began; begin it again, with --run-dir"):
        resumed_job(tmp_path, {})


@pytest.mark.parametrize(("job", "run_dir"), [(Path("a.toml"), None), (None, Path("new"))])
def test_what_the_run_settles_itself_cannot_be_given(job: Path | None, run_dir: Path | None) -> None:
    check_resume_flags(job=None, run_dir=None)
    with pytest.raises(UsageError, match="with --resume: a run is resumed in its own folder and with its own job"):
        check_resume_flags(job=job, run_dir=run_dir)
