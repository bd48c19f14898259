"""Gradients by PyTorch are those that PyTorch alone computes, and so is the training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import JobError, ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import DrawKey, Engine, Model
from lockstep.common.model.source import open_model
from lockstep.common.optim.rules import SGDRule, SlotSets
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import check_gaps, open_run
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError
from tests.lockstep.common.model.pytorch.jobs import NAMES, NETS, batch, model_file, model_of, torch_job
from tests.simulation.small import digits, job_of

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

from lockstep.common.model.pytorch.engine import TORCH, apply  # needs PyTorch too
from lockstep.common.model.pytorch.places import AUDITED

torch: Any = pytest.importorskip("torch")

KEY = DrawKey(3, 1, 2)


def bound(model: Model, objective: Objective | None = None) -> tuple[Engine, Vector, Vector]:
    """Return an engine with the first weights, and vectors of weights and sums."""
    engine, weights = model.engine(objective or Objective()), model.first_weights(3)
    sums = model.layout.new_vector()
    sums.fill(np.nan)
    engine.bind([weights], [sums])
    return engine, weights, sums


def test_arrays_that_are_read_only_are_copied() -> None:
    # As data that is mapped is: what a model writes into its input must not reach it.
    room = np.zeros(128, np.uint8)
    # Where PyTorch's kernels need no copy.
    array = room[-room.ctypes.data % 64 :][:12].view(np.float32)
    assert TORCH.constant(array).data_ptr() == array.ctypes.data
    array.flags.writeable = False
    for given in (TORCH.constant(array), apply(torch.nn.Identity(), array)):
        assert (given.add_(1).numpy().tolist(), array.tolist()) == ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_pytorch_alone(name: str) -> None:
    model = open_model(f"{NETS}:{name}", 3)
    images, labels = batch()
    engine, _, sums = bound(model)
    loss, outputs, _ = engine.forward(images, labels, KEY)
    logits = outputs.copy()
    engine.backward(None)

    alone = open_model(f"{NETS}:{name}", 3).module.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    # The same numbers for dropout, however they were seeded.
    engine.forward(images, labels, KEY)
    torch.set_rng_state(state)
    for dropout in (layer for layer in alone.modules() if "Dropout" in type(layer).__name__):
        assert dropout.training
    _seed_like(KEY)
    expected = alone(torch.from_numpy(images))
    total = torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels), reduction="sum")
    total.backward()
    assert math.isclose(loss, total.item(), rel_tol=1e-6)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    views = model.layout.read(sums)
    for parameter, tensor in alone.named_parameters():
        most = float(tensor.grad.abs().max()) or 1.0
        np.testing.assert_allclose(views[parameter], tensor.grad.numpy(), rtol=1e-5, atol=1e-5 * most)


def _seed_like(key: DrawKey) -> None:
    from lockstep.common.model.pytorch.runtime import seed_draws

    seed_draws(key)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "gru", "resnet18"])
def test_four_steps_are_those_of_a_plain_loop(name: str) -> None:
    job = torch_job(name, steps=4, global_batch=8, micro_batches=1, lr=0.05, momentum=0.9)
    trainer = SingleProcessTrainer(open_run("run", job, digits(), RunOptions()))
    module = open_model(job.model, job.seed).module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    batches = trainer.compute.batches
    for step in range(4):
        images, targets = batches.training(batches.sampler.indices(step, 0), step, 0)
        _seed_like(DrawKey(job.seed, step, 0))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(targets)).backward()
        optimizer.step()
        trainer.step(step)
    model, weights = trainer.compute.model, trainer.setup.shard.weights
    state = module.state_dict()
    for name, values in model.layout.read(weights).items():
        np.testing.assert_allclose(values, state[name].numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
    model.load(weights, 4)
    if name in ("mlp", "cnn"):
        assert {int(value) for key, value in model.module.state_dict().items() if key.endswith("tracked")} == {4}


TWICE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))

    def forward(self, x):
        return {output}
"""


