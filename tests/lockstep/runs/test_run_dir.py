"""A run's folder belongs to one run, and leaves no trace where the run could not begin."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.job.job import Job
from lockstep.runs.launch import Launch
from lockstep.runs.run_dir import claimed_run_dir, has_begun, make_run_dir


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
        make_run_dir(second, Job(), Launch())
    assert not first.exists()
    assert has_begun(second)


def test_a_folder_that_is_asked_for_is_claimed_once(folder: Path) -> None:
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        assert claimed == Path("mine")
        with pytest.raises(UsageError, match="is not empty"), claimed_run_dir(Path("mine"), "mlp"):
            pytest.fail("claimed twice")
        assert claimed.is_dir()
    assert list(folder.iterdir()) == []


def test_an_empty_folder_of_the_persons_own_may_be_used() -> None:
    Path("mine").mkdir()
    with claimed_run_dir(Path("mine"), "mlp") as claimed:
        make_run_dir(claimed, Job(), Launch())
    assert has_begun(Path("mine"))


def test_what_could_not_begin_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed_run_dir(Path("a/b/c"), "mlp"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), claimed_run_dir(None, "examples/my_model.py:build"):
        raise ZeroDivisionError
    assert list(folder.iterdir()) == []
