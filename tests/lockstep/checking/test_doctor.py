"""Each mistake is planted into a healthy job, and its finding is one line; a healthy job has no finding."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import doctor, nn
from lockstep.common.errors import DataError, ModelError
from lockstep.common.numerics.random import Purpose, generator
from tests.lockstep.checking import plants
from tests.lockstep.tiny_data import tiny_arrays, write_tiny

Array = NDArray[Any]
Data = tuple[tuple[Array, Array], tuple[Array, Array]]

#: Of all jobs here.
VALUES: dict[str, Any] = {"global_batch": 32, "micro_batches": 4, "epochs": 20}


def rows(samples: int = 600) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return samples of three classes that overlap a little, in six features."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, samples)
    features = rng.normal(size=(3, 6))[labels] * 1.5 + rng.normal(size=(samples, 6))
    return features.astype(np.float32), labels


def split(x: Array, y: Array) -> Data:
    return (x[:-100], y[:-100]), (x[-100:], y[-100:])


def blobs() -> Data:
    return split(*rows())


def numbers(scale: float = 1.0, shift: float = 0.0) -> Data:
    x, _ = rows()
    return split(x, (scale * (np.tanh(x[:, 0]) - x[:, 1] * x[:, 2] / 4) + shift).astype(np.float32))


def with_column(column: Array, y: Array | None = None) -> Data:
    x, labels = rows()
    return split(np.column_stack([x, column]).astype(np.float32), labels if y is None else y)


def noisy() -> Data:
    """Return samples most of whose labels are those of others, as hard data has them."""
    (x, y), rng = rows(3000), np.random.default_rng(2)
    return split(x, np.where(rng.random(y.size) < 0.65, rng.permutation(y), y))


def sorted_by_class() -> Data:
    x, y = rows()
    order = np.argsort(y, kind="stable")
    return split(x[order], y[order])


def text(kinds: int = 9) -> Data:
    x = generator(1, Purpose.CANARY).integers(0, kinds, (200, 12))
    return split(x, (2 * x + 1) % kinds)


def pictures(ignored: int | None = None) -> Data:
    """Return pictures with a label for each of their places, most of which are background; one row may be ignored."""
    x = generator(2, Purpose.CANARY).standard_normal((220, 1, 6, 8)).astype(np.float32)
    y = np.where(x[:, 0] > 1.8, np.where(x[:, 0] > 2.2, 2, 1), 0)
    if ignored is not None:
        y[:, 0] = ignored
    return split(x, y)


def net(*more: nn.Module, inputs: int = 6, outputs: int = 3) -> nn.Sequential:
    nn.manual_seed(3)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs), *more)


def transformer(**options: Any) -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, is_causal=True, **options)
    return nn.Sequential(
        nn.Embedding(9, 16), nn.PositionalEmbedding(12, 16), layer, nn.LayerNorm(16), nn.Linear(16, 9)
    ).initialize(1)


def blind_transformer() -> nn.Sequential:
    model = transformer(dropout=0.0)
    layer = model[2]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    layer.norm1 = plants.Blind()  # type: ignore[assignment]  # the mistake that is planted
    return model


def places() -> nn.Sequential:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    return nn.Sequential(*layers).initialize(1)


def times(factor: float, activation: nn.Module | None = None) -> nn.Sequential:
    return plants.with_weights(
        lambda weight: np.multiply(weight, factor, out=weight), plants.net(activation or nn.ReLU())
    )


TINY = tiny_arrays()
RAW = ((TINY[0][0].astype(np.float32), TINY[0][1]), (TINY[1][0].astype(np.float32), TINY[1][1]))
BLACK = (((TINY[0][0] / 300).astype(np.uint8), TINY[0][1]), ((TINY[1][0] / 300).astype(np.uint8), TINY[1][1]))

#: Planted mistake -> model, data, values of the job, and the beginning of the only finding.
MISTAKES: dict[str, tuple[Any, Data, dict[str, Any], str]] = {
    # data
    "sorted before the split": (
        net(),
        sorted_by_class(),
        {},
        "data: class 0 is in the training set and not in the test set; shuffle all samples before they are split",
    ),
    "a class of the test set alone": (
        net(),
        ((blobs()[0][0], blobs()[0][1] // 2), blobs()[1]),
        {},
        "data: class 2 is in the test set and not in the training set; shuffle",
    ),
    "a class of places": (
        places(),
        ((pictures()[0][0], np.where(pictures()[0][1] == 1, 0, pictures()[0][1])), pictures()[1]),
        {},
        "data: class 1 is in the test set and not in the training set; shuffle",
    ),
    "one class": (
        net(),
        split(rows()[0], (np.arange(600) % 50 == 0) * 2),
        {},
        "data: 490 of 500 training samples are of class 0; give rare classes more weight (--set class_weights=1,10)",
    ),
    "unscaled column": (
        net(inputs=7),
        with_column(1e6 * rows()[0][:, 0]),
        {},
        "data: feature 6 is far larger than the others; scale each column to mean 0 and deviation 1",
    ),
    "column far from 0": (
        net(inputs=7),
        with_column(np.full(600, 2024.0)),
        {},
        "data: feature 6 is far larger than the others; scale each column",
    ),
    "target leak": (
        net(inputs=7),
        with_column(10.0 - rows()[1]),
        {},
        "data: feature 6 alone gives the target of all 500 training samples; leave it out, if it is not known when you",
    ),
    "a leak of numbers": (
        net(inputs=7, outputs=1),
        with_column(3.0 - 2 * rows()[0][:, 0], rows()[0][:, 0]),
        {"loss": "mse"},
        "data: feature 0 alone gives the target of all 500 training samples; leave it out",
    ),
    "classes as numbers": (
        net(outputs=1),
        split(rows()[0], rows()[1].astype(np.float32)),
        {"loss": "l1"},
        "data: the targets are whole numbers from 0 to 2, as classes are, and the loss compares sizes; --loss cross-",
    ),
    # gradients
    "tanh with relu's derivative": (
        plants.tanh_with_derivative(lambda g, y, x: g * (x > 0)),
        TINY,
        {},
        "gradients: the gradient of 2 (Elementwise) is wrong: along input 0 the output changes by -3.054, by the gradi",
    ),
    "wrong sign": (
        plants.tanh_with_derivative(lambda g, y, x: -g * (1 - y * y)),
        TINY,
        {},
        "gradients: the gradient of 2 (Elementwise) is wrong: along input 0 the output changes by -3.054, by the gradi",
    ),
    "what comes from above is ignored": (
        plants.tanh_with_derivative(lambda g, y, x: 1 - y * y),
        TINY,
        {},
        "gradients: the gradient of 2 (Elementwise) is wrong: along input 0 ",
    ),
    "weights' gradient divided by the samples": (
        plants.own_linear(lambda g, x: g.T @ x / len(x), lambda g: g.sum(axis=0)),
        TINY,
        {},
        "gradients: the gradient of 3 (OwnLinear) is wrong: along weight ",
    ),
    "bias's gradient of one sample": (
        plants.own_linear(lambda g, x: g.T @ x, lambda g: g[0]),
        TINY,
        {},
        "gradients: the gradient of 3 (OwnLinear) is wrong: along bias ",
    ),
    "weights' gradient of another shape": (
        plants.own_linear(lambda g, x: g.T @ x[:, :5], lambda g: g.sum(axis=0)),
        TINY,
        {},
        "gradients: the gradient of 3 (OwnLinear) is wrong: backward raised RuntimeError: the gradient of argument 1",
    ),
    "a layer that leaves the graph": (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 32), plants.LeavesTheGraph(), nn.Linear(32, 10)),
        TINY,
        {},
        "gradients: the gradient of 2 (LeavesTheGraph) is wrong: none arrives at input 0, which the output depends",
    ),
    "detached": (
        plants.Detached(),
        blobs(),
        {},
        "gradients: the gradient of the model (Detached) is wrong: none arrives at input 0",
    ),
    "a forward of the model's own": (
        plants.Halved(),
        blobs(),
        {},
        "gradients: the gradient of the model (Halved) is wrong: along input 0 ",
    ),
    "within attention": (
        blind_transformer(),
        text(),
        {"optimizer": "adamw", "lr": 0.003},
        "gradients: the gradient of 2.norm1 (Blind) is wrong: along input 0 ",
    ),
    "random forward": (
        plants.Drawn(),
        blobs(),
        {},
        "gradients: the forward of the model (Drawn) returns something else for the same input; draw with nn.Dropout",
    ),
    "zeros": (
        plants.with_weights(lambda weight: weight.fill(0)),
        TINY,
        {},
        "gradients: all 32 units of '1.weight' are equal, and stay so with equal gradients; initialize with nn.init.k",
    ),
    "vanishing": (
        plants.deep(nn.Sigmoid, 10, 1.0),
        TINY,
        {},
        "gradients: the gradient of '1.weight' is 1.73e+06 times smaller than that of '22.weight'; use ReLU, fewer",
    ),
    "exploding": (
        plants.tiny_before_normalisation(),
        TINY,
        {},
        "gradients: the gradient of '1.weight' is 5.22e+04 times larger than that of '3.weight'; initialize with",
    ),
    # activations
    "dead ReLUs": (
        plants.dead(),
        TINY,
        {},
        "activations: 32 of 32 units of 2 (ReLU) are 0 for all 32 samples; begin with biases of 0 and nn.init.kaiming",
    ),
    "saturated tanh": (
        times(30, nn.Tanh()),
        TINY,
        {},
        "activations: 89% of the outputs of 2 (Tanh) are saturated; begin with nn.init.xavier_normal_",
    ),
    "saturated sigmoid": (
        times(90, nn.Sigmoid()),
        TINY,
        {},
        "activations: 93% of the outputs of 2 (Sigmoid) are saturated; begin with nn.init.xavier_normal_",
    ),
    "NaN": (
        plants.with_weights(lambda weight: weight.fill(np.nan)),
        TINY,
        {},
        "activations: numbers are not finite, first in layer 1 (Linear), in operation linear, forward; check first va",
    ),
    "a logarithm of negative numbers": (
        plants.logarithm(),
        TINY,
        {},
        "activations: numbers are not finite, first in layer 2 (Elementwise), in operation own, forward; check first",
    ),
    "last ReLU": (
        net(nn.ReLU()),
        blobs(),
        {},
        "activations: the model ends in a ReLU; remove the activation after the last layer",
    ),
    # first steps
    "softmax twice": (
        net(nn.Softmax()),
        blobs(),
        {},
        "first steps: the model ends in softmax, which the loss applies once more; remove Softmax from the end of the",
    ),
    "a first loss that is no guess": (
        times(12),
        TINY,
        {},
        "first steps: the loss begins at 34.9, and guessing costs 2.3; begin with smaller weights in the last layer",
    ),
    "far targets": (
        net(outputs=1),
        numbers(shift=20.0),
        {"loss": "mse", "target_scale": (0, 1), "optimizer": "adam"},
        "first steps: the loss begins at 377, and guessing costs 0.612; begin with smaller weights in the last layer",
    ),
    "an unused layer": (
        plants.Unused(),
        blobs(),
        {},
        "first steps: no gradient arrives at 'first.weight' and 1 more; use it in forward, without .detach() or .data",
    ),
    "rate": (
        plants.net(nn.ReLU()),
        TINY,
        {"lr": 30.0},
        "first steps: in 12 steps at up to 30 the loss went from 2.29 to inf; run `lockstep find-lr`",
    ),
    "a rate beyond all numbers": (
        plants.net(nn.ReLU()),
        TINY,
        {"lr": 1e30},
        "first steps: in 1 steps at up to 1e+30 the loss went from 2.29 to inf; run `lockstep find-lr`",
    ),
    "a rate of a convolutional net": (
        "lenet",
        TINY,
        {"lr": 40.0},
        "first steps: in 24 steps at up to 40 the loss went from 2.3 to 52.8; run",
    ),
    "rate over tokens": (
        transformer(),
        text(),
        {"optimizer": "adamw", "lr": 30.0},
        "first steps: in 24 steps at up to 30 the loss went from 2.",
    ),
    "rate over places": (
        places(),
        pictures(255),
        {"lr": 30.0, "ignore_index": 255},
        "first steps: in 24 steps at up to 30 the loss went from 1.",
    ),
    "rate of numbers": (
        net(outputs=1),
        numbers(),
        {"loss": "mse", "lr": 30.0},
        "first steps: in 3 steps at up to 30 the loss went from 0.833 to inf; run",
    ),
    "local rate": (
        net(),
        blobs(),
        {"local_steps": 4, "local_lr": 1e-7, "global_batch": 128, "lr": 1.0},
        "first steps: in 24 steps at up to 1e-07 the loss stays at 1.38; run",
    ),
    "rate too low": (
        net(),
        blobs(),
        {"lr": 1e-7},
        "first steps: in 24 steps at up to 1e-07 the loss stays at 1.29; run `lockstep find-lr`",
    ),
    "clipped too much": (
        net(),
        blobs(),
        {"clip_norm": 1e-6},
        "first steps: in 24 steps at up to 0.05 the loss stays at 1.29; run `lockstep find-lr`",
    ),
}


@pytest.mark.parametrize(("model", "data", "values", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_one_line(model: Any, data: Data, values: dict[str, Any], line: str) -> None:
    (found,) = doctor(model, data, **{**VALUES, **values}).lines()
    assert found.startswith(line), found


#: Planted mistake -> the same, with the beginnings of several findings: one follows from the other.
SEVERAL: dict[str, tuple[Any, Data, dict[str, Any], list[str]]] = {
    "not normalised": (
        plants.net(nn.ReLU()),
        RAW,
        {"normalize": False},
        [
            "data: the samples are not normalised: they have mean 57.31 and deviation 47.42; --set normalize=true",
            "first steps:",
        ],
    ),
    "lost in a cast": (
        plants.net(nn.ReLU()),
        BLACK,
        {},
        [
            "data: all values of the samples are 0; check how they were read or converted",
            "first steps: no gradient arrives at '1.weight'; use it in forward",
        ],
    ),
    "Kaiming with one value": (
        plants.with_weights(plants.one_number),
        TINY,
        {},
        ["gradients: all 32 units of '1.weight' are equal", "gradients: all 10 units of '3.weight' are equal"],
    ),
    "one row for all units": (
        plants.with_weights(plants.one_row),
        TINY,
        {},
        ["gradients: all 32 units of '1.weight' are equal", "gradients: all 10 units of '3.weight' are equal"],
    ),
    "sizes that explode from layer to layer": (
        plants.deep(nn.Identity, 6, 8.0),
        TINY,
        {},
        [
            "first steps: the loss begins at 1.5e+05, and guessing costs 2.3; begin with smaller weights",
            "first steps: in 2 steps at up to 0.05 the loss went from 1.5e+05 to inf",
        ],
    ),
    "one class, and clipped too much": (
        net(),
        split(rows()[0], (np.arange(600) % 50 == 0) * 2),
        {"clip_norm": 1e-6},
        ["data: 490 of 500 training samples are of class 0", "first steps: in "],
    ),
}


@pytest.mark.parametrize(("model", "data", "values", "lines"), SEVERAL.values(), ids=SEVERAL)
def test_what_follows_from_data_is_found_as_well(
    model: Any, data: Data, values: dict[str, Any], lines: list[str]
) -> None:
    found = doctor(model, data, **{**VALUES, **values}).lines()
    assert [each.startswith(line) for each, line in zip(found, lines, strict=True)] == [True] * len(lines), found


#: Healthy job -> model, data, values.
HEALTHY: dict[str, tuple[Any, Data, dict[str, Any]]] = {
    "linear": ("linear", TINY, {}),
    "mlp": ("mlp", TINY, {}),
    "lenet": ("lenet", TINY, {"lr": 0.01}),
    "a slow rate": ("lenet", TINY, {"lr": 0.001}),
    "rows": (net(), blobs(), {}),
    "noisy labels": (net(), noisy(), {"optimizer": "adam", "lr": 0.01}),
    "numbers": (net(outputs=1), numbers(), {"loss": "mse"}),
    "numbers by adam": (net(outputs=1), numbers(1.0, 1.0), {"loss": "smooth-l1", "optimizer": "adam", "lr": 0.01}),
    "far targets that are scaled": (net(outputs=1), numbers(50.0, 900.0), {"loss": "mse"}),
    "weight decay and clipping": (net(), blobs(), {"weight_decay": 1e-3, "clip_norm": 1.0, "clip_value": 0.1}),
    "several labels": (net(), split(rows()[0], np.eye(3)[rows()[1]]), {"loss": "bce", "lr": 0.1}),
    "local steps": (net(), blobs(), {"local_steps": 4, "local_lr": 0.05, "global_batch": 128, "lr": 1.0}),
    "tanh": (plants.net(nn.Tanh()), TINY, {}),
    "sigmoid": (plants.net(nn.Sigmoid()), TINY, {}),
    "right derivative": (plants.tanh_with_derivative(lambda g, y, x: g * (1 - y * y)), TINY, {}),
    "right linear": (plants.own_linear(lambda g, x: g.T @ x, lambda g: g.sum(axis=0)), TINY, {}),
    "softmax regression from zero": (
        plants.with_weights(lambda weight: weight.fill(0), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
        TINY,
        {},
    ),
    "normalisation and dropout": (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.3)),
            *(nn.Flatten(), nn.LayerNorm(676), nn.Linear(676, 10)),
        ),
        TINY,
        {},
    ),
    "log-softmax, which is applied twice without harm": (net(nn.LogSoftmax()), blobs(), {}),
    "clipped, with a schedule": (
        plants.net(nn.LeakyReLU()),
        TINY,
        {"clip_norm": 1.0, "lr": 0.2, "schedule": "cosine", "warmup_steps": 4},
    ),
    "one cycle": (plants.net(nn.GELU()), TINY, {"optimizer": "adam", "lr": 0.01, "schedule": "one-cycle"}),
    "not normalised, and small enough": (plants.net(nn.ReLU()), TINY, {"normalize": False, "max_shift": 2}),
    "tokens": (transformer(), text(), {"optimizer": "adamw", "lr": 0.003}),
    "places": (places(), pictures(), {}),
    "places, some ignored": (places(), pictures(255), {"ignore_index": 255}),
    "rare classes with weights": (
        net(),
        split(rows()[0], (np.arange(600) % 50 == 0) * 2),
        {"class_weights": (1.0, 1.0, 20.0)},
    ),
    "a layer that is frozen on purpose": (plants.Unused(), blobs(), {"lr_factors": ("first.*=0",)}),
}


@pytest.mark.parametrize(("model", "data", "values"), HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_job_has_no_finding(model: Any, data: Data, values: dict[str, Any]) -> None:
    before = {} if isinstance(model, str) else model.state_dict()
    found = doctor(model, data, **{**VALUES, **values})
    assert found.is_healthy, found
    assert repr(found).endswith(" on arrays: no findings")
    if not isinstance(model, str):
        assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
        assert all(each.grad is None and each.data.flags.writeable for each in model.parameters())


#: Clients of whom some leave; `paid` is the target in other words, and `income` is large.
CLIENTS = "age,income,town,paid,leaves\n" + "".join(
    f"{18 + row % 60},{20_000 + 900 * (row * 7 % 50)},{('Bern', 'Genf', 'Zug')[row % 3]},{5 - row % 2 * 2},"
    f"{('no', 'yes')[row % 2]}\n"
    for row in range(300)
)


@pytest.mark.parametrize(
    ("options", "findings"),
    [
        ({}, ["data: column 'paid' alone gives the target of all 240 training samples; --drop paid, if it is not kno"]),
        ({"drop": ["paid"]}, []),
        (
            {"drop": ["paid"], "standardize": False},
            ["data: column 'income' is far larger than the others; pack without --no-standardize"],
        ),
    ],
)
def test_a_table_is_examined_by_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], findings: list[str]
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "clients.csv").write_text(CLIENTS)
    found = doctor(tmp_path / "clients.csv", target="leaves", **options)
    assert [str(each).startswith(line) for each, line in zip(found.findings, findings, strict=True)] == [True] * len(
        findings
    ), found


def test_a_class_of_a_table_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mostly = "".join(f"{row % 7},{'rare' if row % 30 == 1 else 'common'}\n" for row in range(300))
    (tmp_path / "clients.csv").write_text("age,kind\n" + mostly)
    (finding,) = doctor(tmp_path / "clients.csv", target="kind").findings
    assert re.match(r"\d+ of 240 training samples are of class 'common'", finding.what)


def test_a_model_that_is_given_by_its_name_has_the_values_of_the_seed() -> None:
    healthy, broken = doctor("mlp"), doctor("mlp", lr=40.0)
    assert healthy.lines() == ["mlp on mnist: no findings"]
    assert [finding.group for finding in broken.findings] == ["first steps"]


def test_samples_of_several_arrays_are_tried_without_a_look_at_them(tmp_path: Path) -> None:
    x, y = rows(100)
    arrays: dict[str, Any] = {f"{name}_{part}": each for part in ("train", "test") for name, each in (("y", y),)}
    arrays |= {f"x_{part}.{field}": x for part in ("train", "test") for field in ("a", "b")}
    np.savez(tmp_path / "two.npz", **arrays)
    (tmp_path / "two.py").write_text(
        "from lockstep import nn\n\n\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)\n\n"
        "    def forward(self, a, b):\n        return self.one(a) + self.other(b)\n"
    )
    assert doctor(f"{tmp_path / 'two.py'}:Two", tmp_path / "two.npz", **VALUES).is_healthy
    assert not doctor(f"{tmp_path / 'two.py'}:Two", tmp_path / "two.npz", **VALUES, lr=1e-9).is_healthy


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"y_train": 1, "y_test": 1}, r"expected \(2, 11\), .*as no label is below 1, count classes from 0"),
        ({"y_train": -1}, "label -1 at index 0: expected an integer from 0 on"),
        ({"y_test": 0.5}, "'y_train' has integers, and the test set real numbers"),
        ({"y_train": np.arange(160) % 3, "y_test": np.arange(40) % 3}, r"expected \(2, 3\).*change the last layer"),
    ],
)
def test_labels_that_do_not_fit_are_refused_as_in_training(change: dict[str, Any], text: str) -> None:
    (x_train, y_train), (x_test, y_test) = TINY
    arrays = {"y_train": y_train, "y_test": y_test}
    for name, value in change.items():
        arrays[name] = value if isinstance(value, np.ndarray) else np.asarray(arrays[name] + value)
    with pytest.raises((DataError, ModelError), match=text):
        doctor(plants.net(nn.ReLU()), ((x_train, arrays["y_train"]), (x_test, arrays["y_test"])), **VALUES)


def test_a_finding_is_one_line_that_names_a_file_of_the_user(tmp_path: Path) -> None:
    found = doctor(plants.dead(), write_tiny(tmp_path), **VALUES)
    assert found.subject == f"Sequential on {tmp_path / 'tiny.npz'}"
    assert "\n" not in repr(found)
    assert math.isclose(len(found.findings), 1)