@pytest.mark.parametrize(
    "output",
    [
        "self.tower(x) + self.tower(x.flip(2) * 3)",
        "self.tower(x) if len(x) == 2 else self.tower(x) + self.tower(x.flip(2) * 3)",
        "torch.utils.checkpoint.checkpoint(self.tower, x, use_reentrant=False)",
        "torch.utils.checkpoint.checkpoint(self.tower, x, use_reentrant=False) + self.tower(x * 2)",
    ],
)
def test_statistics_of_a_layer_that_is_called_twice_are_those_of_pytorch(tmp_path: Path, output: str) -> None:
    text = "import torch.utils.checkpoint\n" + TWICE.format(output=output)
    model, alone = (model_of(tmp_path, text) for _ in range(2))
    engine, weights, sums = bound(model)
    module = alone.module.train()
    for count in (2, 5, 2):
        images, labels = batch(count)
        engine.forward(images, labels, KEY)
        engine.backward(None)
        outputs = module(torch.from_numpy(images))
        torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels), reduction="sum").backward()
        for entry, momentum in zip(model.layout.statistics, (0.1, 0.1), strict=True):
            # As the server updates it.
            entry.view(weights)[...] += momentum * (entry.view(sums) / count - entry.view(weights))
            np.testing.assert_allclose(entry.view(weights), module.state_dict()[entry.name], rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_changed_by_way_of_data_later_on_is_found(tmp_path: Path) -> None:
    text = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)

    def forward(self, x):
        if self.inner.bias.sum() > 50:
            self.inner.weight.data.numpy()[0] += 0.5
        return self.inner(x.flatten(1))
"""
    model = model_of(tmp_path, text)
    engine, weights, _ = bound(model)
    engine.forward(*batch(), KEY)
    engine.backward(None)
    next(each for each in model.layout.parameters if each.name == "inner.bias").view(weights).fill(9.0)
    for _ in range(AUDITED - 1):
        engine.forward(*batch(), KEY)
        engine.backward(None)
    engine.forward(*batch(), KEY)
    with pytest.raises(ModelError, match=r"changes 'inner\.weight' in its forward"):
        engine.backward(None)


def test_a_regression_has_the_sum_of_squares(tmp_path: Path) -> None:
    model = model_of(tmp_path, "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2))\n")
    engine, _, sums = bound(model, Objective(Job(loss="mse")))
    images, _ = batch()
    targets = np.ones((5, 2), np.float32)
    loss, outputs, _ = engine.forward(images, targets, KEY)
    assert math.isclose(loss, float(np.square(outputs - targets).sum()), rel_tol=1e-5)
    expected = 2 * (outputs - targets).sum(axis=0)
    engine.backward(None)
    np.testing.assert_allclose(model.layout.read(sums)["1.bias"], expected, rtol=1e-4)


def test_label_smoothing_is_for_training_alone() -> None:
    model = open_model(f"{NETS}:lenet", 3)
    losses = []
    for smoothing in (0.0, 0.2):
        engine, _, _ = bound(model, Objective(Job(label_smoothing=smoothing)))
        losses.append((engine.forward(*batch(), KEY).loss, engine.evaluate(*batch()).loss))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == losses[1][1]


def test_statistics_are_those_of_the_batch_times_its_samples() -> None:
    model = open_model(f"{NETS}:mlp", 3)
    engine, weights, sums = bound(model)
    images, labels = batch()
    engine.forward(images, labels, KEY)
    views = model.layout.read(sums)
    hidden = images.reshape(5, -1) @ model.layout.read(weights)["1.weight"].T + model.layout.read(weights)["1.bias"]
    np.testing.assert_allclose(views["2.running_mean"] / 5, hidden.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(views["2.running_var"] / 5, hidden.var(axis=0, ddof=1), rtol=1e-4)
    before = weights.tobytes()
    assert engine.evaluate(images, labels).outputs.tobytes() == engine.evaluate(images, labels).outputs.tobytes()
    assert weights.tobytes() == before


UNUSED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(784, 10)
        self.unused = nn.Linear(5, 5)
        self.sleeping = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.used(x.flatten(1))
"""


@pytest.mark.parametrize("is_streaming", [False, True])
def test_what_takes_no_part_gets_no_gradient_and_keeps_its_statistics(tmp_path: Path, is_streaming: bool) -> None:
    model = model_of(tmp_path, UNUSED)
    engine, _, sums = bound(model)
    engine.forward(*batch(), KEY)
    final: list[int] = []
    engine.backward(final.append if is_streaming else None)
    # The first time, it is found out whether a gradient is final when it was added to once.
    assert final == []
    engine.forward(*batch(), KEY)
    engine.backward(final.append if is_streaming else None)
    views = model.layout.read(sums)
    assert views["used.weight"].any()
    assert not views["unused.weight"].any()
    assert views["sleeping.running_var"].tolist() == [5.0] * 5
    assert sorted(final) == ([0, 1] if is_streaming else [])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_reported_one_by_one_have_the_same_bits(name: str) -> None:
    model = open_model(f"{NETS}:{name}", 3)
    engine, _, sums = bound(model)
    bits, final = set(), list[int]()
    for on_final in (None, final.append, None, final.append):
        engine.forward(*batch(), KEY)
        engine.backward(on_final)
        bits.add(sums.tobytes())
    assert len(bits) == 1
    assert sorted(final) == sorted(range(len(model.layout.parameters)))


