"""What people train with, by PyTorch: a run ends where a plain loop with PyTorch's own losses and optimizer ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, load_run
from lockstep.common.errors import JobError, ModelError
from lockstep.common.files.safetensors import read

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
nn, F = torch.nn, torch.nn.functional

#: One epoch of three steps, alone in this process, and silent.
BRIEF: dict[str, Any] = {
    "workers": 0,
    "epochs": 1,
    "global_batch": 16,
    "micro_batches": 4,
    "normalize": False,
    "lr": 0.1,
    "verbose": False,
}
SAMPLES = 40


def drawn(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def classes(*shape: int) -> Any:
    return np.random.default_rng(1).integers(0, 3, size=shape)


def build_dense() -> Any:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def build_rows() -> Any:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def build_log_probabilities() -> Any:
    return nn.Sequential(build_rows(), nn.LogSoftmax(1))


class TwoInputs(nn.Module):  # type: ignore[misc, name-defined]
    """An image and a row of numbers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.row, self.head = nn.Linear(16, 4), nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, image: Any, row: Any) -> Any:
        both = torch.tanh(torch.cat([self.image(image.flatten(1)), self.row(row)], 1))
        return {"hidden": both, "logits": self.head(both)}


def penalised(outputs: Any, targets: Any) -> Any:
    """A loss of the user's own, of two targets and both outputs, that counts what it likes."""
    errors = (outputs["logits"][:, 0] - targets["height"][:, 0]) ** 2
    losses = torch.nn.functional.cross_entropy(outputs["logits"], targets["kind"], reduction="none")
    penalty = outputs["hidden"].square().mean(1)
    return (errors + losses + 0.1 * penalty).sum(), len(errors)


def plain(build: Callable[[], Any], mean_loss: Callable[[Any, Any], Any], inputs: Any) -> dict[str, Any]:
    """Train as `BRIEF` does, batch by batch in the order of the run; `inputs` returns a batch of some rows."""
    from lockstep.common.data.sampler import Sampler

    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sampler = Sampler(SAMPLES, 16, 4, 0)
    for step in range(3):
        batch = np.concatenate([sampler.indices(step, m) for m in range(4)])
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}


def assert_near(run: Any, expected: dict[str, Any]) -> None:
    arrays, _ = read(run.folder / "weights.safetensors")
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def tensors(*arrays: Any) -> tuple[Any, ...]:
    return tuple(map(torch.from_numpy, arrays))


