"""What training leaves as it is, in models of ours and of PyTorch, and the weights that a run begins with.

A frozen parameter is in no vector, so that no sum, update, optimizer or message can have it; it is in all files.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lockstep import LambdaCallback, fit, load_run, resume
from lockstep.cli.main import run as run_command
from lockstep.common import nn
from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.errors import FileFormatError, JobError, ModelError
from lockstep.common.files.safetensors import read, write
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.initial import read_weights
from lockstep.common.model.port import DrawKey
from lockstep.common.model.source import open_model, read_model_source
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.numerics import kept_numerics, use_numerics
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.trained_model import open_trained
from lockstep.worker.setup import gather as gather_material
from tests.lockstep.tiny_data import tiny_arrays, write_tiny
from tests.simulation.small import digits, job_of

#: A model of ours with a frozen layer, and values that its builder has set.
OURS = """
import numpy as np
from lockstep import nn

def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    for parameter in model[1].parameters():
        parameter.requires_grad = False
    model[3].weight.data[...] = np.eye(12)
    return model
"""

#: The same frozen layer in PyTorch, with a constant and a running statistic.
THEIRS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.body[1].requires_grad_(False)
        self.head = nn.Linear(12, 10)
        self.register_buffer("scale", torch.full((), 0.5))

    def forward(self, x):
        return self.head(self.body(x) * self.scale)

def build():
    return Net()
"""

#: What makes a run short, and every rule of an update meet it.
BRIEF: dict[str, Any] = {
    "epochs": 2,
    "global_batch": 32,
    "micro_batches": 4,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.1,
    "clip_norm": 0.05,
    "verbose": False,
}


@pytest.fixture
def ours(tmp_path: Path) -> str:
    (tmp_path / "ours.py").write_text(OURS)
    return f"{tmp_path}/ours.py:build"


@pytest.fixture
def theirs(tmp_path: Path) -> str:
    pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
    (tmp_path / "theirs.py").write_text(THEIRS)
    return f"{tmp_path}/theirs.py:build"


def opened(**values: Any) -> RunSetup:
    job = job_of(**values)
    with kept_numerics():
        use_numerics(job.numerics)
        return open_run("test", job, digits(), RunOptions())


def test_a_frozen_parameter_of_ours_is_in_no_vector_and_in_every_file(ours: str, tmp_path: Path) -> None:
    first = open_model(ours, 7)
    assert [entry.name for entry in first.layout.parameters] == ["3.weight", "3.bias", "5.weight", "5.bias"]
    run = fit(ours, write_tiny(tmp_path), run_dir=tmp_path / "run", workers=0, seed=7, **BRIEF)
    state, _ = read(tmp_path / "run" / "weights.safetensors")
    checkpoint, _ = read(max((tmp_path / "run" / "checkpoints").iterdir()))
    for each in first.layout.frozen:
        assert each.array.tobytes() == state[each.name].tobytes() == checkpoint[each.name].tobytes()
        assert not any(name.startswith("optimizer/") and name.endswith(f"/{each.name}") for name in checkpoint)
    assert not np.array_equal(state["3.weight"], np.eye(12))
    assert run.model.load_state_dict(state) == ([], [])
    assert run_command(["verify", str(tmp_path / "run")]) == 0
    assert load_run(tmp_path / "run").model[1].weight.data.tobytes() == state["1.weight"].tobytes()


