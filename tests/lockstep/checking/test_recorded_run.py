"""Recorded runs: two receipts are compared, and a micro-batch is computed again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.checking.recorded_run import (
    LayerReplay,
    MicroBatchReplay,
    figures_of,
    open_again,
    read_run,
    replay,
)
from lockstep.cli.main import run
from lockstep.common import nn
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import Applied
from lockstep.common.autograd.primitives.elementwise import add, multiply, negate
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.source import load
from lockstep.common.nn.description import describe
from lockstep.common.nn.inspection import Inspector, _is_finite
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.ps.records.ledger import StepDone
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.compute import Compute
from tests.lockstep.recorded import job_in, record_alone
from tests.simulation.small import noisy_net

HERE = fingerprint()


#: Models in which the first number that is not finite arises somewhere else, as files.
MODELS = {
    "log": (
        "class Odd(nn.Module):\n    def forward(self, x):\n        return (x - 9e9).log() if x.shape[0] > 2 else x\n",
        "layer 1 (Odd), in operation log, forward",
    ),
    "backward": (
        "class Odd(nn.Module):\n    def forward(self, x):\n        return (x * 0.0).sqrt() + x\n",
        "the gradient of 0.scores.bias, in operation sqrt, backward",
    ),
}


BUILD = """

class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)

    def forward(self, x):
        return self.scores(x.reshape(x.shape[0], 784))


def build():
    return nn.Sequential(Scores(), Odd())
"""


def replayed(capsys: pytest.CaptureFixture[str], folder: Path, step: int, micro_batch: int) -> dict[str, Any]:
    place = ("--step", str(step), "--micro-batch", str(micro_batch))
    assert run(["replay", str(folder), *place, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("step", "micro_batch"), [(0, 0), (2, 1), (5, 2), (6, 0)])
def test_it_is_the_runs_own_micro_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, micro_batch: int
) -> None:
    job = job_in(tmp_path, model=noisy_net(), micro_batches=3, max_shift=1, label_smoothing=0.1)
    folder = record_alone(tmp_path, job)
    found = replayed(capsys, folder, step, micro_batch)
    past = read_run(folder)
    recorded = past.steps()[step].loss_sums()[micro_batch]
    assert np.float32(found["loss_sum"]) == np.float32(found["recorded_loss_sum"]) == recorded
    compute = Compute(job, open_again(past, allows_mixed_numerics=False).model, load(job.data))
    assert found["samples"] == compute.batches.sampler.indices(step, micro_batch).tolist()
    assert found["labels"] == load(job.data).train.labels[found["samples"]].tolist()
    assert [layer["kind"] for layer in found["layers"]][:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert set(found["layers"][0]["gradients"]) == {"0.weight", "0.bias"}
    assert found["first_nonfinite"] is None


def test_a_local_step_begins_where_those_before_it_lead_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_in(tmp_path, model=noisy_net(), micro_batches=3, local_steps=4, nesterov=True, max_shift=1)
    folder = record_alone(tmp_path, job)
    place = ("--step", "5", "--micro-batch", "2", "--json")
    losses = []
    for local_step in range(4):
        assert run(["replay", str(folder), *place, "--local-step", str(local_step)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["local_step"], found["recorded_loss_sum"]) == (local_step, None)
        losses.append(found["loss_sum"])
    assert np.float32(sum(losses)) == read_run(folder).steps()[5].loss_sums()[2]
    assert run(["replay", str(folder), *place, "--local-step", "4"]) == 2
    assert "--local-step 4: expected 0 to 3" in capsys.readouterr().err
    assert run(["replay", str(folder), "--step", "1", "--micro-batch", "0"]) == 0
    assert "local step 0 of run" in capsys.readouterr().out


SIDES = """from lockstep import nn


