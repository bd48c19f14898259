"""`fit` with models of PyTorch: a class, a function or a module; what comes back is PyTorch's too."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import LambdaCallback, find_lr, fit, load_run, resume
from lockstep.cli.main import run as run_command
from lockstep.common.errors import ModelError
from lockstep.common.files.safetensors import read, write
from lockstep.common.job.objective import Objective
from lockstep.common.model.source import torch_model
from lockstep.results.evaluation.assessment import assess
from lockstep.runs.trained_model import open_trained
from tests.lockstep.tiny_data import tiny_arrays, write_tiny

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
nn = torch.nn

#: What makes a run short, alone in this process, and silent.
BRIEF: dict[str, Any] = {
    "workers": 0,
    "epochs": 2,
    "global_batch": 32,
    "micro_batches": 4,
    "normalize": False,
    "verbose": False,
}

WIDTH = 12


class Net(nn.Module):  # type: ignore[misc, name-defined]
    """A class of a user's own, with a constant, shared weights, dropout and statistics."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.BatchNorm1d(width), nn.Dropout(0.2))
        self.middle = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.head = nn.Linear(width, 10)
        self.register_buffer("scale", torch.full((), 0.5))

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.again(self.middle(self.body(x)))) * self.scale)


def build() -> Any:
    return Net(8)


class Gated(nn.Module):  # type: ignore[misc, name-defined]
    """A layer that does not show what it was built with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 10)

    def forward(self, x: Any) -> Any:
        return self.inner(x)


class Shown(nn.Module):  # type: ignore[misc, name-defined]
    """A layer that does."""

    def __init__(self, width: int, act: Any = nn.ReLU, bias: bool = True) -> None:
        super().__init__()
        self.width, self.act, self.inner = width, act, nn.Linear(width, 10, bias=bias)
        self.bias = self.inner.bias

    def forward(self, x: Any) -> Any:
        return self.act()(self.inner(x))


class HalfFrozen(nn.Module):  # type: ignore[misc, name-defined]
    """A layer whose class freezes a part of it, which a person trains again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.first, self.second = width, nn.Linear(784, width), nn.Linear(width, 10)
        self.first.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


def frozen(model: Any, name: str) -> Any:
    """Freeze one part, and train all others."""
    model.requires_grad_(True).get_submodule(name).requires_grad_(False)
    return model


class Headed(nn.Module):  # type: ignore[misc, name-defined]
    """A body that may be frozen, and a head for so many classes, which the model does not keep as a number."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(784, 4), nn.Linear(4, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x.flatten(1)))


def hooked() -> Any:
    model = Net()
    model.head.register_forward_hook(lambda *_: None)
    return model


def tied() -> Any:
    inner = nn.Linear(784, 784)
    return nn.Sequential(nn.Flatten(), inner, inner, nn.Linear(784, 10))


def head(width: int) -> Any:
    scale = 0.5
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Tanh(), nn.Linear(int(2 * scale * width), 10))


AS_THEY_COME: dict[str, Callable[[], Any]] = {
    "container": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Sequential(nn.Linear(16, 8, bias=False), nn.Dropout(0.1)), nn.Linear(8, 10),
    ),
    "names": lambda: nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(784, 10))),
    "own layer": lambda: nn.Sequential(nn.Flatten(), Shown(784, nn.Tanh, bias=False)),
    "frozen layers": lambda: frozen(nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(784, 8)), Shown(8)), "1"),
    "frozen, and not": lambda: frozen(nn.Sequential(nn.Flatten(), HalfFrozen(12)), "1.second"),
    "partial": lambda: partial(Net, width=5),
    "lambda": lambda: lambda: Net(6),
    "closure": lambda: head(7),
}  # fmt: skip


@pytest.mark.parametrize("kind", AS_THEY_COME)
def test_models_are_trained_as_they_come(tmp_path: Path, kind: str) -> None:
    model: Any = AS_THEY_COME[kind]()
    run = fit(model, tiny_arrays(64, 10), run_dir=tmp_path / "run", **{**BRIEF, "epochs": 1})
    expected = model if isinstance(model, nn.Module) else model()
    assert repr(run.model) == repr(expected)
    here, there = ([(each.shape, each.requires_grad) for each in one.parameters()] for one in (run.model, expected))
    assert here == there


def test_frozen_layers_of_a_module_keep_its_weights(tmp_path: Path) -> None:
    model = frozen(nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)), "1")
    run = fit(model, tiny_arrays(64, 10), run_dir=tmp_path / "run", warm_start=True, **{**BRIEF, "epochs": 1})
    assert torch.equal(run.model[1].weight, model[1].weight)
    assert not torch.equal(run.model[3].weight, model[3].weight)


class Counting(nn.Module):  # type: ignore[misc, name-defined]
    """A model that is refused after it was tried."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(784, 10)
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.inner(x.flatten(1))


