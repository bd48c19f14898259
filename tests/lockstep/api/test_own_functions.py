"""Functions of one's own next to the model: the same bits in one process, in several, and after an interrupt."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import F, LambdaCallback, doctor, find_lr, fit, load_run, nn, optim, resume
from lockstep.cli.main import run as run_command
from lockstep.common.errors import JobError, ModelError
from lockstep.common.files.safetensors import read

#: Two epochs of three steps, silent.
BRIEF: dict[str, Any] = {"epochs": 2, "global_batch": 16, "micro_batches": 4, "verbose": False}


@dataclass(frozen=True)
class Lion:
    """A rule of one's own (Chen et al., NeurIPS 2023)."""

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01

    def init(self, size: int) -> dict[str, Any]:
        return {"exp_avg": np.zeros(size, np.float32)}

    def update(self, weights: Any, gradient: Any, slots: Any, step: int, lr: float, out: Any) -> None:
        mean = slots.old["exp_avg"]
        direction = np.sign(self.beta1 * mean + (1 - self.beta1) * gradient)
        out[:] = weights - lr * (direction + self.weight_decay * weights)
        slots.new["exp_avg"][:] = self.beta2 * mean + (1 - self.beta2) * gradient


def cooling(step: int, steps: int) -> float:
    return 1.0 - 0.5 * step / steps


def flipped(sample: Any, rng: np.random.Generator) -> Any:
    return {"picture": sample["picture"][..., ::-1] if rng.random() < 0.5 else sample["picture"], "row": sample["row"]}


class Net(nn.Module):
    """A picture and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.row, self.norm = nn.Linear(16, 6), nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, picture: Any, row: Any) -> Any:
        hidden = F.tanh(self.norm(self.picture(picture.flatten(1)) + self.row(row)))
        return {"hidden": hidden, "logits": self.head(hidden)}


def loss(outputs: Any, targets: Any) -> Any:
    """Return the sum of losses, by the samples' weights, and the sum of these."""
    each = F.cross_entropy(outputs["logits"], targets["y"], reduction="none")
    weights = targets["sample_weight"]
    return (each * weights).sum() + 0.1 * (outputs["hidden"] ** 2).mean(), float(weights.sum())


def confidence(outputs: Any, targets: Any) -> Any:
    """Return the sum of the largest probabilities, by the samples' weights, and the sum of these."""
    raised = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    largest = (raised / raised.sum(axis=1, keepdims=True)).max(axis=1)
    return (largest * targets["sample_weight"]).sum(), targets["sample_weight"].sum()


def data() -> Any:
    rng = np.random.default_rng(4)
    x: dict[str, Any] = {
        "picture": rng.integers(0, 256, size=(40, 4, 4)).astype(np.uint8),
        "row": rng.normal(size=(40, 5)),
    }
    part: Any = x, rng.integers(0, 3, 40), rng.random(40)
    return part, ({name: array[:9] for name, array in x.items()}, part[1][:9], part[2][:9])


def all_of_it() -> dict[str, Any]:
    return {
        **BRIEF,
        "loss": loss,
        "optimizer": Lion(beta1=0.8),
        "schedule": cooling,
        "transform": flipped,
        "no_decay": ["vectors"],
        "lr_factors": ["head.*=3"],
        "lr": 0.01,
        "ema_decay": 0.5,
        "metrics": ["accuracy", "f1", confidence],
        "validation_split": 0.2,
        "monitor": "val_confidence",
        "monitor_mode": "max",
    }


def average_of(folder: Path) -> bytes:
    arrays, _ = read(folder / "weights-ema.safetensors")
    return b"".join(array.tobytes() for array in arrays.values())