def test_frames_are_sent_while_backward_is_on_its_way() -> None:
    job = torch_job("lenet", micro_batches=1)
    compute, plain = (Compute(job, open_model(job.model, 3), digits()) for _ in range(2))
    for each in (compute, plain):
        each.weights[:] = 0.01
    sent: list[int] = []
    sums, tally = compute.train(0, Node(0, 1), lambda start, words: sent.append(start))
    assert sums.tobytes() == plain.train(0, Node(0, 1))[0].tobytes()
    assert sorted(sent) == [frame.start for frame in compute.frames]
    assert tally.count == 10


def test_draws_are_keyed_by_step_and_micro_batch_and_leave_no_trace() -> None:
    engine, _, _ = bound(open_model(f"{NETS}:mlp", 3))
    keys = [DrawKey(3, step, m) for step in range(3) for m in range(3)]
    losses = [engine.forward(*batch(), key).loss for key in keys]
    assert len(set(losses)) == 9
    assert [engine.forward(*batch(), key).loss for key in reversed(keys)] == losses[::-1]


def test_a_loss_that_is_not_finite_names_the_layer() -> None:
    job = torch_job("lenet")
    compute = Compute(job, open_model(job.model, 3), digits())
    compute.layout.read(compute.weights)["7.bias"][2] = np.inf
    with pytest.raises(NotFiniteError) as raised:
        compute.train(0, Node(2, 3))
    assert (raised.value.micro_batch, raised.value.layer) == (2, "7 (Linear)")
    with pytest.raises(NotFiniteError) as raised:
        compute.evaluate(Node(0, 1))
    assert raised.value.layer == "7 (Linear)"


def test_a_gradient_that_is_not_finite_names_the_parameter(tmp_path: Path) -> None:
    text = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        self.scale = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.inner(x.flatten(1)) + (self.scale * self.scale).sqrt()
"""
    compute = Compute(torch_job("mlp"), model_of(tmp_path, text), digits())
    with pytest.raises(NotFiniteError) as raised:
        compute.train(0, Node(0, 1))
    assert (raised.value.layer, raised.value.quantity) == ("scale", "gradient")


PLACES = """
class Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *tensors):
        Net.seen.append([each.data_ptr() % 64 for each in (x, *tensors)])
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *[None] * 5


class Net(nn.Module):
    seen = []

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(784, 3), nn.BatchNorm1d(3), nn.Linear(3, 10)
        self.register_buffer("table", torch.frombuffer(bytearray(4 * 5), dtype=torch.float32, offset=4))

    def forward(self, x):
        tensors = self.first.bias, self.norm.weight, self.norm.running_var, self.last.weight, self.table
        return self.last(self.norm(self.first(Recorded.apply(x, *tensors).flatten(1))))
"""


def test_all_that_a_model_computes_with_begins_at_a_line_of_the_cache(tmp_path: Path) -> None:
    model = model_of(tmp_path, PLACES)
    engine, _, _ = bound(model)
    images, labels = batch()
    # NumPy's arrays begin anywhere.
    moved = np.empty(images.size + 1, np.float32)[1:].reshape(images.shape)
    moved[...] = images
    for given in (images, moved):
        engine.forward(given, labels, KEY)
        engine.backward(None)
        engine.evaluate(given, labels)
        model.outputs(given)
    seen = type(model.module).seen
    assert len(seen) == 6
    assert not np.any(seen)


def test_vectors_that_begin_elsewhere_are_not_computed_with() -> None:
    model = open_model(f"{NETS}:mlp", 3)
    vector = np.zeros(model.layout.size + 32, np.float32)
    start = -vector.ctypes.data % 64 // 4 + 1
    with pytest.raises(AssertionError, match="at another alignment"):
        model.engine(Objective()).bind([vector[start:][: model.layout.size]], [model.layout.new_vector()])


@pytest.mark.parametrize("wire", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_what_is_between_parameters_stays_zero(wire: str, optimizer: str) -> None:
    job = torch_job("mlp", optimizer=optimizer, momentum=0.0, wire=wire, wire_weights="bfloat16", clip_norm=0.5)
    setup = open_run("run", job, digits(), RunOptions())
    trainer, layout = SingleProcessTrainer(setup), setup.layout
    for step in range(3):
        trainer.step(step)
    gaps = layout.new_vector()
    for entry in (*layout.parameters, *layout.statistics):
        entry.view(gaps).fill(1.0)
    assert 0 < (gaps == 0).sum() < 64
    for vector in (*setup.shard.slots, *setup.shard.served, *trainer.compute.sums):
        assert not vector[gaps == 0].any()
    for slot in setup.shard.state.values():
        assert not slot[gaps[: layout.parameter_size] == 0].any()


class Drifting(SGDRule):
    """An update that does not follow the gradient alone."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        np.add(weights, 0.0 if step == 0 else np.nan, out=out)


