"""The model, its layers, the loss, the batch and the length of its training follow from the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, nn
from lockstep.cli.main import run
from lockstep.common.errors import DataError, JobError, ModelError
from lockstep.common.job.job import Job
from lockstep.runs.job_data import MOST_EPOCHS, length_reason, values_of_data, with_data_values
from lockstep.runs.job_file import read_values, resolve
from tests.lockstep.packing.test_mess import text_of

pa = pytest.importorskip("pyarrow")

#: In one process.
ALONE = ("--workers", "0")

#: Prices that follow from the other columns.
HOUSES: dict[str, Any] = {
    "rooms": [1 + row % 7 for row in range(200)],
    "town": ["Zug" if row % 3 else "Bern" for row in range(200)],
    "price": [1e5 * (1 + row % 7) + (3e5 if row % 3 else 0.0) + 0.5 for row in range(200)],
}


@pytest.fixture
def houses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "houses.csv").write_text(text_of({name: list(map(str, values)) for name, values in HOUSES.items()}))
    return tmp_path / "houses.csv"


def sizes(job: Job) -> list[Any]:
    """Return the arguments of the linear layers of a job's model."""
    assert isinstance(job.model, dict)
    return [layer["kwargs"] for layer in job.model["args"] if layer["class"] == "Linear"]


