"""Numbers to predict are scaled in training, and all that leaves the run has their units."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from lockstep import Run, fit, load_run, nn
from lockstep.cli.main import run
from lockstep.common.errors import JobError, ModelError
from lockstep.common.job.job import Job, check
from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.cluster import train_here
from lockstep.results.display import display_for
from lockstep.results.evaluation.assessment import assess
from lockstep.runs.job_data import with_data_values
from lockstep.runs.run_dir import resumed_job
from lockstep.runs.session import Destination
from lockstep.runs.trained_model import open_trained

RNG = np.random.default_rng(5)
X = RNG.normal(size=(240, 3)).astype(np.float32)
#: Prices of about 512, and rooms of about 3.
PRICE = 512.0 + 80.0 * (X[:, 0] - 0.5 * X[:, 1]).astype(np.float64)
BOTH = np.stack([PRICE, 3.0 + 0.25 * X[:, 2]], axis=1)


def net(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, outputs))


def trained(folder: Path, y: Any, x: Any = X, model: Any = None, **values: Any) -> Run:
    given: dict[str, Any] = {"loss": "mse", "workers": 0, "epochs": 40, "global_batch": 30, "verbose": False, **values}
    split = tuple((each[:200], each[200:]) for each in (x, y))
    (x_train, x_test), (y_train, y_test) = split
    model = model or net(1 if y.ndim == 1 else y.shape[1])
    return fit(model, ((x_train, y_train), (x_test, y_test)), run_dir=folder / "run", **given)


def scale_of(folder: Path, y: NDArray[Any], **values: Any) -> tuple[float, ...] | None:
    """Return the scale that a job gets for labels."""
    x = np.zeros((len(y), 3), np.float32)
    np.savez(folder / "some.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    job = Job(data=str(folder / "some.npz"), global_batch=2, micro_batches=1, **{"loss": "mse", **values})
    return with_data_values(job, {}).target_scale


FAR = np.array([400.0, 500.0, 600.0, 700.0])


@pytest.mark.parametrize(
    ("labels", "loss", "scale"),
    [
        (FAR, "mse", (550.0, 12500**0.5)),
        (FAR, "l1", (550.0, 12500**0.5)),
        (FAR, "smooth-l1", (550.0, 12500**0.5)),
        (FAR.astype(np.int64), "mse", (550.0, 12500**0.5)),
        (np.stack([FAR, FAR / 100], axis=1), "mse", (550.0, 12500**0.5, 5.5, 1.25**0.5)),
        # Images share one mean and one deviation, and so do many targets.
        (FAR.reshape(4, 1, 1, 1) + np.zeros((4, 1, 2, 2)), "mse", (550.0, 12500**0.5)),
        (FAR.reshape(4, 1) + np.zeros((4, 257)), "mse", (550.0, 12500**0.5)),
        # A constant keeps its deviation of 0 out of the division.
        (np.full(4, 700.1), "mse", (float(np.float32(700.1)), 1.0)),
        # A sigmoid or a tanh at the end reaches these, and the last were scaled before.
        (np.array([0.0, 1.0, 0.25, 0.5]), "mse", None),
        (np.array([-1.0, 1.0, 0.25, 0.5]), "mse", None),
        (np.array([-1.5, 0.9, -0.4, 1.2]), "mse", None),
        (np.array([0.5, 0.5078125, 0.5, 0.5078125]), "mse", (0.50390625, 0.00390625)),
        (np.array([0.0, 6.0, 0.0, -6.0]), "mse", (0.0, 18**0.5)),
        (np.array([1.0, 2.0, 1.0, 2.0]), "mse", (1.5, 0.5)),
        (np.array([0.0, 1.0, 0.0, 1.0]), "bce", None),
        (np.array([0, 1, 2, 3]), "cross-entropy", None),
        (FAR, "mine.py:loss", None),
    ],
)
def test_the_scale_is_that_of_numbers_that_need_one(
    tmp_path: Path, labels: NDArray[Any], loss: str, scale: tuple[float, ...] | None
) -> None:
    found = scale_of(tmp_path, labels, loss=loss)
    assert found == (scale if scale is None else pytest.approx(scale))


def test_a_scale_that_is_given_stays(tmp_path: Path) -> None:
    assert scale_of(tmp_path, FAR, target_scale=(0.0, 1.0)) == (0.0, 1.0)


def test_far_targets_are_learned_and_predicted_in_their_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = trained(tmp_path, PRICE, verbose=True)
    assert "targets: mean 507, deviation 85.82: scaled" in " ".join(capsys.readouterr().out.split())
    assert of.test_r2 > 0.95
    predicted = of.predict(X[200:])
    assert np.sqrt(np.mean((predicted - PRICE[200:]) ** 2)) < 20.0
    (figures,) = assess(open_trained(of.folder)).fit
    assert figures.mse == pytest.approx(float(np.mean((predicted - PRICE[200:]) ** 2)), rel=1e-4)
    assert figures.r2 == pytest.approx(of.test_r2, abs=1e-5)
    np.save(tmp_path / "rows.npy", X[200:])
    assert run(["predict", str(of.folder), str(tmp_path / "rows.npy")]) == 0
    shown = capsys.readouterr().out.split()
    assert shown[0] == "y"
    assert np.allclose(np.array(shown[1:], float), predicted, rtol=1e-5)


@pytest.mark.parametrize("form", ["weights", "fields", "packed", "whole numbers"])
def test_data_of_any_form_is_scaled(tmp_path: Path, form: str) -> None:
    x, y, values = {"a": X}, BOTH, dict[str, Any]()
    whole = np.rint(PRICE).astype(np.int64)
    np.savez(tmp_path / "one.npz", x=X, y=BOTH)
    match form:
        case "weights":
            data: Any = ((X, y, np.ones(len(X))), (X[200:], y[200:]))
        case "fields":
            data = ((x, y), (x, y))
        case "packed":
            assert run(["pack", str(tmp_path / "one.npz"), str(tmp_path / "packed")]) == 0
            data = tmp_path / "packed"
        case _:
            data, y = (X, whole), whole[:, np.newaxis]

    class Fields(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, a: Any) -> Any:
            return self.net(a)

    model = Fields if form == "fields" else net(y.shape[1])
    values = {"loss": "mse", "workers": 0, "epochs": 40, "global_batch": 30, "verbose": False}
    of = fit(model, data, run_dir=tmp_path / "run", **values)
    assert of.test_r2 > 0.9
    predicted = of.predict(x if form == "fields" else X)
    assert predicted.shape == (y[:, 0] if y.shape[1] == 1 else y).shape
    assert np.all(np.abs(predicted.reshape(y.shape) - y).mean(axis=0) < 0.3 * y.std(axis=0))


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_dense_has_an_output_for_each_whole_number(tmp_path: Path, loss: str) -> None:
    three = np.stack([PRICE, PRICE + 9.0, PRICE - 9.0], axis=1)
    whole = np.rint(three if loss == "mse" else three > 512.0).astype(np.int64)
    of = trained(tmp_path, whole, model="dense", loss=loss, epochs=2)
    assert of.predict(X[:4]).shape == (4, 3)


def test_images_are_predicted_in_their_units(tmp_path: Path) -> None:
    images = RNG.uniform(0.0, 250.0, (60, 1, 4, 4)).astype(np.float32)
    of = fit(
        nn.Sequential(nn.Conv2d(1, 1, 1)), ((images, 3.0 * images + 40.0), (images, 3.0 * images + 40.0)),
        loss="mse", workers=0, epochs=30, global_batch=20, verbose=False, run_dir=tmp_path / "run",
    )  # fmt: skip
    predicted = of.predict(images)
    assert predicted.shape == images.shape
    assert np.abs(predicted - (3.0 * images + 40.0)).max() < 25.0
    figures = assess(open_trained(of.folder)).fit
    assert len(figures) == 16
    assert figures[5].mse == pytest.approx(float(np.mean((predicted - 3.0 * images - 40.0)[:, 0, 1, 1] ** 2)), rel=1e-3)


def test_other_data_is_given_in_units_and_so_are_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = trained(tmp_path, BOTH, with_examples=True)
    np.savez(tmp_path / "new.npz", x=X[200:], y=BOTH[200:])
    own, other = (assess(open_trained(of.folder), data) for data in (None, str(tmp_path / "new.npz")))
    assert other.fit == own.fit
    assert own.fit[0].mse > 100.0 * own.fit[1].mse
    # Whole numbers are numbers too.
    np.savez(tmp_path / "whole.npz", x=X[200:], y=np.rint(BOTH[200:]).astype(int))
    whole = assess(open_trained(of.folder), str(tmp_path / "whole.npz"))
    assert whole.fit[0].r2 == pytest.approx(own.fit[0].r2, abs=0.01)
    assert run(["evaluate", str(of.folder), "--data", str(tmp_path / "new.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_r2"] == pytest.approx(of.test_r2, abs=1e-6)


def within(outputs: Any, targets: Any) -> tuple[float, int]:
    return float((abs(outputs - targets) < 10.0).sum()), targets.size


def test_metrics_see_the_units(tmp_path: Path) -> None:
    of = trained(tmp_path, PRICE, metrics=["mae", "rmse", within])
    errors = np.abs(of.predict(X[200:]) - PRICE[200:])
    assert of.test_metrics["mae"] == pytest.approx(errors.mean(), rel=1e-4)
    assert of.test_metrics["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-4)
    assert of.test_metrics["within"] == pytest.approx(np.mean(errors < 10.0), abs=1e-6)


def test_an_exported_graph_gives_the_units(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    of = trained(tmp_path, BOTH)
    assert run(["export", str(of.folder), str(tmp_path / "net.onnx")]) == 0
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    prepared = (X - float(facts["mean"])) / float(facts["std"])
    (found,) = session.run(None, {"samples": prepared.astype(np.float32)})
    assert np.allclose(found, of.predict(X), rtol=1e-5, atol=1e-4)
    assert of.job.target_scale is not None
    assert [target["mean"] for target in json.loads(facts["targets"])] == list(of.job.target_scale[::2])


def test_a_colleague_without_the_data_predicts_the_same(tmp_path: Path) -> None:
    of = trained(tmp_path, BOTH)
    assert run(["export", str(of.folder), str(tmp_path / "run.zip")]) == 0
    expected = of.predict(X)
    (of.folder / "data.npz").unlink()
    assert load_run(tmp_path / "run.zip").predict(X).tobytes() == expected.tobytes()


def test_a_job_of_an_older_version_keeps_its_bits_and_its_digest(tmp_path: Path) -> None:
    of = trained(tmp_path, PRICE, target_scale=(0, 1), lr=1e-7, epochs=2)
    path = of.folder / "job.toml"
    # As an older version wrote it: no target was scaled.
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "target_scale" not in line))
    job, options = resumed_job(of.folder, {})
    assert job.target_scale is None
    values = msgspec.to_builtins(job.without_folders())
    del values["target_scale"]
    assert job.digest() == hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()
    (tmp_path / "old").mkdir()
    display = display_for(Console(quiet=True), SystemClock())
    with display:
        result = train_here(job, Destination(folder=tmp_path / "old", options=options), display)
    assert result.weights_sha256 == of.weights_sha256
    assert open_trained(tmp_path / "old").data.targets == []
    assert load_run(tmp_path / "old").predict(X).tobytes() == of.predict(X).tobytes()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"loss": "bce", "target_scale": (1.0, 2.0)}, "target_scale with loss = 'bce': expected one of mse, l1"),
        ({"loss": "mse", "target_scale": (1.0, 2.0, 3.0)}, r"target_scale = \[1.0, 2.0, 3.0\]: expected a mean"),
        ({"loss": "mse", "target_scale": (1.0, 0.0)}, "a deviation above 0"),
    ],
)
def test_a_scale_that_is_none_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(JobError, match=text):
        check(Job(**values))


def test_a_scale_of_more_numbers_than_are_predicted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"target_scale has 4 numbers: expected .*, or both for each of 1 targets"):
        trained(tmp_path, PRICE, target_scale=(500, 80, 3, 1))


def test_r2_of_a_validation_set_is_measured_by_its_own_targets(tmp_path: Path) -> None:
    far = PRICE + 300.0 * (np.arange(len(PRICE)) % 17 == 0)
    values: dict[str, Any] = {"loss": "mse", "workers": 0, "epochs": 2, "validation_split": 0.2, "with_examples": True}
    run = fit(net(1), (X, far), run_dir=tmp_path / "run", global_batch=30, verbose=False, **values)
    with np.load(run.folder / "examples.npz") as kept:
        x, y = kept["x"], kept["y"].reshape(-1)
    assert len(y) == 38
    error = np.mean(np.square(run.predict(x) - y))
    assert run.result.history[-1].val_r2 == pytest.approx(1.0 - error / y.var(), abs=1e-4)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth-l1"])
@pytest.mark.parametrize("y", [PRICE, 512.0 + 0.01 * (PRICE - 512.0), BOTH], ids=["far", "close together", "two"])
def test_r2_has_no_units(tmp_path: Path, loss: str, y: NDArray[np.float64]) -> None:
    run = trained(tmp_path, y, loss=loss, metrics=["r2", "mae"], epochs=3)
    right = y[200:].reshape(40, -1)
    errors = run.predict(X[200:]).reshape(40, -1) - right
    scale = np.square(y[:200].reshape(200, -1).std(axis=0))
    explained = 1.0 - (np.square(errors) / scale).mean() / (right.var(axis=0) / scale).mean()
    assert 0.5 < explained < 0.96
    assert run.test_r2 == pytest.approx(explained, abs=1e-4)
    assert run.result.history[-1].metrics["test_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-3)