def test_programs_over_several_micro_batches_have_the_bits_of_the_plain_way_with_a_frozen_layer(ours: str) -> None:
    """As many steps as it takes until a program is made; its bits are then compared with those of the module."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((6, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 6)
    module = open_model(ours, 1).module
    model = AutogradModel(module, warm_up=0)
    engine, sums = model.engine(Objective()), np.zeros(model.layout.size, np.float32)
    engine.bind([gather(module, model.layout)], [sums])
    engine.forward(images, labels, DrawKey(0, 0, 0))
    engine.backward(None)
    plain = sums.tobytes()
    at_once = engine.one_pass(1, 6, lambda: [(images, labels)])
    assert at_once is not None
    at_once.images[0], at_once.targets[0] = images, labels
    at_once.forward(lambda: None)
    sums.fill(np.nan)
    at_once.backward(sums, lambda: None, None)
    assert sums.tobytes() == plain


def test_a_frozen_layer_of_pytorch_is_trained_around_as_in_a_plain_loop(theirs: str, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    (x, y), _ = tiny_arrays(64, 20)
    values = {**BRIEF, "clip_norm": None, "epochs": 3, "global_batch": 64, "micro_batches": 1, "normalize": False}
    run = fit(theirs, ((x, y), (x, y)), run_dir=tmp_path / "run", workers=0, **values)
    model = open_model(theirs, 0).module.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    images, labels = torch.from_numpy((x[:, np.newaxis] / 255).astype(np.float32)), torch.from_numpy(y)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    here, there = run.model.state_dict(), model.state_dict()
    for name in ("body.1.weight", "body.1.bias", "scale"):
        assert torch.equal(here[name], before[name])
    for name, tensor in there.items():
        assert torch.allclose(here[name].float(), tensor.float(), atol=1e-5), name


def test_neither_the_wire_nor_the_digests_lose_what_is_frozen(theirs: str, tmp_path: Path) -> None:
    data = write_tiny(tmp_path)
    alone = fit(theirs, data, run_dir=tmp_path / "alone", workers=0, **BRIEF)
    shared = fit(theirs, data, run_dir=tmp_path / "tcp", workers=2, transport="tcp", **BRIEF)
    assert alone.weights_sha256 == shared.weights_sha256
    frozen, trained = 784 * 12 + 12, 12 + 12 + 120 + 10 + 24
    assert alone.result.parameters == trained - 24
    # A step moves the trained values and the statistics, twice here since each of both workers may send its half.
    assert 4 * trained <= shared.result.moved.sums < 4 * (2 * trained + 200) < 4 * frozen
    assert 0 < shared.result.moved.weights < 4 * (2 * trained + 200)
    model = open_model(theirs, 0)
    digest = model.layout.digest()
    assert digest == open_model(theirs, 0).layout.digest() != open_model(theirs, 1).layout.digest()
    model.adopt({"body.1.bias": np.zeros(12, np.float32)})
    assert model.layout.digest() != digest


def test_what_is_written_is_what_load_state_dict_takes(theirs: str, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    run = fit(theirs, write_tiny(tmp_path), run_dir=tmp_path / "run", workers=0, **BRIEF)
    assert run_command(["export", str(run.folder), str(tmp_path / "out.safetensors")]) == 0
    for path in (run.folder / "weights.safetensors", tmp_path / "out.safetensors"):
        arrays, _ = read(path)
        plain = open_model(theirs, 5).module
        plain.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
        for name, tensor in run.model.state_dict().items():
            assert torch.equal(plain.state_dict()[name], tensor) or path.stem == "weights", name
    assert read(tmp_path / "out.safetensors")[0]["body.2.num_batches_tracked"] == run.result.steps


TOGGLES = {
    "frozen later": ("self.head.bias.requires_grad_(False)", "sets requires_grad of 'head.bias' .* is frozen that was"),
    "trained later": ("self.body[1].bias.requires_grad_(True)", r"of 'body\.1\.bias' .* is trained that was frozen"),
}


@pytest.mark.parametrize(("change", "text"), TOGGLES.values(), ids=TOGGLES)
def test_what_a_forward_freezes_or_lets_be_trained_is_refused_by_name(
    tmp_path: Path, theirs: str, change: str, text: str
) -> None:
    source = THEIRS.replace("        return self.head", f"        {change}\n        return self.head")
    (tmp_path / "theirs.py").write_text(source)
    with pytest.raises(ModelError, match=text) as raised:
        opened(model=theirs)
    assert "\n" not in str(raised.value)


class Toggling(nn.Module):
    """Freezes a layer in its forward, or lets it be trained."""

    def __init__(self, *, is_frozen: bool) -> None:
        super().__init__()
        self.is_frozen = is_frozen
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.first.weight.requires_grad = not is_frozen

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.requires_grad = self.is_frozen
        return self.second(self.first(x))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_same_holds_for_a_model_of_ours(is_frozen: bool) -> None:
    model = AutogradModel(Toggling(is_frozen=is_frozen))
    engine, weights = model.engine(Objective()), model.first_weights(0)
    engine.bind([weights], [np.zeros_like(weights)])
    engine.forward(np.ones((2, 4), np.float32), np.zeros(2, np.int64), DrawKey(0, 0, 0))
    with pytest.raises(ModelError, match=r"sets requires_grad of 'first\.weight' in its forward"):
        engine.backward(None)


def test_a_parameter_of_another_type_is_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(np.ones(2))
    with pytest.raises(ModelError, match=r"the parameter 'scale' is float64: expected float32, .*values\.astype"):
        AutogradModel(model)


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(ModelError, match="all parameters of the model are frozen: expected requires_grad=True for"):
        layout_of(model)


def interrupt(training: object, epoch: object) -> None:
    """Stand for a person's Ctrl-C."""
    raise KeyboardInterrupt