class Sides(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


def build():
    return Sides()
"""


def test_several_inputs_have_figures_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    left, right = rng.random((12, 4), np.float32), rng.random((12, 3), np.float32)
    arrays = {"left": left, "right": right}
    parts = {f"x_{part}.{name}": array for part in ("train", "test") for name, array in arrays.items()}
    labels = {f"y_{part}": np.arange(12) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "sides.npz", allow_pickle=False, **parts, **labels)
    (tmp_path / "sides.py").write_text(SIDES)
    data, model = str(tmp_path / "sides.npz"), f"{tmp_path / 'sides.py'}:build"
    job = job_in(tmp_path, model=model, data=data, normalize=False, global_batch=6, micro_batches=2)
    folder = record_alone(tmp_path, job)
    found = replayed(capsys, folder, 1, 1)
    samples = found["samples"]
    for name, array in arrays.items():
        figures = figures_of(array[samples])
        assert found["inputs"][name]["shape"] == list(figures.shape)
        assert found["inputs"][name]["norm"] == pytest.approx(figures.norm)
    assert found["loss_sum"] == found["recorded_loss_sum"]
    assert run(["replay", str(folder), "--step", "1", "--micro-batch", "1"]) == 0
    shown = capsys.readouterr().out
    assert "left (3, 4), norm" in shown
    assert "right (3, 3), norm" in shown


def test_every_figure_is_that_of_the_array_in_its_place(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 10))
    job = job_in(tmp_path, model=dict(describe(net)), max_shift=1)
    recorded = read_run(record_alone(tmp_path, job))
    found = replay(recorded, open_again(recorded, allows_mixed_numerics=False), 1, 2)
    # The same by hand: a step, then the micro-batch with the model alone.
    trainer = SingleProcessTrainer(open_again(recorded, allows_mixed_numerics=False))
    trainer.step(0)
    compute, alone = trainer.compute, open_again(recorded, allows_mixed_numerics=False).model
    alone.load(trainer.setup.shard.weights)
    model = alone.module.train()
    indices = compute.batches.sampler.indices(1, 2)
    images, targets = compute.batches.training(indices, 1, 2)
    model.zero_grad()
    model.reseed(job.seed, 1, 2)
    arrays = [Tensor(images)]
    for layer in model.children():
        arrays.append(layer(arrays[-1]))
    loss = F.cross_entropy(arrays[-1], targets, reduction="sum")
    loss.backward()
    figures = [figures_of(array.data) for array in (*arrays[1:], arrays[-1])]
    gradients = {name: figures_of(parameter.grad) for name, parameter in model.named_parameters()}
    kinds = {"0": "Flatten", "1": "Linear", "2": "ReLU", "3": "Dropout", "4": "Linear", "": "Sequential"}
    assert found == MicroBatchReplay(
        run="run",
        step=1,
        micro_batch=2,
        samples=indices.tolist(),
        labels=targets.tolist(),
        inputs=figures_of(images),
        inputs_sha256=hashlib.sha256(images.tobytes()).hexdigest(),
        loss_sum=float(loss.data),
        recorded_loss_sum=float(loss.data),
        correct=int((arrays[-1].data.argmax(axis=1) == targets).sum()),
        targets=12,
        layers=[
            LayerReplay(
                name=name,
                kind=kind,
                output=output,
                gradients={key: figures for key, figures in gradients.items() if name and key.startswith(f"{name}.")},
            )
            for (name, kind), output in zip(kinds.items(), figures, strict=True)
        ],
        first_nonfinite=None,
    )


NAN, ONE = np.full(2, np.nan, np.float32), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("layer", "operation", "gradients", "place"),
    [
        ("layer 1 (Odd)", "log, forward", {"a": NAN}, "layer 1 (Odd), in operation log, forward"),
        ("layer 1 (Odd)", "", {}, "layer 1 (Odd), in operation unknown"),
        ("", "exp, forward", {"a": NAN}, "the loss, in operation exp, forward"),
        ("", "sqrt, backward", {"a": NAN, "b": NAN, "c": ONE}, "the gradient of b, in operation sqrt, backward"),
        ("", "", {"a": NAN, "b": ONE}, "the gradient of a, in operation unknown"),
        ("", "sqrt, backward", {"a": ONE}, "operation sqrt, backward"),
        ("", "", {"a": ONE}, None),
    ],
)
def test_the_first_of_layer_loss_and_gradients_is_named(
    layer: str, operation: str, gradients: dict[str, Any], place: str | None
) -> None:
    inspector = Inspector()
    inspector.layer, inspector.operation = layer, operation
    assert inspector.first_nonfinite(gradients) == place


def test_the_first_operation_and_the_first_layer_with_such_a_result_are_kept() -> None:
    inspector = Inspector()
    inspector.on_layer("0", nn.ReLU(), (NAN, "no tensor"))
    inspector.on_layer("1", nn.ReLU(), Tensor(ONE))
    assert (inspector.layer, inspector.operation) == ("", "")
    inspector.on_layer("", nn.Tanh(), Tensor(NAN))
    inspector.on_layer("2", nn.ReLU(), Tensor(NAN))
    assert inspector.layer == "the model (Tanh)"
    assert [(name, kind) for name, kind, _ in inspector.outputs] == [("1", "ReLU"), ("", "Tanh"), ("2", "ReLU")]
    inspector.on_operation(Applied(add, "forward", (ONE, ONE), {}, ONE + ONE))
    assert inspector.operation == ""
    # A derivative may return several arrays, or write one that it was given.
    inspector.on_operation(Applied(add, "backward", (ONE, NAN), {}, (ONE, NAN)))
    assert inspector.operation == "add, backward"
    inspector.operation = ""
    inspector.on_operation(Applied(multiply, "backward", (ONE, ONE), {"out": NAN}, None))
    assert inspector.operation == "multiply, backward"
    inspector.on_operation(Applied(negate, "forward", (NAN,), {}, NAN))
    assert inspector.operation == "multiply, backward"


def test_an_output_is_recorded_as_it_was() -> None:
    inspector, output = Inspector(), Tensor(ONE.copy())
    inspector.on_layer("1", nn.ReLU(), output)
    output.data[:] = 7.0
    assert inspector.outputs[0][2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(ONE, True), (NAN, False), (np.float32(np.inf), False), (np.float64(1), True), (np.arange(3), True), (None, True),
     (np.array(["text"]), True)],
)  # fmt: skip
def test_only_floats_can_be_other_than_finite(value: object, expected: bool) -> None:
    assert _is_finite(value) is expected


def test_the_norms_are_those_of_the_arrays() -> None:
    found = figures_of(np.array([[3.0, np.nan], [-4.0, np.inf]], np.float32))
    assert (found.shape, found.norm, found.largest, found.nonfinite) == ((2, 2), 5.0, 4.0, 2)
    small, empty = figures_of(np.array([0.25], np.float32)), figures_of(np.empty((0, 3), np.float32))
    assert (small.largest, empty.largest, empty.norm) == (0.25, 0.0, 0.0)


@pytest.mark.parametrize(("source", "place"), MODELS.values(), ids=MODELS)
def test_the_first_nan_is_named_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    job_in(tmp_path)
    (tmp_path / "odd.py").write_text(f"from lockstep import nn\n\n\n{source}{BUILD}")
    flags = ("--model", "odd.py:build", "--data", "tiny.npz", "--global-batch", "48", "--steps", "2", "--workers", "0")
    run(["train", *flags, "--run-dir", "run"])
    capsys.readouterr()
    found = replayed(capsys, tmp_path / "run", 0, 1)
    assert found["first_nonfinite"] == place
    gradients = {layer["name"]: sorted(layer["gradients"]) for layer in found["layers"]}
    assert gradients == {"0.scores": ["0.scores.bias", "0.scores.weight"], "0": [], "1": [], "": []}
    assert run(["replay", "run", "--step", "0", "--micro-batch", "1"]) == 0
    assert capsys.readouterr().out.endswith(f"first number that is not finite: {place}\n")


def test_a_loss_that_overflows_is_looked_into_at_the_step_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job_in(tmp_path)
    flags = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--lr", "1e25", "--workers", "0")
    assert run(["train", *flags, "--run-dir", "run"]) == 1
    failed = capsys.readouterr().err
    steps = [line.step for line in read_run(tmp_path / "run").lines if isinstance(line, StepDone)]
    assert f"the loss of step {len(steps)}, micro-batch 0, is not finite" in failed
    found = replayed(capsys, tmp_path / "run", len(steps), 0)
    layer = failed.partition("first seen in layer ")[2].partition(":")[0]
    assert found["first_nonfinite"].startswith(f"layer {layer}, in operation ")
    assert (found["recorded_loss_sum"], found["loss_sum"]) in ((None, "nan"), (None, "inf"))


def test_a_place_outside_the_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(
        record_alone(tmp_path, job_in(tmp_path, model=dict(describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))))))
    )
    assert run(["replay", folder, "--step", "7", "--micro-batch", "0"]) == 2
    assert capsys.readouterr().err == "error: --step 7: the run has made 7 steps: expected 0 to 6\n"
    assert run(["replay", folder, "--step", "6", "--micro-batch", "4"]) == 2
    assert capsys.readouterr().err == "error: --micro-batch 4: expected 0 to 3, as the job has it\n"