def test_an_optimizer_that_moves_what_is_between_parameters_is_refused() -> None:
    check_gaps(SGDRule(0.9), torch_job("mlp"))
    with pytest.raises(JobError, match=r"optimizer = 'sgd' makes nan of a weight of 0 .*: expected 0"):
        check_gaps(Drifting(), torch_job("mlp"))


LATE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if len(x) == 7:
            {change}
        return self.inner(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("self.count += 1", "count"),
        ("self.count = self.count + 1", "count"),
        ("torch.no_grad()(lambda: self.inner.bias.mul_(0.5))()", "inner.bias"),
        ("self.inner.weight = nn.Parameter(self.inner.weight.detach().clone())", "inner.weight"),
    ],
)
def test_what_changes_only_later_is_found_when_it_does(tmp_path: Path, change: str, name: str) -> None:
    engine, _, _ = bound(model_of(tmp_path, LATE.format(change=change)))
    engine.forward(*batch(), KEY)
    with pytest.raises(ModelError, match=f"the model changes '{name}' in its forward"):
        engine.forward(*batch(7), KEY)
    engine.read_from(0)
    engine.evaluate(*batch())
    with pytest.raises(ModelError, match=f"the model changes '{name}' in its forward"):
        engine.evaluate(*batch(7))


def test_an_inspection_has_every_layer_and_gradient() -> None:
    model = open_model(f"{NETS}:lenet", 3)
    engine, weights, sums = bound(model)
    outcome = engine.forward(*batch(), KEY)
    engine.backward(None)
    seen = engine.inspect(*batch(), KEY)
    assert seen.outcome.loss == outcome.loss
    assert seen.outcome.outputs.tobytes() == outcome.outputs.tobytes() == seen.layers[-1].output.tobytes()
    assert [layer.output.ndim for layer in seen.layers[:3]] == [4, 4, 4]
    assert [layer.kind for layer in seen.layers[:3]] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert seen.layers[-1].name == ""
    views = model.layout.read(sums)
    assert all(array.tobytes() == views[name].tobytes() for name, array in seen.gradients.items())
    assert seen.first_nonfinite is None
    model.layout.read(weights)["11.bias"][-1] = np.inf
    assert engine.inspect(*batch(), KEY).first_nonfinite == "layer 11 (Linear)"


REENTRANT = """
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(784, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def block(self, x):
        return torch.tanh(self.middle(x))

    def forward(self, x):
        x = self.first(x.flatten(1))
        for _ in range(2):
            x = {block}
        return self.last(x)
"""


def test_gradients_of_a_reentrant_checkpoint_are_reported_at_the_end(tmp_path: Path) -> None:
    found = {}
    for block in ("self.block(x)", "checkpoint(self.block, x, use_reentrant=True)"):
        engine, _, sums = bound(model_of(tmp_path, REENTRANT.format(block=block)))
        final: list[int] = []
        for _ in range(2):
            engine.forward(*batch(), KEY)
            engine.backward(final.append)
        found[block] = sums.copy()
        assert (final == []) is ("checkpoint" in block)
        assert engine.inspect(*batch(), KEY).gradients["middle.weight"].any()
    plain, reentrant = found.values()
    np.testing.assert_allclose(plain, reentrant, rtol=1e-5, atol=1e-6)


def test_a_graph_whose_gradients_become_final_later_is_named(tmp_path: Path) -> None:
    block = "checkpoint(self.block, x, use_reentrant=True) if len(x) == 7 else self.block(x)"
    engine, _, _ = bound(model_of(tmp_path, REENTRANT.format(block=block)))
    for _ in range(2):
        engine.forward(*batch(), KEY)
        engine.backward(lambda index: None)
    engine.forward(*batch(7), KEY)
    with pytest.raises(ModelError, match=r"the gradient of 'middle\.\w+' has several parts .* use_reentrant=False"):
        engine.backward(lambda index: None)


HOOKED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        {init}

    def forward(self, x):
        {forward}
        return self.inner(x.flatten(1))