def test_the_doctor_does_not_look_for_gradients_of_what_is_frozen(ours: str, capsys: Any) -> None:
    assert run_command(["doctor", "--model", ours, "--lr", "0.05"]) == 0, capsys.readouterr().out


# Initial weights


def test_what_a_builder_sets_is_kept_and_the_rest_is_drawn_from_the_seed(ours: str) -> None:
    one, same, other = opened(model=ours, seed=1), opened(model=ours, seed=1), opened(model=ours, seed=2)
    assert one.shard.digest() == same.shard.digest() != other.shard.digest()
    for setup in (one, other):
        np.testing.assert_array_equal(setup.layout.read(setup.shard.weights)["3.weight"], np.eye(12))
    names = dict(one.model.module.initialize(1).named_parameters())
    np.testing.assert_array_equal(one.layout.read(one.shard.weights)["5.weight"], names["5.weight"].data)


SETTINGS = {
    "in place": ("model[3].weight.data[...] = np.eye(12)", True),
    "a part": ("model[3].weight.data[0] = 0", True),
    "scaled": ("model[3].weight.data *= 0.1", True),
    "loaded": ("model[3].load_state_dict({'weight': np.eye(12), 'bias': np.zeros(12)})", True),
    "replaced": ("model[3].weight = nn.Parameter(np.eye(12, dtype='f4'))", True),
    "nothing": ("pass", False),
    "drawn again by the layer": ("model[3].reset_parameters(np.random.default_rng(3))", False),
    "initialized": ("model.initialize(5)", False),
    "tied": ("model[3].weight = model[5].weight", False),
}


@pytest.mark.parametrize(("line", "is_kept"), SETTINGS.values(), ids=SETTINGS)
def test_what_counts_as_set(tmp_path: Path, line: str, is_kept: bool) -> None:
    layers = "nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)"
    (tmp_path / "net.py").write_text(
        f"import numpy as np\nfrom lockstep import nn\n\ndef build():\n    model = nn.Sequential({layers})\n"
        f"    {line}\n    return model\n"
    )
    source = read_model_source(f"{tmp_path}/net.py:build")
    model = source.build(4)
    assert isinstance(model, AutogradModel)
    built = model.module[3].weight.data.copy()  # type: ignore[index]
    first = model.layout.read(model.first_weights(4))["3.weight"]
    assert np.array_equal(first, built) is is_kept
    assert list(model.own_values) == (["3.weight", "3.bias"] if "load" in line else ["3.weight"]) * is_kept
    source.check_repeated(model, Objective(Job(seed=4)), np.ones((2, 784), np.float32), np.zeros(2, np.int64))


def test_values_that_are_others_each_time_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import numpy as np\nfrom lockstep import nn\n\ndef build():\n    model = nn.Sequential(nn.Flatten(), "
        "nn.Linear(784, 10))\n    model[1].weight.data[...] = np.random.standard_normal((10, 784))\n    return model\n"
    )
    with pytest.raises(ModelError, match=r"other initial values when it is built again: '1\.weight' differs"):
        opened(model=f"{tmp_path}/net.py:build")


