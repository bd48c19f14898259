"""Training from Python, in this process: the run, its model, warm starts, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Tensor, fit, load_run, nn, no_grad
from lockstep.common.aggregation.layout import gather, layout_of, weights_digest
from lockstep.common.errors import DataError, JobError, ModelError
from lockstep.results.evaluation.assessment import assess
from lockstep.runs.run_dir import recorded_job
from lockstep.runs.trained_model import open_trained
from tests.lockstep.tiny_data import tiny_arrays, write_tiny

#: What makes a run short, alone in this process, and silent.
BRIEF: dict[str, Any] = {
    "workers": 0,
    "epochs": 2,
    "global_batch": 32,
    "micro_batches": 4,
    "normalize": False,
    "verbose": False,
}


def net() -> nn.Sequential:
    """Return a model with all that is special: dropout and running statistics."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 10))


def digest(model: nn.Module) -> str:
    return weights_digest(gather(model, layout_of(model)))


def test_a_module_is_trained_and_stays_as_it_was(tmp_path: Path) -> None:
    model = net()
    before = digest(model)
    run = fit(model, tiny_arrays(), run_dir=tmp_path / "run", **BRIEF)
    assert digest(model) == before
    assert digest(run.model) == run.weights_sha256 != before
    assert [epoch.epoch for epoch in run.history] == [1, 2]
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, test_accuracy={run.test_accuracy:.4f})"


def test_the_runs_model_has_the_accuracy_that_was_told(tmp_path: Path) -> None:
    run = fit(net(), tiny_arrays(), run_dir=tmp_path / "run", **BRIEF)
    images, labels = tiny_arrays()[1]
    with no_grad():
        scores = run.model(Tensor((images[:, np.newaxis] / 255).astype(np.float32))).data
    assert float(np.mean(scores.argmax(axis=1) == labels)) == run.test_accuracy


def test_the_same_call_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    runs = [
        fit(net(), tiny_arrays(), run_dir=tmp_path / str(i), seed=seed, **BRIEF) for i, seed in enumerate((1, 1, 2))
    ]
    assert runs[0].weights_sha256 == runs[1].weights_sha256 != runs[2].weights_sha256


def test_arrays_and_a_file_of_them_give_the_same_bits(tmp_path: Path) -> None:
    by_arrays = fit("linear", tiny_arrays(), run_dir=tmp_path / "a", **BRIEF)
    by_file = fit("linear", write_tiny(tmp_path), run_dir=tmp_path / "b", **BRIEF)
    assert by_arrays.weights_sha256 == by_file.weights_sha256


def test_a_warm_start_goes_on_from_the_models_own_weights(tmp_path: Path) -> None:
    first = fit(net(), tiny_arrays(), run_dir=tmp_path / "a", **BRIEF)
    warm = fit(first.model, tiny_arrays(), run_dir=tmp_path / "b", warm_start=True, **BRIEF)
    with pytest.warns(UserWarning, match="weights of the model are not used"):
        cold = fit(first.model, tiny_arrays(), run_dir=tmp_path / "c", **BRIEF)
    assert warm.history[0].loss < cold.history[0].loss == first.history[0].loss


def test_a_model_of_ones_own_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from lockstep import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    run = fit(f"{file}:build", tiny_arrays(), run_dir=tmp_path / "run", **BRIEF)
    assert digest(run.model) == run.weights_sha256


def test_a_run_is_loaded_from_its_folder(tmp_path: Path) -> None:
    run = fit("linear", tiny_arrays(), run_dir=tmp_path / "run", **BRIEF)
    loaded = load_run(tmp_path / "run")
    assert loaded.result == run.result
    assert loaded.job == run.job
    assert digest(loaded.model) == run.weights_sha256


def test_data_that_is_kept_in_a_run_is_found_where_its_folder_is_now(tmp_path: Path) -> None:
    run = fit("linear", tiny_arrays(), run_dir=tmp_path / "first", **BRIEF)
    moved = run.folder.rename(tmp_path / "moved")
    assert recorded_job(moved).data == str(moved / "data.npz")
    counts = assess(open_trained(moved)).confusion
    assert counts.trace() / counts.sum() == run.test_accuracy
    # Of two folders with such data, it is that which the job names.
    fit("linear", tiny_arrays(), run_dir=tmp_path / "first", **{**BRIEF, "seed": 3})
    assert recorded_job(moved).data == str(tmp_path / "first" / "data.npz")


def test_verbose_tells_each_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("linear", tiny_arrays(), run_dir=tmp_path / "a", **BRIEF)
    assert capsys.readouterr().out == ""
    fit("linear", tiny_arrays(), run_dir=tmp_path / "b", **{**BRIEF, "lr": 0.002, "verbose": True})
    *epochs, note = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in epochs] == ["epoch 1/2 ", "epoch 2/2 "]
    assert note.startswith("notice: the test loss still falls (")
    assert note.endswith(" steps, would train longer")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "keyword": ({"epoch": 3}, JobError, r"no key 'epoch' \(did you mean 'epochs'\?\)"),
    "value": ({"epochs": "3"}, JobError, "epochs = '3': expected a whole number, got text"),
    "warm start of a name": ({"model": "linear", "warm_start": True}, JobError, "warm_start needs a model with weig"),
    "model": ({"model": "liner"}, ModelError, r"model = 'liner' is not known \(did you mean 'linear'\?\)"),
    "output": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 3))}, ModelError, "expected .2, 10., one number"),
    "warm start": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "warm_start": True},
        ModelError,
        "change the last layer",
    ),
    "labels from 1": (
        {"model": nn.Linear(4, 2), "data": ((np.ones((40, 4)), 1 + np.arange(40) % 2), (np.ones((2, 4)), [1, 2]))},
        ModelError,
        "change the last layer; or, as no label is below 1, count classes from 0",
    ),
    "data": ({"data": "gone.npz"}, DataError, "gone.npz: cannot be read"),
    "labels": (
        {"data": ((np.ones((40, 4)), np.ones(40)), (np.ones((2, 4)), [0, 1]))},
        DataError,
        "'y_train' has real numbers, and the test set integers",
    ),
    "real labels": (
        {"data": ((np.ones((40, 4)), np.ones(40)), (np.ones((2, 4)), np.ones(2)))},
        DataError,
        "the labels are real numbers, and loss = 'cross-entropy' needs classes: .* loss = 'mse' for a regression",
    ),
}


@pytest.mark.parametrize(("values", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_told_and_leaves_nothing(
    tmp_path: Path, values: dict[str, Any], error: type[Exception], text: str
) -> None:
    call = {"model": net(), "data": tiny_arrays(), **BRIEF, **values}
    with pytest.raises(error, match=text):
        fit(run_dir=tmp_path / "runs" / "mine", **call)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"holds no finished run: expected a folder with result.json"):
        load_run(tmp_path)
