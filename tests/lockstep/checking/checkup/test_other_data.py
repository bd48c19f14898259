"""Mistakes in a regression, and over sequences of tokens; what is healthy gives no alarm there either."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import doctor, nn
from lockstep.common.errors import ModelError
from lockstep.common.numerics.random import Purpose, generator

BRIEF: dict[str, Any] = {"epochs": 40, "global_batch": 32, "micro_batches": 4}

Pairs = tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]


def table(scale: float = 1.0, shift: float = 0.0) -> Pairs:
    x = generator(0, Purpose.CANARY).standard_normal((200, 6)).astype(np.float32)
    y = scale * (x[:, 0] - x[:, 1] * x[:, 2]) / 1.4 + shift
    return (x[:160], y[:160]), (x[160:], y[160:])


def text(kinds: int = 9) -> Pairs:
    x = generator(1, Purpose.CANARY).integers(0, kinds, (200, 12))
    y = (2 * x + 1) % kinds
    return (x[:160], y[:160]), (x[160:], y[160:])


def net(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs)).initialize(1)


def transformer(**options: Any) -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, is_causal=True, **options)
    return nn.Sequential(
        nn.Embedding(9, 16), nn.PositionalEmbedding(12, 16), layer, nn.LayerNorm(16), nn.Linear(16, 9)
    ).initialize(1)


@pytest.mark.parametrize(
    ("model", "data", "call"),
    [
        (net(), table(), {"loss": "mse"}),
        (net(), (table()[0], table()[1]), {"loss": "mse", "optimizer": "adam", "lr": 0.01}),
        (transformer(), text(), {"optimizer": "adamw", "lr": 0.003}),
        (transformer(dropout=0.0), text(), {"optimizer": "adamw", "lr": 0.003, "clip_norm": 1.0}),
    ],
    ids=["table", "table by adam", "text", "text without dropout"],
)
def test_what_is_healthy_gives_no_alarm(model: nn.Module, data: Pairs, call: dict[str, Any]) -> None:
    found = doctor(model, data, **BRIEF, **call)
    assert found.is_healthy, found


@pytest.mark.parametrize(
    ("model", "data", "call", "kind", "text_of_it"),
    [
        (
            net(),
            table(shift=20.0),
            {"loss": "mse", "target_scale": (0, 1)},
            "first-loss",
            "always predicting the mean costs .*far from 0",
        ),
        (net(), table(), {"loss": "mse", "lr": 30.0}, "rate", "the learning rate is too large: lr = 30"),
        (net(), table(), {}, "labels", "not whole numbers: .*this is a regression; .* or set loss = 'mse'"),
        (transformer(), text(8), {}, "labels", "the model has 9 outputs for 8 classes"),
        (transformer(), text(11), {}, "labels", "labels are out of range: 0 to 10"),
        (transformer(), text(), {"optimizer": "adamw", "lr": 30.0}, "rate", "too large: lr = 30"),
    ],
    ids=["far targets", "rate", "numbers as classes", "fewer kinds", "more kinds", "rate over tokens"],
)
def test_a_planted_mistake_is_named(
    model: nn.Module, data: Pairs, call: dict[str, Any], kind: str, text_of_it: str
) -> None:
    if kind == "labels" and text_of_it.startswith("labels are"):
        # The tokens have to be among the model's, or it could not be run at all.
        data = ((data[0][0] % 9, data[0][1]), (data[1][0] % 9, data[1][1]))
    found = doctor(model, data, **BRIEF, **call)
    assert kind in found.kinds, found
    assert re.search(text_of_it, " ".join(map(str, found.findings))), found


def pictures(ignored: int | None = None) -> Pairs:
    """Return pictures with a label for each of their places, most of which are background; one row may be ignored."""
    x = generator(2, Purpose.CANARY).standard_normal((120, 1, 6, 8)).astype(np.float32)
    y = np.where(x[:, 0] > 1.8, np.where(x[:, 0] > 2.2, 2, 1), 0)
    if ignored is not None:
        y[:, 0] = ignored
    return (x[:90], y[:90]), (x[90:], y[90:])


def places(outputs: int = 3) -> nn.Sequential:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1))
    return nn.Sequential(*layers).initialize(1)


@pytest.mark.parametrize(
    ("outputs", "ignored"), [(3, None), (3, 255), (3, -100), (3, 3), (4, 3)], ids=["none", "255", "-100", "3", "4 of 3"]
)
def test_healthy_labels_of_places_give_no_alarm(outputs: int, ignored: int | None) -> None:
    found = doctor(places(outputs), pictures(ignored), **BRIEF, ignore_index=ignored)
    assert found.is_healthy, found


@pytest.mark.parametrize(
    ("call", "text_of_it"),
    [
        ({"lr": 30.0}, "the learning rate is too large: lr = 30"),
        ({"lr": 30.0, "ignore_index": 255}, "the learning rate is too large: lr = 30"),
    ],
)
def test_a_mistake_in_a_model_of_places_is_named(call: dict[str, Any], text_of_it: str) -> None:
    found = doctor(places(), pictures(call.get("ignore_index")), **BRIEF, **call)
    assert text_of_it in " ".join(map(str, found.findings)), found


def test_a_class_of_places_that_has_no_training_sample_is_named() -> None:
    (x, y), (tx, ty) = pictures(255)
    found = doctor(places(), ((x, np.where(y == 1, 0, y)), (tx, ty)), **BRIEF, ignore_index=255)
    assert any(finding.what == "class 1 is in the test set and not in the training set" for finding in found.findings)


def test_a_wrong_gradient_within_attention_is_named() -> None:
    class Blind(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 1.0 + (x.data - x.data.mean())

    model = transformer(dropout=0.0)
    layer = model[2]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    layer.norm1 = Blind()  # type: ignore[assignment]  # the mistake that is planted
    found = doctor(model, text(), **BRIEF, optimizer="adamw", lr=0.003)
    assert any("2.norm1 (Blind)" in finding.what for finding in found.findings), found


def test_a_last_layer_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected \(2, 1\), one number for each of 1 targets, as loss = 'mse' needs"):
        doctor(net(3), table(), **BRIEF, loss="mse")