"""

#: A hook of the bias's gradient: what it leaves is what counts.
HOOKS = {
    "changed": "lambda p: (p.grad.mul_(0.5), None)[1]",
    "replaced": "lambda p: setattr(p, 'grad', p.grad * 0.5)",
    "taken away": "lambda p: setattr(p, 'grad', None)",
}


def alone(model: Model, count: int = 5) -> dict[str, Vector]:
    """Return the gradients of a loop without Lockstep with a model's first weights, zeros if there are none."""
    module = model.module.train()
    images, labels = (torch.from_numpy(each) for each in batch(count))
    torch.nn.functional.cross_entropy(module(images), labels, reduction="sum").backward()
    found = {name: (parameter, parameter.grad) for name, parameter in module.named_parameters()}
    return {
        name: np.zeros(tuple(of.shape), np.float32) if grad is None else grad.numpy().copy()
        for name, (of, grad) in found.items()
    }


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_makes_of_a_gradient_counts_as_in_a_plain_loop(
    tmp_path: Path, hook: str, is_streaming: bool
) -> None:
    init = f"self.inner.bias.register_post_accumulate_grad_hook({HOOKS[hook]})"
    text = HOOKED.format(init=init, forward="self.zero_grad()")
    expected = alone(model_of(tmp_path, text))
    model = model_of(tmp_path, text)
    engine, _, sums = bound(model)
    for _ in range(3):
        engine.forward(*batch(), KEY)
        engine.backward((lambda index: None) if is_streaming else None)
        for name, array in model.layout.read(sums).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


TIED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(784, 10), nn.Linear(10, 10), nn.Linear(10, 10)
        self.last.weight = self.middle.weight

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.last(self.middle(x) if len(x) == 5 else x) + x
"""


@pytest.mark.parametrize("is_streaming", [False, True])
def test_weights_with_two_names_get_one_gradient_each_time(tmp_path: Path, is_streaming: bool) -> None:
    model = model_of(tmp_path, TIED)
    engine, _, sums = bound(model)
    for count in (5, 7, 5):
        # Of seven samples, `middle.bias` takes no part: what it got before must not stay.
        engine.forward(*batch(count), KEY)
        engine.backward((lambda index: None) if is_streaming else None)
        views = model.layout.read(sums)
        for name, expected in alone(model_of(tmp_path, TIED), count).items():
            np.testing.assert_array_equal(views[name], expected, err_msg=name)
        assert bool(views["middle.bias"].any()) is (count == 5)


def test_sums_have_no_negative_zero(tmp_path: Path) -> None:
    text = HOOKED.format(init="self.inner.weight.register_hook(lambda g: -0.0 * g.abs())", forward="pass")
    assert np.signbit(alone(model_of(tmp_path, text))["inner.weight"]).any()
    model = model_of(tmp_path, text)
    engine, _, sums = bound(model)
    engine.forward(*batch(), KEY)
    engine.backward(None)
    assert not model.layout.read(sums)["inner.weight"].any()
    assert not np.signbit(model.layout.read(sums)["inner.weight"]).any()


SPECTRAL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = {norm}(nn.Linear(784, 10))

    def forward(self, x):
        return self.inner(x.flatten(1))
"""


@pytest.mark.parametrize("norm", ["nn.utils.parametrizations.spectral_norm", "nn.utils.spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_what_a_spectral_norm_moves_goes_on_from_step_to_step(tmp_path: Path, norm: str) -> None:
    text = SPECTRAL.format(norm=norm)
    job = job_of(
        numerics="native", model=model_file(tmp_path, text), steps=3, global_batch=10, micro_batches=1, momentum=0.9
    )
    setup = open_run("run", job, digits(), RunOptions())
    assert len(setup.layout.statistics) == 2
    trainer = SingleProcessTrainer(setup)
    plain = model_of(tmp_path, text).module.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=setup.info.job.lr, momentum=0.9)
    for step in range(3):
        images, labels = trainer.compute.batches.training(trainer.compute.batches.sampler.indices(step, 0), step, 0)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimizer.step()
        trainer.step(step)
    state = plain.state_dict()
    for name, array in setup.layout.read(setup.shard.weights).items():
        np.testing.assert_allclose(array, state[name].numpy(), rtol=1e-4, atol=1e-6)


SPARSE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(30, 10, sparse={sparse})

    def forward(self, x):
        return self.token(x[:, 0].argmax(dim=2)).mean(dim=1)
"""


def test_a_sparse_gradient_is_that_of_a_dense_one(tmp_path: Path) -> None:
    found = set()
    for sparse in (False, True):
        engine, _, sums = bound(model_of(tmp_path, SPARSE.format(sparse=sparse)))
        engine.forward(*batch(), KEY)
        engine.backward(None)
        found.add((sums + 0.0).tobytes())
        assert engine.inspect(*batch(), KEY).gradients["token.weight"].shape == (30, 10)
    assert len(found) == 1
