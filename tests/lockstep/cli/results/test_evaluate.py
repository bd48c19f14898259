"""`lockstep evaluate`: the run's own figures again, class by class, and on other data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, nn
from lockstep.cli.main import run
from tests.lockstep.small_runs import small_run
from tests.lockstep.tiny_data import tiny_arrays


def test_the_figures_are_those_of_the_run_and_of_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = small_run(tmp_path)
    assert run(["evaluate", str(trained.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["test_accuracy"] == trained.test_accuracy
    assert told["test_loss"] == trained.history[-1].test_loss
    assert told["weights_sha256"] == trained.weights_sha256
    confusion = np.array(told["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum() == told["samples"] == 40
    assert np.trace(confusion) / 40 == trained.test_accuracy
    assert [each["samples"] for each in told["classes"]] == [4] * 10
    assert [each["recall"] for each in told["classes"]] == (np.diag(confusion) / 4).tolist()


def test_a_table_and_the_matrix_fit_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(small_run(tmp_path).folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80  # the first has the path of the data
    assert [line.split()[0] for line in lines[5:15]] == list("0123456789")
    assert lines[-11].split() == ["predicted", *"0123456789"]


@pytest.mark.parametrize(
    ("shape", "label", "text"),
    [
        ((20, 20), 0, "samples of shape (1, 20, 20): expected (1, 28, 28), as it was trained on"),
        ((28, 28), 12, "has the label 12: expected those of 10 classes, as it was trained on"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, int], label: int, text: str
) -> None:
    trained = small_run(tmp_path)
    images, labels = np.ones((4, *shape), np.uint8), np.array([0, 1, 2, label])
    np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert run(["evaluate", str(trained.folder), "--data", str(tmp_path / "other.npz")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'other.npz'}: {text}\n"


def test_a_single_row_has_no_share_of_a_variance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(32, dtype=np.float32).reshape(16, 2)
    y = x.sum(axis=1)
    values: dict[str, Any] = {"loss": "mse", "steps": 1, "lr": 1e-3, "workers": 0, "verbose": False}
    done = fit(nn.Sequential(nn.Linear(2, 1)), ((x, y), (x[:1], y[:1])), run_dir=tmp_path / "run", **values)
    np.savez(tmp_path / "one.npz", x=x[:1], y=y[:1])
    words = ["evaluate", str(done.folder), "--data", str(tmp_path / "one.npz")]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["test_r2"], told["targets"][0]["r2"]) == (1, None, None)
    assert run(words) == 0
    assert capsys.readouterr().out.startswith("test R²        - over 1 samples of")
    Path(done.job.data).unlink()
    assert run([*words[:2], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["is_recorded"], told["test_r2"]) == (True, None)


def test_other_data_is_tested_with_the_runs_own_preparation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = small_run(tmp_path)
    (_, _), (images, labels) = tiny_arrays()
    # Other training samples, which must not matter, and only some of the classes.
    few = labels < 3
    np.savez(tmp_path / "few.npz", x_train=images + 9, y_train=labels, x_test=images[few], y_test=labels[few])
    assert run(["evaluate", str(trained.folder), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert run(["evaluate", str(trained.folder), "--data", str(tmp_path / "few.npz"), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["samples"] == 12
    assert other["confusion"][:3] == own["confusion"][:3]


def test_other_data_has_weights_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The training had none. Most labels are wrong, since a loss of 0 would tell nothing.
    trained, told = small_run(tmp_path), {}
    (_, _), (images, right) = tiny_arrays()
    labels = right * 7 % 10
    weights = np.where(labels < 3, 4.0, 0.0)
    for name, arrays in {
        "all": {"x": images, "y": labels},
        "some": {"x": images[labels < 3], "y": labels[labels < 3]},
        "weighed": {"x": images, "y": labels, "w": weights},
        "tests": {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, "w_test": weights},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        assert run(["evaluate", str(trained.folder), "--data", str(tmp_path / f"{name}.npz"), "--json"]) == 0
        told[name] = json.loads(capsys.readouterr().out)["test_loss"]
    assert told["weighed"] == told["tests"] == pytest.approx(told["some"], rel=1e-6)
    assert told["all"] != pytest.approx(told["some"], rel=1e-3)


def test_a_test_set_of_its_own_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    for name, rows in (("sales", 60), ("later", 20)):
        lines = [f"{row % 7},{row % 5},{row % 7 + 2 * (row % 5)}" for row in range(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["staff,rooms,sold", *lines]) + "\n")
    sales, later, data, folder = (str(tmp_path / name) for name in ("sales.csv", "later.csv", "data", "run"))
    assert run(["pack", sales, data, "--target", "sold", "--test", later]) == 0
    assert run(["train", "--data", data, "--run-dir", folder, "--steps", "2", "--workers", "0"]) == 0
    capsys.readouterr()
    assert run(["evaluate", folder]) == 0
    assert f"over 20 samples of {later}\n" in capsys.readouterr().out
    assert run(["evaluate", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == later
