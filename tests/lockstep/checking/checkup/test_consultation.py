"""Each mistake is planted into a healthy net and named; what is healthy gives no alarm."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import doctor, nn
from lockstep.checking.checkup.consultation import Examination, _label_findings, is_tried
from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from tests.lockstep.checking.checkup import plants
from tests.lockstep.tiny_data import tiny_arrays, write_tiny

#: A job that suits the small dataset.
BRIEF: dict[str, Any] = {"epochs": 40, "global_batch": 32, "micro_batches": 4}

#: Planted mistake -> model, what else is said in the call, kind of the finding, and what its text says.
MODELS: dict[str, tuple[nn.Module, dict[str, Any], str, str]] = {
    "tanh with relu's derivative": (
        plants.tanh_with_derivative(lambda g, y, x: g * (x > 0)),
        {},
        "gradient",
        r"the gradient of 2 \(Elementwise\) is wrong.*it computes tanh, and its derivative is that of relu",
    ),
    "tanh's derivative of its input": (
        plants.tanh_with_derivative(lambda g, y, x: g * (1 - x * x)),
        {},
        "gradient",
        "1 - x², of its input x, where tanh needs 1 - y², of its output y",
    ),
    "tanh's derivative with the wrong sign": (
        plants.tanh_with_derivative(lambda g, y, x: -g * (1 - y * y)),
        {},
        "gradient",
        "its gradient has the wrong sign",
    ),
    "a derivative that ignores what comes from above": (
        plants.tanh_with_derivative(lambda g, y, x: 1 - y * y),
        {},
        "gradient",
        "its derivative is that of tanh|is not that of its forward",
    ),
    "weights' gradient divided by the samples": (
        plants.own_linear(lambda g, x: g.T @ x / len(x), lambda g: g.sum(axis=0)),
        {},
        "gradient",
        r"3 \(OwnLinear\) is wrong.*of weight .*4 times too small, the number of samples",
    ),
    "bias's gradient of one sample": (
        plants.own_linear(lambda g, x: g.T @ x, lambda g: g[0]),
        {},
        "gradient",
        "of bias the output.*is not that of its forward",
    ),
    "weights' gradient of another shape": (
        plants.own_linear(lambda g, x: g.T @ x[:, :5], lambda g: g.sum(axis=0)),
        {},
        "gradient",
        "backward raised RuntimeError: the gradient of argument 1 of 'own' has shape",
    ),
    "a layer that leaves the graph": (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 32), plants.LeavesTheGraph(), nn.Linear(32, 10)),
        {},
        "gradient",
        r"2 \(LeavesTheGraph\).*no gradient arrives at its input: the forward leaves the graph.*",
    ),
    "breadth-first": (plants.net(nn.ReLU()), {"walk": plants.breadth_first}, "walk", "breadth-first or depth-first"),
    "visited twice": (plants.net(nn.ReLU()), {"walk": plants.visited_twice}, "walk", "is visited twice, and passes on"),
    "a walk that raises": (plants.net(nn.ReLU()), {"walk": plants.raising}, "walk", "gives KeyError: 'no gradient"),
    "Kaiming with one value": (
        plants.with_weights(plants.one_number),
        {},
        "equal-weights",
        r"all weights of 1 \(Linear\) are equal.*'1.weight' is 0.03536.*deviation 0.0505 = sqrt\(2 / 784\)",
    ),
    "zeros": (
        plants.with_weights(lambda weight: weight.fill(0)),
        {},
        "equal-weights",
        r"each of the 25,088 values of '1.weight' is zero.*nothing was drawn",
    ),
    "one row for all units": (
        plants.with_weights(plants.one_row),
        {},
        "equal-weights",
        "all units of 1.*the 32 rows of '1.weight' are equal",
    ),
    "NaN": (
        plants.with_weights(lambda weight: weight.fill(np.nan)),
        {},
        "not-finite",
        r"the weights of 1 \(Linear\) are not finite",
    ),
    "dead ReLUs": (plants.dead(), {}, "dead-relu", r"32 of 32 ReLUs of 2 \(ReLU\) are dead.*all of 32 training"),
    "saturated tanh": (
        plants.with_weights(lambda weight: np.multiply(weight, 30, out=weight), plants.net(nn.Tanh())),
        {},
        "saturated",
        r"of 2 \(Tanh\) are saturated.*near -1 or 1",
    ),
    "saturated sigmoid": (
        plants.with_weights(lambda weight: np.multiply(weight, 90, out=weight), plants.net(nn.Sigmoid())),
        {},
        "saturated",
        r"of 2 \(Sigmoid\) are saturated.*near 0 or 1",
    ),
    "vanishing gradients": (plants.deep(nn.Sigmoid, 10, 1.0), {}, "vanishing", "'1.weight' is .* times smaller than"),
    "exploding gradients": (
        plants.deep(nn.Identity, 6, 8.0),
        {},
        "exploding",
        "the activations explode: at .* times the input",
    ),
    "a first loss that is no guess": (
        plants.with_weights(lambda weight: np.multiply(weight, 12, out=weight)),
        {},
        "first-loss",
        r"the loss starts at .* and not near log\(10\) = 2.30",
    ),
    "softmax twice": (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax()),
        {},
        "softmax-twice",
        "ends in softmax, which the loss applies once more",
    ),
    "rate": (
        plants.net(nn.ReLU()),
        {"lr": 30.0},
        "rate",
        "too large: lr = 30.*momentum 0.9 adds.*with 0.3 it went from",
    ),
    "a rate beyond all numbers": (plants.net(nn.ReLU()), {"lr": 1e30}, "rate", "look for another mistake first"),
}


def said(examination: Examination) -> str:
    return " ".join(map(str, examination.findings))


@pytest.mark.parametrize(("model", "call", "kind", "text"), MODELS.values(), ids=MODELS)
def test_a_planted_mistake_is_named(model: nn.Module, call: dict[str, Any], kind: str, text: str) -> None:
    found = doctor(model, tiny_arrays(), **{**BRIEF, **call})
    assert kind in found.kinds, found
    named = " ".join(str(finding) for finding in found.findings if finding.kind == kind)
    assert re.search(text, named), named


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        *(({"loss": "cross-entropy"}, True), ({"loss": "nll"}, True), ({"loss": "mse"}, True)),
        *(({"loss": "l1"}, False), ({"loss": "smooth-l1"}, False), ({"ignore_index": 0}, False)),
        *(({"class_weights": (1.0, 2.0)}, False), ({"loss": "bce"}, False)),
    ],
)
def test_jobs_are_tried_if_it_is_known_what_guessing_costs(values: dict[str, Any], expected: bool) -> None:
    assert is_tried(Job(**values)) is expected


def test_what_the_doctor_does_not_know_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (x_train, y_train), (x_test, y_test) = tiny_arrays()
    plain = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    weights: dict[str, Any] = {**plain, "w_train": np.ones(len(y_train)), "w_test": np.ones(len(y_test))}
    several: dict[str, Any] = {
        f"{name}.{field}" if name[0] == "x" else name: array for name, array in plain.items() for field in "ab"
    }
    text = r"knows samples and labels of one array each, and not several inputs or targets, or weights of .*--steps 1"
    for number, arrays in enumerate((weights, several)):
        np.savez(tmp_path / f"{number}.npz", **arrays)
        with pytest.raises(ModelError, match=text):
            doctor(plants.net(nn.ReLU()), tmp_path / f"{number}.npz", **BRIEF)
    with pytest.raises(
        ModelError, match="knows losses of classes and of numbers, and not loss = 'bce': train one step"
    ):
        doctor(plants.net(nn.ReLU()), tiny_arrays(), **BRIEF, loss="bce")


def test_labels_of_a_file_are_looked_at_before_they_are_refused(tmp_path: Path) -> None:
    (x_train, _), (x_test, y_test) = tiny_arrays()
    arrays: dict[str, Any] = {
        "x_train": x_train,
        "y_train": np.full(len(x_train), -1),
        "x_test": x_test,
        "y_test": y_test,
    }
    np.savez(tmp_path / "some.npz", **arrays)
    for name, loss, count in (("some.npz", "cross-entropy", 1), ("some.npz", "mse", 0), ("none.npz", "nll", 0)):
        assert len(_label_findings(Job(loss=loss), str(tmp_path / name))) == count
    tokens = np.arange(12).reshape(3, 4)
    for samples, labels, count in ((tokens, tokens, 0), (tokens * 1.0, tokens, 1), (tokens, tokens[:, :2], 1)):
        np.savez(tmp_path / "text.npz", x_train=samples, y_train=labels, x_test=samples, y_test=labels)
        assert len(_label_findings(Job(), str(tmp_path / "text.npz"))) == count


Change = dict[str, Any]

#: Planted mistake in the data -> what replaces an array of the healthy one, the rest of the call, kind, text.
DATA: dict[str, tuple[Change, dict[str, Any], str, str]] = {
    "labels from 1": ({"y_train": 1, "y_test": 1}, {}, "labels", "1 to 10, .* has 10 outputs.*from 1; pass labels - 1"),
    "labels beyond": ({"y_train": 5}, {}, "labels", "out of range: 0 to 14.*the model was made for 10 classes"),
    "labels below": ({"y_train": -1}, {}, "labels", "a training label is out of range: label -1 at index 0"),
    "real labels": ({"y_test": 0.5}, {}, "labels", "the test labels are not whole numbers: their dtype is 'float64'"),
    "one-hot": ({"y_train": np.eye(10)[np.arange(160) % 10]}, {}, "labels", r"rows and not numbers.*argmax\(axis=1\)"),
    "fewer classes": (
        {"y_train": np.arange(160) % 3, "y_test": np.arange(40) % 3},
        {},
        "labels",
        "has 10 outputs for 3 classes: .* give the last layer 3 outputs",
    ),
    "sorted before it was divided": ({"y_train": np.arange(160) % 9}, {}, "labels", "class 9 is in the test set and"),
    "one class": ({"y_train": 9 * (np.arange(160) > 150)}, {}, "labels", "nearly all training samples are of class 0"),
    "not normalised": (
        {"x_train": tiny_arrays()[0][0].astype(np.float32), "x_test": tiny_arrays()[1][0].astype(np.float32)},
        {"normalize": False},
        "data",
        "not normalised.*mean 5.*normalize = false passes them unchanged",
    ),
    "lost in a cast": (
        {
            "x_train": (tiny_arrays()[0][0] / 300).astype(np.uint8),
            "x_test": (tiny_arrays()[1][0] / 300).astype(np.uint8),
        },
        {},
        "data",
        "all samples are the same: each value is 0",
    ),
}


@pytest.mark.parametrize(("change", "call", "kind", "text"), DATA.values(), ids=DATA)
def test_a_mistake_in_the_data_is_named(change: Change, call: dict[str, Any], kind: str, text: str) -> None:
    (x_train, y_train), (x_test, y_test) = tiny_arrays()
    arrays: dict[str, NDArray[Any]] = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    for name, value in change.items():
        arrays[name] = value if isinstance(value, np.ndarray) else np.asarray(arrays[name] + value)
    data = (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
    found = doctor(plants.net(nn.ReLU()), data, **BRIEF, **call)
    assert kind in found.kinds, found
    assert re.search(text, said(found)), found


def test_features_of_very_different_sizes_are_named() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    x, y = rng.standard_normal((160, 5)), np.arange(160) % 10
    x[:, 3] *= 5000
    found = doctor(plants.net(nn.ReLU(), inputs=5), ((x, y), (x[:40], y[:40])), **BRIEF)
    assert "feature 3 has deviation" in said(found)
    scaled = x / [1, 1, 1, 5000, 1]
    # These labels have nothing to do with the samples, which is found once the samples are right.
    found = doctor(plants.net(nn.ReLU(), inputs=5), ((scaled, y), (scaled[:40], y[:40])), **BRIEF)
    assert "data" not in found.kinds


#: Nets in which nothing is wrong.
HEALTHY: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "relu": (plants.net(nn.ReLU()), {}),
    "tanh": (plants.net(nn.Tanh()), {}),
    "sigmoid": (plants.net(nn.Sigmoid()), {}),
    "right derivative": (plants.tanh_with_derivative(lambda g, y, x: g * (1 - y * y)), {}),
    "right linear": (plants.own_linear(lambda g, x: g.T @ x, lambda g: g.sum(axis=0)), {}),
    "softmax regression from zero": (
        plants.with_weights(lambda weight: weight.fill(0), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
        {},
    ),
    "normalisation and dropout": (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.3)),
            *(nn.Flatten(), nn.LayerNorm(676), nn.Linear(676, 10)),
        ),
        {},
    ),
    "log-softmax, which is applied twice without harm": (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.LogSoftmax()),
        {},
    ),
    "adam": (plants.net(nn.GELU()), {"optimizer": "adam", "lr": 1e-3}),
    "clipped": (plants.net(nn.LeakyReLU()), {"clip_norm": 1.0, "lr": 0.2, "schedule": "cosine", "warmup_steps": 4}),
    "not normalised, and small enough": (plants.net(nn.ReLU()), {"normalize": False, "max_shift": 2}),
}


@pytest.mark.parametrize(("model", "call"), HEALTHY.values(), ids=HEALTHY)
def test_what_is_healthy_gives_no_alarm(model: nn.Module, call: dict[str, Any]) -> None:
    before = model.state_dict()
    found = doctor(model, tiny_arrays(), **{**BRIEF, **call})
    assert found.is_healthy, found
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# The jobs that are shipped are examples too: those of the others are examined in tests/examples.
@pytest.mark.parametrize("model", ["linear", pytest.param("examples/my_model.py:build", marks=pytest.mark.slow)])
def test_a_model_by_its_name_gives_no_alarm(model: str) -> None:
    found = doctor(model)
    assert found.is_healthy, found
    assert repr(found).startswith(f"{model} on mnist: no findings in ")


def test_a_report_fits_80_columns(tmp_path: Path) -> None:
    found = doctor(plants.dead(), write_tiny(tmp_path), **BRIEF, lr=30.0)
    assert len(found.findings) > 1
    assert all(len(line) <= 80 for line in found.lines())
    assert "2. the learning rate is too large: lr = 30" in found.lines()