def test_a_class_a_module_of_it_and_a_function_are_trained_and_stay_as_they_were(tmp_path: Path) -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_class, by_module = (
        fit(each, tiny_arrays(), run_dir=tmp_path / name, **BRIEF) for each, name in ((Net, "a"), (model, "b"))
    )
    by_function = fit(build, tiny_arrays(), run_dir=tmp_path / "c", **BRIEF)
    assert by_class.weights_sha256 == by_module.weights_sha256 != by_function.weights_sha256
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert (tmp_path / "a" / "model" / "model.py").read_text().count("WIDTH = 12") == 1


def test_the_runs_model_is_pytorchs_with_the_trained_weights(tmp_path: Path) -> None:
    run = fit(Net, tiny_arrays(), run_dir=tmp_path / "run", **BRIEF)
    images, labels = tiny_arrays()[1]
    assert isinstance(run.model, nn.Module)
    assert not run.model.training
    with torch.no_grad():
        scores = run.model(torch.from_numpy((images[:, np.newaxis] / 255).astype(np.float32)))
    assert float(np.mean(scores.numpy().argmax(axis=1) == labels)) == run.test_accuracy
    assert int(run.model.body[2].num_batches_tracked) == run.result.steps
    assert run.model.again.weight is run.model.middle.weight
    arrays, _ = read(run.folder / "weights.safetensors")
    state = run.model.state_dict()
    assert set(arrays) == set(state) - {"again.weight", "body.2.num_batches_tracked"}
    plain = Net()
    missing = plain.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    assert missing.unexpected_keys == []
    with torch.no_grad():
        assert torch.equal(plain.eval()(torch.ones(2, 1, 28, 28)), run.model(torch.ones(2, 1, 28, 28)))
    assert load_run(run.folder).model.head.bias.tolist() == state["head.bias"].tolist()


def test_a_run_starts_from_a_models_own_weights_or_from_a_state_dict(tmp_path: Path) -> None:
    first = fit(Net, tiny_arrays(), run_dir=tmp_path / "first", **BRIEF)
    state = {name: tensor.numpy() for name, tensor in first.model.state_dict().items()}
    write(tmp_path / "whole.safetensors", state, {})
    del state["middle.weight"]  # as safetensors writes shared weights: under one of their names
    write(tmp_path / "shared.safetensors", state, {})
    warm = fit(first.model, tiny_arrays(), run_dir=tmp_path / "warm", warm_start=True, **BRIEF)
    digests = {warm.weights_sha256}
    for name in ("whole", "shared", "first/weights"):
        initial = str(tmp_path / f"{name}.safetensors")
        digests.add(
            fit(Net, tiny_arrays(), run_dir=tmp_path / f"from {name[:5]}", initial=initial, **BRIEF).weights_sha256
        )
    assert len(digests) == 1
    assert first.weights_sha256 not in digests
    write(tmp_path / "odd.safetensors", {**state, "surplus": np.ones(1, np.float32)}, {})
    with pytest.raises(ModelError, match="do not fit the model: unexpected: 'surplus': expected all"):
        fit(Net, tiny_arrays(), run_dir=tmp_path / "odd", initial=str(tmp_path / "odd.safetensors"), **BRIEF)


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_rng_state().tolist(),
    )