def test_an_interrupt_and_any_number_of_workers_give_the_same_bits(tmp_path: Path) -> None:
    alone = fit(Net, data(), run_dir=tmp_path / "alone", workers=0, **all_of_it())

    def interrupt(training: Any, epoch: Any) -> None:
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            *(Net, data()),
            run_dir=tmp_path / "cut",
            workers=0,
            callbacks=[LambdaCallback(on_epoch_end=interrupt)],
            **all_of_it(),
        )
    resumed = resume(tmp_path / "cut", verbose=False)
    several = fit(Net, data(), run_dir=tmp_path / "several", workers=2, **all_of_it())
    assert alone.weights_sha256 == resumed.weights_sha256 == several.weights_sha256
    assert average_of(tmp_path / "alone") == average_of(tmp_path / "cut") == average_of(tmp_path / "several")
    assert alone.history[-1].test_loss == several.history[-1].test_loss
    figures = [[(epoch.accuracy, epoch.metrics) for epoch in run.history] for run in (alone, resumed, several)]
    assert figures[0] == figures[1] == figures[2]
    assert {*figures[0][1][1]} == {f"{part}{name}" for part in ("", "val_", "test_") for name in ("f1", "confidence")}
    assert run_command(["verify", str(tmp_path / "several")]) == 0


def test_predictions_take_what_the_model_takes(tmp_path: Path) -> None:
    run = fit(Net, data(), run_dir=tmp_path / "run", workers=0, **all_of_it())
    (x, _, _), _ = data()
    outputs = load_run(tmp_path / "run").predict(x)
    assert outputs.shape == (40, 3)
    assert run.ema_model is not run.model
    with pytest.raises(JobError, match="has no probabilities"):
        run.predict_proba(x)


def test_the_files_of_all_functions_are_the_runs(tmp_path: Path) -> None:
    run = fit(Net, data(), run_dir=tmp_path / "run", workers=0, **all_of_it())
    found = {path.parent.name for path in (tmp_path / "run/model").glob("+*/*.py")}
    assert found == {"+loss", "+metrics.confidence", "+optimizer", "+schedule", "+transform"}
    # Changed where the job names it, and so not what the run was trained with.
    (tmp_path / "run/model/+loss/loss.py").write_text("def loss(outputs, targets):\n    return 0, 0\n")
    with pytest.raises(ModelError, match=r"is not that of the run|was changed"):
        load_run(run.folder).model  # noqa: B018  # built when it is asked for


def misspelled(outputs: Any, targets: Any) -> Any:
    return outputs["logits"].squares().sum(), 1


def test_a_loss_that_raises_is_told_in_a_line_before_the_run_begins(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"misspelled raised AttributeError: .*'squares': expected a fun"):
        fit(Net, data(), run_dir=tmp_path / "run", workers=0, **{**all_of_it(), "loss": misspelled})
    assert not (tmp_path / "run").exists()


def broken(outputs: Any, targets: Any) -> Any:
    return outputs["hidden"].sum(), 1