@pytest.mark.parametrize(
    ("build", "y", "job", "loss"),
    [
        (build_rows, classes(SAMPLES), {"class_weights": (1.0, 0.5, 3.0)}, "weighted"),
        (
            build_rows,
            classes(SAMPLES),
            {"class_weights": (1.0, 0.5, 3.0), "label_smoothing": 0.2, "ignore_index": 1},
            "smoothed",
        ),
        (build_log_probabilities, classes(SAMPLES), {"loss": "nll", "ignore_index": 2}, "nll"),
        (build_rows, classes(SAMPLES, 3) % 2, {"loss": "bce"}, "bce"),
        (build_rows, classes(SAMPLES, 3) % 2, {"loss": "bce", "class_weights": (1.0, 2.0, 0.5)}, "positive"),
        (build_rows, 2 * drawn(SAMPLES, 3), {"loss": "smooth-l1", "target_scale": (0, 1)}, "smooth-l1"),
        (build_rows, drawn(SAMPLES, 3), {"loss": "l1", "target_scale": (0, 1)}, "l1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loss_by_name_is_pytorchs(
    tmp_path: Path, build: Callable[[], Any], y: Any, job: dict[str, Any], loss: str
) -> None:
    x = drawn(SAMPLES, 5)
    run = fit(build, ((x, y), (x[:8], y[:8])), run_dir=tmp_path / "run", **BRIEF, **job)
    weights = torch.tensor([1.0, 0.5, 3.0])
    of: dict[str, Callable[[Any, Any], Any]] = {
        "weighted": lambda out, t: F.cross_entropy(out, t, weight=weights),
        "smoothed": lambda out, t: F.cross_entropy(out, t, weight=weights, label_smoothing=0.2, ignore_index=1),
        "nll": lambda out, t: F.nll_loss(out, t, ignore_index=2),
        "bce": lambda out, t: F.binary_cross_entropy_with_logits(out, t.float()),
        "positive": lambda out, t: F.binary_cross_entropy_with_logits(
            out, t.float(), pos_weight=torch.tensor([1.0, 2.0, 0.5])
        ),
        "smooth-l1": F.smooth_l1_loss,
        "l1": F.l1_loss,
    }
    inputs, targets = tensors(x, y)
    assert_near(run, plain(build, lambda model, rows: of[loss](model(inputs[rows]), targets[rows]), inputs))
    assert (run.result.test_accuracy is None) == (loss in ("smooth-l1", "l1"))
    assert run.result.test_r2 is None


def test_each_pixel_has_a_class_and_some_have_none(tmp_path: Path) -> None:
    x, y = drawn(SAMPLES, 2, 6, 6), classes(SAMPLES, 6, 6)
    y[:, :2] = 255
    job: dict[str, Any] = {"ignore_index": 255, "run_dir": tmp_path / "run"}
    run = fit(build_dense, ((x, y), (x[:8], y[:8])), **BRIEF, **job)
    inputs, targets = tensors(x, y)

    def mean_loss(model: Any, rows: Any) -> Any:
        # BatchNorm takes its statistics per micro-batch.
        parts = np.split(rows, [len(rows) * m // 4 for m in (1, 2, 3)])
        total = sum(
            F.cross_entropy(model(inputs[one]), targets[one], ignore_index=255, reduction="sum") for one in parts
        )
        return total / (targets[rows] != 255).sum()

    assert_near(run, plain(build_dense, mean_loss, inputs))
    outputs = run.model(inputs[:8]).argmax(1)
    kept = targets[:8] != 255
    assert run.test_accuracy == pytest.approx(float((outputs == targets[:8])[kept].float().mean()))


def test_samples_weigh_what_is_said(tmp_path: Path) -> None:
    x, y, w = drawn(SAMPLES, 5), classes(SAMPLES), np.abs(drawn(SAMPLES))
    run = fit(build_rows, ((x, y, w), (x[:8], y[:8], w[:8])), run_dir=tmp_path / "run", **BRIEF)
    inputs, targets, weights = tensors(x, y, w)

    def mean_loss(model: Any, rows: Any) -> Any:
        losses = F.cross_entropy(model(inputs[rows]), targets[rows], reduction="none")
        return (losses * weights[rows]).sum() / weights[rows].sum()

    assert_near(run, plain(build_rows, mean_loss, inputs))
    with torch.no_grad():
        expected = F.cross_entropy(run.model(inputs[:8]), targets[:8], reduction="none")
    assert run.history[-1].test_loss == pytest.approx(
        float((expected * weights[:8]).sum() / weights[:8].sum()), rel=1e-5
    )


def two_inputs() -> tuple[Any, Any]:
    x = {"image": drawn(SAMPLES, 4, 4), "row": drawn(SAMPLES, 5)}
    return x, {"height": drawn(SAMPLES, 1), "kind": classes(SAMPLES) % 2}


def some(arrays: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {name: array[rows] for name, array in arrays.items()}


def test_several_inputs_go_to_a_loss_of_ones_own_and_back(tmp_path: Path) -> None:
    x, y = two_inputs()
    data = ((x, y), (some(x, slice(8)), some(y, slice(8))))
    run = fit(TwoInputs, data, loss=penalised, run_dir=tmp_path / "run", **BRIEF)
    inputs, targets = ({name: torch.from_numpy(array) for name, array in part.items()} for part in (x, y))

    def mean_loss(model: Any, rows: Any) -> Any:
        total, count = penalised(model(**some(inputs, rows)), some(targets, rows))
        return total / count

    assert_near(run, plain(TwoInputs, mean_loss, inputs))
    assert run.result.test_accuracy is run.result.test_r2 is None
    assert run.test_loss == run.history[-1].test_loss
    # Its text is in the folder, and is what the run is loaded with.
    assert "penalty" in (tmp_path / "run/model/+loss/loss.py").read_text()
    assert load_run(tmp_path / "run").job.loss.endswith("loss.py:penalised")


def mean(outputs: Any, targets: Any) -> Any:
    return outputs["logits"].square().mean(1), 1


@pytest.mark.parametrize("is_built", [False, True])
def test_an_optimizer_of_pytorch_is_named(is_built: bool, tmp_path: Path) -> None:
    x, y = two_inputs()
    kind = torch.optim.AdamW
    with pytest.raises(JobError, match=r"optimizer is AdamW of PyTorch: expected one of sgd, adam, .*, as"):
        fit(
            TwoInputs,
            ((x, y), (x, y)),
            optimizer=kind(torch.nn.Linear(1, 1).parameters()) if is_built else kind,
            run_dir=tmp_path / "run",
            **BRIEF,
        )


def number(outputs: Any, targets: Any) -> Any:
    return outputs["logits"].sum().item(), 1


def test_a_loss_that_returns_no_sum_is_named(tmp_path: Path) -> None:
    x, y = two_inputs()
    with pytest.raises(ModelError, match=r"returned -?\d.* as the sum of the losses: expected a tensor .*\.item\(\)"):
        fit(TwoInputs, ((x, y), (x, y)), loss=number, run_dir=tmp_path / "run", **BRIEF)
    with pytest.raises(ModelError, match=r"returned losses of shape \(4,\): expected their sum"):
        fit(TwoInputs, ((x, y), (x, y)), loss=mean, run_dir=tmp_path / "run", **BRIEF)
