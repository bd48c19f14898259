"""Weights in files of others, in both directions: PyTorch's safetensors, and NumPy's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Tensor, nn
from lockstep.cli.main import run
from lockstep.common.aggregation.layout import layout_of
from lockstep.common.autograd.graph import no_grad
from lockstep.common.errors import ModelError
from lockstep.common.files.safetensors import read
from lockstep.common.job.job import Job
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.initial import initial_weights
from lockstep.common.model.source import open_model
from lockstep.runs.job_file import resolve
from tests.lockstep.small_runs import small_run

#: Weights of a net that PyTorch 2.13 trained the statistics of, as `safetensors.torch.save_file(model.state_dict())`
#: wrote them, its count of batches among them; and what that net made of three samples.
FROM_TORCH = Path(__file__).parent / "from_torch.safetensors"
LOGITS = Path(__file__).parent / "torch_logits.safetensors"


def model_of(job: Job) -> nn.Module:
    """Return the module of a job with its initial values."""
    model = open_model(job.model, job.seed)
    assert isinstance(model, AutogradModel)
    model.load(initial_weights(job, model).vector)
    return model.module


def the_net() -> nn.Sequential:
    """Return the net that PyTorch's weights are of."""
    convolution = (nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(18, 4))


def test_pytorchs_weights_give_pytorchs_logits() -> None:
    job, _ = resolve({"model": nn.description.describe(the_net()), "initial": str(FROM_TORCH)}, {})
    model = model_of(job).eval()
    arrays, _ = read(LOGITS)
    with no_grad():
        logits = model(Tensor(arrays["samples"])).data
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)
    assert "1.num_batches_tracked" in read(FROM_TORCH)[0]


def test_a_run_begins_with_pytorchs_weights(tmp_path: Path) -> None:
    build = "from tests.lockstep.results.evaluation.test_weights import the_net as build\n"
    (tmp_path / "net.py").write_text(build)
    images = np.arange(40 * 196, dtype=np.float32).reshape(40, 1, 14, 14) % 7
    labels = np.arange(40) % 4
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    job = ["--model", f"{tmp_path}/net.py:build", "--data", f"{tmp_path}/data.npz", "--initial", str(FROM_TORCH)]
    rest = ["--steps", "1", "--lr", "1e-30", "--momentum", "0", "--global-batch", "20", "--workers", "0"]
    assert run(["train", *job, *rest, "--run-dir", str(tmp_path / "run")]) == 0
    before, after = read(FROM_TORCH)[0], read(tmp_path / "run" / "weights.safetensors")[0]
    np.testing.assert_array_equal(after["5.weight"], before["5.weight"])
    assert "1.num_batches_tracked" not in after


def test_weights_of_another_model_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["--model", "linear", "--initial", str(FROM_TORCH), "--workers", "0", "--run-dir", str(folder)]
    assert run(["train", *arguments]) == 2
    assert "do not fit the model: unexpected:" in capsys.readouterr().err
    assert not folder.exists()


def test_safetensors_and_npz_hold_the_state_dict(tmp_path: Path) -> None:
    trained = small_run(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)))
    expected = trained.model.state_dict()
    for name in ("weights.safetensors", "weights.npz"):
        assert run(["export", str(trained.folder), str(tmp_path / name)]) == 0
    arrays, message = read(tmp_path / "weights.safetensors")
    assert message["format"] == "pt"
    assert 0 < float(message["std"]) < float(message["mean"]) < 0.5
    same(arrays, expected)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as archive:
        same(dict(archive), expected)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_safetensors_load_into_the_same_pytorch_model(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed here")
    load: Any = pytest.importorskip("safetensors.torch", reason="reads the export as PyTorch's users do")
    ours = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    trained = small_run(tmp_path, ours)
    assert run(["export", str(trained.folder), str(tmp_path / "weights.safetensors")]) == 0
    layers = torch.nn
    theirs = layers.Sequential(
        layers.Flatten(), layers.Linear(784, 8), layers.BatchNorm1d(8), layers.ReLU(), layers.Linear(8, 10)
    )
    theirs.load_state_dict(load.load_file(tmp_path / "weights.safetensors"))
    x = np.linspace(-1, 1, 5 * 784, dtype=np.float32).reshape(5, 784)
    with no_grad():
        expected = trained.model(Tensor(x)).data
    with torch.no_grad():
        found = theirs.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["weights.st"],
            "'weights.st' does not end in .safetensors, .onnx, .npz or .zip: add --format: see `lockstep export",
        ),
        (["gone/weights.npz"], "cannot write 'gone/weights.npz': expected an existing folder, 'gone'"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    small_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(["export", "run", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {text}")
    assert error.count("\n") == 1


def test_a_layout_refuses_a_count_without_its_statistics() -> None:
    state = the_net().state_dict()
    job, _ = resolve({"model": nn.description.describe(the_net())}, {})
    model = model_of(job)
    layout = layout_of(model)
    with pytest.raises(ModelError, match=r"'9.num_batches_tracked' is in only one of them"):
        layout.write(np.zeros(layout.size, np.float32), {**state, "9.num_batches_tracked": np.zeros((), np.float32)})