def test_a_file_of_torch_is_read_with_or_without_what_is_around_the_state_dict(theirs: str, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    module = open_model(theirs, 9).module
    state = module.state_dict()
    whole = {name: tensor.numpy() for name, tensor in state.items()}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    for saved in (state, {"epoch": 3, "state_dict": wrapped}, {"model_state_dict": state, "optimizer": {"lr": 1}}):
        torch.save(saved, tmp_path / "w.pt")
        found = read_weights(tmp_path / "w.pt")
        assert found.keys() == whole.keys()
        assert all(found[name].tobytes() == whole[name].tobytes() for name in whole)
    setup = opened(numerics="native", model=theirs, initial=str(tmp_path / "w.pt"))
    here = setup.layout.read(setup.shard.weights)
    assert all(here[name].tobytes() == whole[name].tobytes() for name in here)
    torch.save({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "half.pt")
    assert read_weights(tmp_path / "half.pt")["w"].tolist() == [1.0] * 3


def test_a_file_of_torch_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    for name, text in (("module", "torch.load"), ("nothing", "without a state dict")):
        with pytest.raises(FileFormatError, match=text) as raised:
            read_weights(tmp_path / f"{name}.pt")
        assert "\n" not in str(raised.value)
        assert str(raised.value).endswith("expected what torch.save(model.state_dict(), path) writes")


def test_a_part_of_the_weights_is_taken_if_the_job_says_so_and_the_rest_is_reported(ours: str, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    rng = np.random.default_rng(1)
    given = {"1.weight": rng.random((12, 784), np.float32), "5.bias": rng.random(10, np.float32)}
    write(path, {**given, "5.weight": np.ones((3, 12), np.float32), "extra": np.ones(1, np.float32)}, {})
    with pytest.raises(ModelError, match="unexpected: 'extra'; of another shape"):
        opened(model=ours, initial=str(path))
    setup, drawn = opened(model=ours, initial=str(path), initial_partial=True), opened(model=ours)
    here, there = (each.layout.read(each.shard.weights) for each in (setup, drawn))
    assert {name for name in here if here[name].tobytes() != there[name].tobytes()} == {"1.weight", "5.bias"}
    assert all(here[name].tobytes() == array.tobytes() for name, array in given.items())
    assert setup.notices[0] == (
        f"takes 2 arrays of {str(path)!r}, and leaves the rest: missing: '3.weight', '3.bias', '1.bias'; unexpected: "
        "'extra'; of another shape: '5.weight' ((3, 12), not (10, 12))"
    )
    assert setup.notices[1] == "trains 286 of 9,706 parameters: the others are frozen"
    write(path, {"extra": np.ones(1, np.float32)}, {})
    with pytest.raises(ModelError, match="have nothing that the model has"):
        opened(model=ours, initial=str(path), initial_partial=True)
    with pytest.raises(JobError, match="initial_partial = true without initial"):
        fit(ours, tiny_arrays(), run_dir=tmp_path / "run", initial_partial=True, **BRIEF)


def test_a_worker_reads_what_is_frozen_from_the_same_file_or_says_what_to_do(ours: str, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    write(path, {"1.weight": np.ones((12, 784), np.float32)}, {})
    setup = opened(model=ours, initial=str(path), initial_partial=True)
    welcome = setup.info.welcome(0)
    model = gather_material(welcome, lambda name: digits()).model
    assert model.layout.digest() == setup.layout.digest()
    write(path, {"1.weight": np.zeros((12, 784), np.float32)}, {})
    for text in ("other frozen values here", r"cannot be read .*: copy the server's file to this machine"):
        with pytest.raises(ModelError, match=text):
            gather_material(welcome, lambda name: digits())
        path.unlink(missing_ok=True)
    unlike = msgspec.structs.replace(welcome, job=msgspec.structs.replace(welcome.job, initial=None, seed=99))
    with pytest.raises(ModelError, match="or other values of frozen ones"):
        gather_material(unlike, lambda name: digits())


def test_a_run_with_frozen_values_of_a_file_goes_on_after_an_interrupt(theirs: str, tmp_path: Path) -> None:
    data, path = write_tiny(tmp_path), tmp_path / "w.safetensors"
    frozen = {"body.1.weight": np.full((12, 784), 0.01, np.float32), "scale": np.array(0.25, np.float32)}
    write(path, frozen, {})
    values = {**BRIEF, "initial": str(path), "initial_partial": True, "checkpoint_every_steps": 1, "workers": 0}
    whole = fit(theirs, data, run_dir=tmp_path / "whole", **values)
    with pytest.raises(KeyboardInterrupt):
        fit(theirs, data, run_dir=tmp_path / "cut", callbacks=[LambdaCallback(on_epoch_end=interrupt)], **values)
    path.unlink()  # the run has what it needs
    assert resume(tmp_path / "cut", verbose=False).weights_sha256 == whole.weights_sha256
    kept = open_trained(tmp_path / "cut").arrays()
    assert all(kept[name].tobytes() == array.tobytes() for name, array in frozen.items())
    assert run_command(["verify", str(tmp_path / "cut")]) == 0