@pytest.fixture
def _own_settings() -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(before[0])
    torch.set_deterministic_debug_mode(before[1])


@pytest.mark.usefixtures("_own_settings")
def test_pytorch_has_its_settings_back_afterwards(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    torch.set_deterministic_debug_mode("default")
    before = settings()
    run = fit(Net, tiny_arrays(), run_dir=tmp_path / "run", **{**BRIEF, "epochs": 1})
    assert settings() == before
    with pytest.raises(ModelError):
        fit(Counting, tiny_arrays(), run_dir=tmp_path / "odd", **BRIEF)
    assert settings() == before
    find_lr(Net, write_tiny(tmp_path), steps=30, **{name: BRIEF[name] for name in ("global_batch", "micro_batches")})
    assert settings() == before
    assert resume(run.folder, verbose=False).weights_sha256 == run.weights_sha256
    assert settings() == before


def test_callbacks_see_the_model_between_epochs(tmp_path: Path) -> None:
    seen: list[int] = []
    callback = LambdaCallback(
        on_epoch_end=lambda training, epoch: seen.append(int(training.model().body[2].num_batches_tracked))
    )
    run = fit(Net, tiny_arrays(), run_dir=tmp_path / "run", callbacks=[callback], **BRIEF)
    assert seen == [run.result.steps // 2, run.result.steps]


def test_the_weights_may_be_evaluated_and_exported_and_the_run_verified_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tiny(tmp_path)
    run = fit(Net, data, run_dir=tmp_path / "run", **BRIEF)
    right, judged = assess(open_trained(run.folder)).tally.metrics
    assert right / judged == run.test_accuracy
    folder = str(run.folder)
    for arguments in (
        ["evaluate", folder],
        ["verify", folder],
        ["replay", folder, "--step", "1", "--micro-batch", "2"],
        ["export", folder, str(tmp_path / "weights.npz")],
    ):
        assert run_command(arguments) == 0, arguments
    shown = capsys.readouterr().out
    assert "BatchNorm1d" in shown
    assert "body.1.weight" in shown or "784" in shown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["export", "RUN", "OUT.onnx"], "the model is one of PyTorch, which exports it itself: call torch.onnx.export"),
    ],
)
def test_what_cannot_be_says_so_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    folder = fit(Net, write_tiny(tmp_path), run_dir=tmp_path / "run", **{**BRIEF, "epochs": 1}).folder
    given = [each.replace("RUN", str(folder)).replace("OUT", str(tmp_path / "out")) for each in arguments]
    assert run_command(given) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(nn.Flatten(), Gated(784)), r"Sequential is a class of PyTorch, and what it was built with"),
        (hooked(), r"hooks' is 1 in the model and 0 in a new one: expected a model that Net\(\) builds"),
        (tied(), "Sequential is a class of PyTorch, and what it was built with"),
        (nn.Linear, "the Linear is a class of PyTorch"),
        (Net(8), r"is of shape .* in a new one: expected a model that Net\(\) builds, or one that keeps its arguments"),
        (frozen(Headed(3), "body"), r"^'head.bias' is of shape \(3,\) in .*: add `self.classes = classes` to Headed\."),
        (torch.zeros(3), "expected a Module, its class, or a function"),
    ],
    ids=["container", "hook", "tied", "class", "arguments", "frozen", "tensor"],
)
def test_what_cannot_be_sent_is_named(model: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        fit(model, tiny_arrays(), **BRIEF)


def test_a_model_that_is_bound_elsewhere_still_has_its_own_values() -> None:
    model = torch_model(Net())
    first = model.first_weights(0)
    engine = model.engine(Objective())
    engine.bind([model.layout.new_vector()], [model.layout.new_vector()])
    engine.evaluate(np.ones((2, 1, 28, 28), np.float32), np.zeros(2, np.int64))
    assert model.first_weights(0).tobytes() == first.tobytes()
    assert model.module.head.weight.abs().sum() > 0