def test_a_metric_that_raises_is_told_in_a_line_before_the_run_begins(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the metric broken raised IndexError: .*: expected a function of outputs"):
        fit(Net, data(), run_dir=tmp_path / "run", workers=0, **{**all_of_it(), "metrics": [broken], "monitor": None})
    with pytest.raises(JobError, match="metrics has <class 'dict'>: expected a name, a function of your own"):
        fit(Net, data(), run_dir=tmp_path / "run", workers=0, **{**all_of_it(), "metrics": [dict]})
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_trained_is_evaluated_by_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(Net, data(), run_dir=tmp_path / "run", workers=0, **all_of_it())
    assert run_command(["evaluate", str(run.folder)]) == 0
    shown = capsys.readouterr().out
    assert f"test accuracy  {run.test_accuracy:.2%}" in shown
    for name, value in run.test_metrics.items():
        assert f"{'test ' + name:<14} {value:.4f}" in shown


def plain_loss(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets, reduction="sum"), len(targets)


def stilled(sample: Any, rng: np.random.Generator) -> Any:
    return sample * 0.0


def own_values(**values: Any) -> dict[str, Any]:
    return {"optimizer": Lion(), "schedule": cooling, "metrics": [broken], "global_batch": 16, "lr": 0.003, **values}


def separable() -> Any:
    x = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
    return (x, x[:, :3].argmax(axis=1)), (x[:32], x[:32, :3].argmax(axis=1))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_rate_is_found_for_a_loss_and_an_optimizer_of_ones_own() -> None:
    named = find_lr(small_net(), separable(), steps=30, **own_values())
    own = find_lr(small_net(), separable(), steps=30, **own_values(loss=plain_loss))
    # The same function by another way.
    np.testing.assert_allclose(own.losses, named.losses, rtol=1e-5)


def test_the_doctor_tries_an_optimizer_and_a_transform_of_ones_own() -> None:
    assert doctor(small_net(), separable(), **own_values()).is_healthy
    assert doctor(small_net(), separable(), **own_values(loss=plain_loss)).is_healthy
    assert not doctor(small_net(), separable(), **own_values(lr=300.0)).is_healthy
    assert not doctor(small_net(), separable(), **own_values(transform=stilled)).is_healthy


def of_columns(outputs: Any, targets: Any) -> Any:
    if targets.shape != outputs.shape or targets.dtype != np.float32:
        raise ValueError("other targets than the page of losses describes")
    return ((outputs - targets) ** 2).sum(), len(targets)


def test_numbers_that_a_loss_gets_have_the_shape_of_a_models_outputs(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(40, 4))
    part = (x, x[:, 0])
    values: dict[str, Any] = {"epochs": 1, "global_batch": 20, "workers": 0, "verbose": False}
    run = fit(nn.Linear(4, 1), (part, part), loss=of_columns, run_dir=tmp_path / "run", **values)
    assert run.test_loss > 0


def rows() -> Any:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    return (x, (x[:, 0] > 0).astype(np.int64)), (x, (x[:, 0] > 0).astype(np.int64))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"loss": F.cross_entropy}, "loss is cross_entropy of the library: expected one of cross-entropy, nll, "),
        (
            {"loss": nn.CrossEntropyLoss()},
            "loss is CrossEntropyLoss of the library: expected one of ",
        ),
        ({"optimizer": optim.Adam}, "optimizer is Adam of the library: expected one of sgd, adam, "),
        ({"metrics": [lambda outputs, targets: (0.0, 1.0)]}, "metrics has a lambda, whose figure would have no name"),
    ],
)
def test_what_has_a_name_in_a_job_is_told_by_it(values: Any, told: str) -> None:
    with pytest.raises(JobError, match=re.escape(told)):
        fit(nn.Linear(4, 2), rows(), workers=0, **BRIEF, **values)


def test_a_lambda_is_a_loss_and_a_schedule(tmp_path: Path) -> None:
    run = fit(
        nn.Linear(4, 2),
        rows(),
        loss=lambda outputs, targets: (F.cross_entropy(outputs, targets, reduction="sum"), len(targets)),
        schedule=lambda step, steps: 1 - step / (2 * steps),
        workers=0,
        run_dir=tmp_path / "run",
        **BRIEF,
    )
    named = fit(nn.Linear(4, 2), rows(), schedule=cooling, workers=0, run_dir=tmp_path / "named", **BRIEF)
    assert run.weights_sha256 == named.weights_sha256


def of_classes(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets, reduction="sum"), len(targets)


def of_numbers(outputs: Any, targets: Any) -> Any:
    return ((outputs - targets) ** 2).sum(), len(targets)


def test_a_loss_of_ones_own_has_the_figures_of_its_metrics_in_detail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {**BRIEF, "workers": 0}
    run = fit(nn.Linear(4, 2), rows(), loss=of_classes, metrics=["accuracy"], run_dir=tmp_path / "classes", **values)
    with pytest.raises(JobError, match=r"only that knows what the outputs mean: run\.predict\(rows\) returns them"):
        run.predict_proba(rows()[1][0])
    assert run_command(["evaluate", str(run.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert np.trace(told["confusion"]) / np.sum(told["confusion"]) == run.test_accuracy == told["test_accuracy"]
    assert run_command(["evaluate", str(run.folder)]) == 0
    assert "most often mistaken for" in capsys.readouterr().out
    (x, _), _ = rows()
    numbers = ((x, x[:, :1]), (x, x[:, :1]))
    run = fit(nn.Linear(4, 1), numbers, loss=of_numbers, metrics=["r2"], run_dir=tmp_path / "numbers", **values)
    assert run_command(["evaluate", str(run.folder)]) == 0
    assert "mean absolute error" in capsys.readouterr().out
