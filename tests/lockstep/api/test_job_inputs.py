"""Arrays handed over to a run: written where workers find them, and taken away where the run cannot begin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import doctor, find_lr, fit, nn
from lockstep.api.job_inputs import job_inputs, named_arrays
from lockstep.common.data.source import load
from lockstep.common.errors import DataError, RunError, UsageError
from lockstep.common.files.safetensors import read
from tests.lockstep.tiny_data import tiny_arrays


def test_data_and_weights_are_found_by_the_names_given(tmp_path: Path) -> None:
    weights = {"0.weight": np.ones((2, 3), dtype=np.float32)}
    with job_inputs(tmp_path / "runs" / "mine", weights, named_arrays(tiny_arrays())) as paths:
        assert set(paths) == {"initial", "data"}
        np.testing.assert_array_equal(load(paths["data"]).train.labels, tiny_arrays()[0][1])
        np.testing.assert_array_equal(read(Path(paths["initial"]))[0]["0.weight"], weights["0.weight"])
    assert Path(paths["data"]).is_file()


def test_where_there_is_nothing_no_folder_is_made(tmp_path: Path) -> None:
    with job_inputs(tmp_path / "mine", None, None) as paths:
        assert paths == {}
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError),
        job_inputs(tmp_path / "runs" / "mine", {}, named_arrays(tiny_arrays())),
    ):
        raise UsageError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(UsageError), job_inputs(tmp_path, {}, None):
        raise UsageError("no")
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_keeps_what_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(RunError), job_inputs(tmp_path / "mine", {}, None):
        raise RunError("no")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["initial.safetensors"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (3, "data is a int of another form: expected a name, a path, arrays as"),
        ((1, 2), r"data is a tuple \(int, int\) of another form: expected a name, a path, arrays as"),
        (tiny_arrays()[0], r"data is a tuple \(ndarray, ndarray\) of another form"),
        (((np.ones(3), ["a", "b"]), (1, 2)), "y_train is of dtype '<U1': expected an array of numbers; number classes"),
        (((np.ones(3), [None]), (1, 2)), "y_train is of dtype 'object'"),
    ],
)
def test_what_is_no_dataset_is_told(data: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        named_arrays(data)


def test_x_and_y_given_one_by_one_are_refused_with_the_right_call() -> None:
    (x, y), _ = tiny_arrays()
    for call in (fit, find_lr, doctor):
        untyped: Any = call
        with pytest.raises(DataError, match=rf"2 were given .*: expected {call.__name__}\(model, \(\(x_train, y_train"):
            untyped("linear", x, y)


@pytest.mark.parametrize("call", [doctor, find_lr, fit])
def test_a_mistake_in_arrays_names_no_file_that_is_gone(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.ones((40, 3)), np.arange(40) % 2
    x[15] = np.nan
    with pytest.raises(DataError, match=r"^the arrays: train: sample 15 holds an infinity or NaN"):
        call(nn.Linear(3, 2), ((x, y), (x, y)), global_batch=20, workers=0)
    assert list(tmp_path.rglob("*.npz")) == []
