"""What is done with a run whose data is a table or a text: shown, evaluated, drawn, replayed, exported, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Run, fit, load_run, nn
from lockstep.cli.main import run
from lockstep.common.errors import JobError
from lockstep.common.numerics.random import Purpose, generator

BRIEF: dict[str, Any] = {"global_batch": 40, "micro_batches": 4, "epochs": 3, "workers": 0, "verbose": False}


def of_table(folder: Path) -> Run:
    """Train on two numbers to be told of four."""
    x = generator(0, Purpose.CANARY).standard_normal((200, 4))
    y = np.stack([x[:, 0] - x[:, 1], x[:, 2]], axis=1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    data = (x[:160], y[:160]), (x[160:], y[160:])
    return fit(model, data, run_dir=folder / "table", loss="mse", **BRIEF)


def of_text(folder: Path) -> Run:
    """Train on sequences of six tokens of five kinds."""
    x = generator(0, Purpose.CANARY).integers(0, 5, (200, 6))
    y = (x + 1) % 5
    model = nn.Sequential(nn.Embedding(5, 8), nn.MultiheadAttention(8, 2, is_causal=True), nn.Linear(8, 5))
    return fit(model, ((x[:160], y[:160]), (x[160:], y[160:])), run_dir=folder / "text", **BRIEF)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def metrics(trained: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_regressions_files_and_words_have_r2_and_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = of_table(tmp_path)
    steps = [line for line in metrics(trained) if line["kind"] == "step"]
    epochs = [line for line in metrics(trained) if line["kind"] == "epoch"]
    assert all("accuracy" not in line and line["r2"] < 1 and line["samples"] == 40 for line in steps)
    assert all("accuracy" not in line and line["test_r2"] < 1 for line in epochs)
    result = json.loads((trained.folder / "result.json").read_text())
    assert (result["test_accuracy"], result["test_r2"]) == (None, epochs[-1]["test_r2"])
    assert load_run(trained.folder).test_r2 == trained.test_r2 == result["test_r2"]
    assert repr(trained).endswith(f"test_r2={trained.test_r2:.4f})")
    with pytest.raises(JobError, match=r"the run has no accuracy: expected one with classes, .* see test_r2"):
        trained.test_accuracy  # noqa: B018  # reading it is what is tested
    out = told(capsys, "train", "--job", str(trained.folder / "job.toml"), "--run-dir", str(tmp_path / "again"))
    assert "epoch 3/3  loss " in out
    assert " R² " in out
    assert f"test R²         {trained.test_r2:.4f}\n" in out
    assert "train R²" in out
    assert trained.weights_sha256 in out
    assert "accuracy" not in out


def test_a_regression_is_evaluated_target_by_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = of_table(tmp_path)
    found = json.loads(told(capsys, "evaluate", str(trained.folder), "--json"))
    assert found["test_loss"] == trained.result.test_loss
    assert found["test_r2"] == trained.test_r2
    assert found["samples"] == 40
    assert np.mean([each["mse"] for each in found["targets"]]) == pytest.approx(trained.result.test_loss, rel=1e-5)
    out = told(capsys, "evaluate", str(trained.folder))
    assert out.startswith(f"test R²        {trained.test_r2:.4f} over 40 samples of ")
    assert "mean absolute error" in out
    # Whole numbers are numbers too.
    x, whole = np.ones((3, 4)), np.array([[1, 2], [3, 400], [5, 6]])
    np.savez(tmp_path / "whole.npz", x_train=x, y_train=whole.astype(float), x_test=x, y_test=whole.astype(float))
    found = json.loads(told(capsys, "evaluate", str(trained.folder), "--data", str(tmp_path / "whole.npz"), "--json"))
    assert found["targets"][1]["mse"] > 10_000
    labels = np.zeros(4, np.int64)
    np.savez(tmp_path / "classes.npz", x_train=np.ones((4, 4)), y_train=labels, x_test=np.ones((4, 4)), y_test=labels)
    assert run(["evaluate", str(trained.folder), "--data", str(tmp_path / "classes.npz")]) == 2
    assert "1 targets per sample: expected 2, as it was trained on" in capsys.readouterr().err


def test_the_figures_of_a_target_are_weighted_as_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = generator(0, Purpose.CANARY)
    x, weights = rng.standard_normal((200, 4)), rng.random(200) ** 4
    y = 500.0 + 80.0 * x[:, 0] + 40.0 * np.abs(x[:, 1])
    data = (x[:160], y[:160], weights[:160]), (x[160:], y[160:], weights[160:])
    trained = fit(nn.Linear(4, 1), data, run_dir=tmp_path / "run", loss="mse", metrics=["mae", "rmse"], lr=0.1, **BRIEF)
    found = json.loads(told(capsys, "evaluate", str(trained.folder), "--json"))
    (target,) = found["targets"]
    assert target["r2"] == pytest.approx(found["test_r2"], rel=1e-4)
    assert target["mae"] == pytest.approx(found["metrics"]["mae"], rel=1e-4)
    assert target["mse"] ** 0.5 == pytest.approx(found["metrics"]["rmse"], rel=1e-4)
    errors = trained.predict(x[160:]) - y[160:]
    assert target["mae"] == pytest.approx(np.average(np.abs(errors), weights=weights[160:]), rel=1e-4)
    assert target["mae"] != pytest.approx(np.mean(np.abs(errors)), rel=1e-2)


def test_a_text_is_evaluated_place_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = of_text(tmp_path)
    found = json.loads(told(capsys, "evaluate", str(trained.folder), "--json"))
    assert found["test_accuracy"] == trained.test_accuracy
    assert found["samples"] == 40
    assert np.sum(found["confusion"]) == 40 * 6
    assert f"{trained.test_accuracy:.2%} of 240 positions in 40 samples" in told(
        capsys, "evaluate", str(trained.folder)
    )
    assert {line["samples"] for line in metrics(trained) if line["kind"] == "step"} == {40}


@pytest.mark.parametrize("make", [of_table, of_text])
def test_runs_of_other_data_are_verified_and_replayed(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make(tmp_path).folder)
    assert "each of 160 samples was used once" in told(capsys, "ledger", folder)
    told(capsys, "verify", folder)
    piece = json.loads(told(capsys, "replay", folder, "--step", "3", "--micro-batch", "2", "--json"))
    assert piece["loss_sum"] == piece["recorded_loss_sum"]
    assert piece["targets"] == 10 * (2 if make is of_table else 6)
    assert np.shape(piece["labels"]) == ((10, 2) if make is of_table else (10, 6))


def test_of_a_regression_other_pictures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    table, text = of_table(tmp_path), of_text(tmp_path)
    out = told(capsys, "plot", str(table.folder))
    names = {path.name for path in (table.folder / "plots").iterdir()}
    assert names == {"learning.png", "throughput.png", "timeline.png", "answers.png"}
    assert "left out" not in out
    out = told(capsys, "plot", str(text.folder))
    assert {path.name for path in (text.folder / "plots").iterdir()} >= {"learning.png", "confusion.png"}
    assert "left out mistakes.png: samples of shape (6,) are not images" in out
    # Together, they share the curves that they both have.
    told(capsys, "plot", str(table.folder), str(text.folder), "--learning", "--to", str(tmp_path / "both"))
    assert (tmp_path / "both" / "learning.png").is_file()


def test_the_axes_of_a_regression_are_called_what_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    from lockstep.results.evaluation.assessment import assess
    from lockstep.results.plots.curves import read_curves
    from lockstep.results.plots.results import regression_outputs
    from lockstep.results.plots.training import learning
    from lockstep.runs.trained_model import open_trained

    trained = of_table(tmp_path)
    loss, score, _ = learning([read_curves(trained.folder)]).axes
    assert (loss.get_ylabel(), score.get_title()) == ("mean squared error", "R²")
    tests = np.asarray(score.get_lines()[1].get_ydata(), dtype=np.float64)
    assert tests.tolist() == [epoch.test_r2 for epoch in trained.history]
    first, second = regression_outputs(assess(open_trained(trained.folder))).axes
    assert (first.get_xlabel(), second.get_ylabel()) == ("target", "output")
    assert all(len(np.asarray(axes.get_lines()[1].get_xdata())) == 40 for axes in (first, second))


def test_event_files_have_r2(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="event files are written by tensorboardX")
    from tests.lockstep.cli.results.test_plot import read_events

    trained = of_table(tmp_path)
    assert run(["plot", str(trained.folder), "--to", str(tmp_path / "events"), "--tensorboard"]) == 0
    (path,) = (tmp_path / "events" / "table").iterdir()
    found = read_events(path.read_bytes())
    assert list(found["r2/test"]) == [4, 8, 12]
    assert "accuracy/train" not in found


def test_a_regression_takes_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="pictures are read by Pillow: .venv/bin/pip install -e '.[predict]'")
    assert run(["predict", str(of_table(tmp_path).folder), "x.png"]) == 2
    assert capsys.readouterr().err.startswith("error: the model was trained with loss = 'mse': expected a classifier")


def test_a_text_is_exported_with_tokens_as_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "onnx", reason="ONNX files are written by the package onnx: .venv/bin/pip install -e '.[export]'"
    )
    runtime = pytest.importorskip("onnxruntime", reason="exported graphs are compared with onnxruntime")
    trained = of_text(tmp_path)
    told(capsys, "export", str(trained.folder), str(tmp_path / "text.onnx"))
    session = runtime.InferenceSession(tmp_path / "text.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"samples": np.arange(12, dtype=np.int64).reshape(2, 6) % 5})
    assert found.shape == (2, 6, 5)


def test_whole_numbers_are_trained_on_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = generator(0, Purpose.CANARY).standard_normal((200, 4))
    y = np.rint(3 + x[:, 0]).astype(np.int64)
    data = (x[:160], y[:160].clip(0)), (x[160:], y[160:].clip(0))
    run_of = fit(nn.Sequential(nn.Linear(4, 1)), data, run_dir=tmp_path / "whole", loss="mse", lr=0.05, **BRIEF)
    larger = 90 * y.clip(0)
    np.savez(tmp_path / "larger.npz", x_train=x, y_train=larger, x_test=x, y_test=larger)
    found = json.loads(told(capsys, "evaluate", str(run_of.folder), "--data", str(tmp_path / "larger.npz"), "--json"))
    assert found["samples"] == 200
    assert found["test_loss"] > 1000


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.zeros((4, 6)), "the labels are real numbers, and loss = 'cross-entropy' needs classes"),
        (np.full((4, 6), 7), "has the label 7: expected those of 5 classes"),
    ],
)
def test_other_texts_have_to_fit(labels: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, x = of_text(tmp_path), np.ones((4, 6), np.int64)
    np.savez(tmp_path / "other.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    assert run(["evaluate", str(trained.folder), "--data", str(tmp_path / "other.npz")]) == 2
    assert text in capsys.readouterr().err