def test_a_table_and_its_target_are_enough(houses: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--data", "houses.csv", "--target", "price", "--workers", "0", "--run-dir", "new"]) == 0
    told = capfd.readouterr().out
    assert "training dense on houses.csv: " in told
    job, _ = resolve(read_values(houses.parent / "new" / "job.toml"), {})
    assert (job.model_name(), job.loss, job.hidden, job.optimizer) == ("dense", "mse", (128, 64), "adamw")
    assert sizes(job) == [
        {"in_features": 2, "out_features": 128},
        {"in_features": 128, "out_features": 64},
        {"in_features": 64, "out_features": 1},
    ]
    assert float(told.rpartition("test R²")[2].split()[0]) > 0.95
    # Any command takes it: a run's folder says all of it.
    for command in (
        ["evaluate", "new"],
        ["verify", "new"],
        ["train", "new/job.toml", "--steps", "1", "--workers", "0"],
    ):
        assert run(command) == 0


def test_classes_have_another_loss_and_values_that_are_given_stay(houses: Path) -> None:
    flags = ["--set", "hidden=5,4", "--steps", "3", "--global-batch", "20", "--lr", "0.5", "--set", "metrics=f1"]
    assert run(["train", "--data", str(houses), "--target", "town", "--workers", "0", "--run-dir", "new", *flags]) == 0
    job, _ = resolve(read_values(houses.parent / "new" / "job.toml"), {})
    assert (job.loss, job.hidden, job.steps, job.global_batch, job.lr) == ("cross-entropy", (5, 4), 3, 20, 0.5)
    assert [layer["out_features"] for layer in sizes(job)] == [5, 4, 2]


def test_metrics_of_numbers_need_no_loss(houses: Path) -> None:
    call = ["train", "--data", str(houses), "--target", "price", "--workers", "0", "--steps", "2", "--run-dir", "new"]
    assert run([*call, "--set", "metrics=mae", "--set", "monitor=test_mae"]) == 0
    assert run([*call[:-1], "other", "--set", "metrics=f1"]) == 2


@pytest.mark.parametrize("form", ["frame", "file", "named", "packed"])
def test_fit_takes_a_table_alone(houses: Path, form: str) -> None:
    values: dict[str, Any] = {"target": "price", "workers": 0, "verbose": False, "steps": 30, "seed": 3}
    frame = pa.table(HOUSES)
    if form == "named":
        found = fit(data=frame, **values)
    elif form == "packed":
        assert run(["pack", str(houses), "packed", "--target", "price"]) == 0
        del values["target"]
        found = fit("packed", **values)
    else:
        found = fit(frame if form == "frame" else houses, **values)
    assert (found.job.model_name(), found.job.loss) == ("dense", "mse")
    expected = fit("dense", frame, loss="mse", **{"target": "price"} | values)
    assert found.weights_sha256 == expected.weights_sha256


def test_another_model_gets_the_loss_of_the_target(houses: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    found = fit(model, pa.table(HOUSES), target="price", workers=0, verbose=False, steps=2)
    assert (found.job.model_name(), found.job.loss) == ("custom", "mse")


@pytest.mark.parametrize(
    ("model", "text"), [("mlp", "expected a model with 2 inputs, or model = 'dense', which takes any number")]
)
def test_a_model_of_other_inputs_is_refused_with_the_number(
    houses: Path, model: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["train", "--data", str(houses), "--target", "town", "--model", model, "--global-batch", "32", *ALONE]) == 2
    )
    assert text in capfd.readouterr().err


def test_dense_takes_pictures_too_and_not_tokens(tmp_path: Path) -> None:
    data = np.zeros((40, 3, 4), np.uint8), np.arange(40) % 3
    run_of = fit("dense", (data, data), workers=0, verbose=False, steps=1, run_dir=tmp_path / "run")
    assert [layer["in_features"] for layer in sizes(run_of.job)] == [12, 128, 64]
    np.savez(tmp_path / "tokens.npz", x_train=np.ones((40, 3), np.int64), y_train=np.arange(40) % 3)
    with np.load(tmp_path / "tokens.npz") as known:
        np.savez(tmp_path / "tokens.npz", x_test=known["x_train"], y_test=known["y_train"], **known)
    with pytest.raises(ModelError, match="or of tokens: expected one array of numbers for each sample"):
        with_data_values(Job(model="dense", data=str(tmp_path / "tokens.npz")), {})


@pytest.mark.parametrize(("rows", "batch", "epochs"), [(40, 32, MOST_EPOCHS), (4000, 64, 24), (60_000, 512, 13)])
def test_batch_and_length_follow_from_the_number_of_samples(tmp_path: Path, rows: int, batch: int, epochs: int) -> None:
    samples, labels = np.zeros((rows, 2), np.float32), np.arange(rows) % 2
    np.savez(tmp_path / "some.npz", x_train=samples, y_train=labels, x_test=samples[:2], y_test=labels[:2])
    job = with_data_values(Job(model="dense", data=str(tmp_path / "some.npz")), {})
    assert (job.global_batch, job.epochs) == (batch, epochs)
    given = Job(model="dense", data=str(tmp_path / "some.npz"), micro_batches=1, global_batch=8, epochs=3)
    job = with_data_values(given, {"global_batch": 8, "epochs": 3})
    assert (job.global_batch, job.epochs) == (8, 3)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "why"),
    [
        (40, 40, MOST_EPOCHS, "the most that are chosen"),
        (4000, 128, 47, "as many as make 1,500 steps"),
        (70_000, 128, 3, "the fewest that are chosen"),
    ],
)
def test_a_model_of_ones_own_makes_enough_steps_and_the_reason_is_told(
    tmp_path: Path, rows: int, batch: int, epochs: int, why: str
) -> None:
    samples, labels = np.zeros((rows, 2), np.float32), np.arange(rows) % 2
    np.savez(tmp_path / "some.npz", x_train=samples, y_train=labels, x_test=samples[:2], y_test=labels[:2])
    own = Job(model="net.py:build", data=str(tmp_path / "some.npz"))
    job = with_data_values(own, {"model": "net.py:build"})
    assert (job.global_batch, job.epochs) == (batch, epochs)
    assert length_reason(job, {}) == f"epochs = {epochs} for this data, with global_batch = {batch}: {why}"
    # A length that is given stays, and that of a job for MNIST.
    assert with_data_values(own, {"steps": 3}).epochs == own.epochs
    assert length_reason(own, {"epochs": 3}) == ""
    lenet = with_data_values(Job(data=own.data), {})
    assert (lenet.epochs, lenet.global_batch, length_reason(lenet, {})) == (Job().epochs, batch, "")


