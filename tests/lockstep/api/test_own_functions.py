"""Functions of one's own next to the model: the same bits in one process, in several, and after an interrupt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import F, LambdaCallback, fit, load_run, nn, resume
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
    assert found == {"+loss", "+optimizer", "+schedule", "+transform"}
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