def pictures(path: Path, samples: int, shape: tuple[int, ...], classes: int = 3) -> str:
    """Write pictures, each of which is as bright as its class says, and return their path."""
    rng, labels = np.random.default_rng(7), np.arange(samples) % classes
    images = rng.integers(0, 40, (samples, *shape), dtype=np.uint8)
    images += (labels * (200 // classes)).astype(np.uint8).reshape(-1, *(1 for _ in shape))
    np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return str(path)


@pytest.mark.parametrize("shape", [(3, 9, 14), (1, 28, 28), (4, 5, 3), (3, 33, 12)])
def test_pictures_of_any_size_are_enough(
    tmp_path: Path, shape: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "some.npz", 60, shape)
    assert run(["train", "--data", data, "--steps", "40", "--workers", "0", "--run-dir", str(tmp_path / "new")]) == 0
    told = capfd.readouterr().out
    assert "training conv on " in told
    assert float(told.rpartition("test accuracy")[2].split()[0].rstrip("%")) > 90
    job, _ = resolve(read_values(tmp_path / "new" / "job.toml"), {})
    assert (job.model_name(), job.loss, job.hidden, job.global_batch) == ("conv", "cross-entropy", (16, 32, 64), 32)
    assert sizes(job)[-1]["out_features"] == 3


def test_pictures_that_lenet_takes_are_for_lenet_if_there_are_enough(tmp_path: Path) -> None:
    data = pictures(tmp_path / "some.npz", 1000, (1, 28, 28), classes=10)
    assert values_of_data(data, {}) == {}
    assert values_of_data(pictures(tmp_path / "few.npz", 999, (1, 28, 28), classes=10), {})["model"] == "conv"
    assert values_of_data(pictures(tmp_path / "more.npz", 1000, (1, 28, 28), classes=11), {})["model"] == "conv"
    assert values_of_data(pictures(tmp_path / "nine.npz", 1000, (1, 28, 28), classes=9), {})["model"] == "conv"
    # A model that is given stays.
    assert values_of_data(str(tmp_path / "few.npz"), {"model": "lenet"}) == {}


def test_vectors_are_for_dense_with_classes_and_with_numbers(tmp_path: Path) -> None:
    x, y = np.ones((9, 5), np.float32), np.arange(9) % 3
    for name, labels in (("classes", y), ("numbers", y[:, None].astype(np.float32))):
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    assert values_of_data(str(tmp_path / "classes.npz"), {}) == {"model": "dense", "loss": "cross-entropy"}
    assert values_of_data(str(tmp_path / "numbers.npz"), {"loss": "l1"}) == {"model": "dense"}


def test_the_model_follows_from_the_samples_whatever_the_labels_are(tmp_path: Path) -> None:
    for shape, model in (((5,), "dense"), ((3, 9, 11), "conv"), ((1, 28, 28), "conv")):
        x, y = np.ones((40, *shape), np.float32), np.arange(120).reshape(40, 3) % 2
        for loss, kind in (("bce", np.int64), ("bce", np.float32), ("mse", np.int64), ("mse", np.float32)):
            np.savez(tmp_path / "some.npz", x_train=x, y_train=y.astype(kind), x_test=x, y_test=y.astype(kind))
            given = {"loss": loss, "data": str(tmp_path / "some.npz")}
            found = values_of_data(given["data"], given)
            assert found == {"model": model}
            job = with_data_values(resolve({}, {**given, **found})[0], given)
            assert (job.model_name(), sizes(job)[-1]["out_features"]) == (model, 3)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_a_label_for_each_pixel_needs_a_model_of_your_own(tmp_path: Path, loss: str) -> None:
    x = np.zeros((6, 1, 8, 9), np.float32)
    y = np.zeros((6, 8, 9), np.int64 if loss == "cross-entropy" else np.float32)
    with pytest.raises(ModelError, match=r"labels of shape \(8, 9\): expected a class, .*; give a model of your own"):
        fit(data=((x, y), (x, y)), loss=loss, workers=0, verbose=False, run_dir=tmp_path / "new")


def test_digits_with_a_label_for_each_pixel_are_not_for_lenet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = np.zeros((1000, 28, 28), np.uint8), np.arange(1000 * 784).reshape(1000, 28, 28) % 10
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    assert values_of_data(str(tmp_path / "digits.npz"), {})["model"] == "conv"
    assert run(["train", "--data", str(tmp_path / "digits.npz"), "--model", "lenet", "--workers", "0"]) == 2
    assert "one number for each of 10 classes; give a model of your own" in capfd.readouterr().err


@pytest.mark.parametrize("target", ["town", "rooms"])
@pytest.mark.parametrize("command", ["train", "doctor", "find-lr"])
def test_a_table_is_not_learned_with_labels_that_hold_or_not(
    houses: Path, target: str, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--data", str(houses), "--target", target, "--loss", "bce", "--model", "dense"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "loss = 'bce' with the table" in error
    assert "houses.csv': expected loss = 'cross-entropy', for one target of two classes" in error


def test_a_frame_is_not_learned_with_labels_either(houses: Path) -> None:
    with pytest.raises(DataError, match="loss = 'bce' with the table"):
        fit(data=pa.table(HOUSES), target=["rooms", "price"], loss="bce", workers=0, verbose=False)


def test_a_shipped_model_of_other_outputs_names_the_one_that_has_any_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "four.npz", 96, (1, 28, 28), classes=4)
    assert run(["train", "--data", data, "--model", "lenet", *ALONE]) == 2
    error = capfd.readouterr().err
    assert "expected (2, 4), one number for each of 4 classes; give model = 'conv', whose outputs follow" in error
    assert (
        run(["train", "--data", data, "--model", "conv", "--steps", "1", *ALONE, "--run-dir", str(tmp_path / "new")])
        == 0
    )


def test_layers_that_follow_from_the_data_are_not_to_be_changed() -> None:
    x, rows = np.zeros((64, 5), np.float32), np.eye(4, dtype=np.int64)[np.arange(64) % 4]
    with pytest.raises(ModelError, match=r"one number for each of 2 classes; for one-hot rows, give .argmax"):
        fit(data=((x, rows), (x, rows)), workers=0, verbose=False)


def test_the_batch_of_a_shipped_job_is_at_most_the_data(tmp_path: Path) -> None:
    data = pictures(tmp_path / "few.npz", 96, (1, 28, 28), classes=10)
    for model in ("linear", "mlp", "lenet", "cnn"):
        job, _ = resolve({}, {"model": model, "data": data})
        assert (with_data_values(job, {}).global_batch, with_data_values(job, {}).epochs) == (96, job.epochs)
        assert with_data_values(job, {"global_batch": 512}) == job  # it is refused with its number


def test_another_shipped_model_names_the_one_that_takes_any_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "few.npz", 96, (3, 28, 40))
    assert run(["train", "--data", data, "--model", "lenet", *ALONE]) == 2
    assert "or model = 'conv', which takes pictures of any size" in capfd.readouterr().err
    assert (
        run(["train", "--data", data, "--model", "conv", "--steps", "1", *ALONE, "--run-dir", str(tmp_path / "new")])
        == 0
    )


def test_conv_takes_no_table(houses: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--data", str(houses), "--target", "town", "--model", "conv"]) == 2
    assert "model = 'dense' takes any numbers" in capfd.readouterr().err


def test_data_that_cannot_be_read_is_reported_where_it_is_needed() -> None:
    own = Job(model="net.py:build", data="gone.npz")
    assert with_data_values(own, {}) == own


def test_sizes_are_those_of_dense_alone() -> None:
    with pytest.raises(JobError, match=r"hidden = \[3\] with model = 'mlp': expected dense or conv"):
        resolve({}, {"model": "mlp", "hidden": [3]})
    assert values_of_data("mnist", {}) == {}
