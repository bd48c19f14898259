"""Exported graphs pass the checker and give the same outputs in onnxruntime, for any number of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import F, Tensor, fit, nn
from lockstep.common.aggregation.layout import layout_of
from lockstep.common.autograd.graph import no_grad
from lockstep.common.errors import ModelError
from lockstep.common.numerics.random import Purpose, generator
from lockstep.results.evaluation.onnx_graph import trace_of
from tests.lockstep.small_runs import small_run

pytest.importorskip("onnx", reason="ONNX files are written by the package onnx: .venv/bin/pip install -e '.[export]'")
runtime = pytest.importorskip("onnxruntime", reason="exported graphs are compared with onnxruntime")

from lockstep.cli.main import run  # noqa: E402
from lockstep.results.evaluation.onnx_graph import (  # noqa: E402  # what may be missing
    graph_of,
    onnx_bytes,
    output_port,
    sample_port,
)


class Functions(nn.Module):
    """What can be written between layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        x = F.pad(x, (1, 2), value=0.5)
        rows = x.reshape(-1, 5, 7).permute(0, 2, 1).transpose(1, 2)
        centred = rows - rows.mean(dim=2, keepdim=True)
        scaled = centred / ((centred**2).sum(dim=2, keepdim=True) + 1e-3).sqrt()
        both = F.concatenate([scaled.exp().log(), -abs(scaled)], dim=2)
        mixed = (both @ both.transpose(1, 2)).max(dim=1)
        stacked = F.stack([mixed, mixed.clip(-0.5, 0.5), F.softplus(mixed, beta=2.0)], dim=1)
        least = stacked.unsqueeze(1).squeeze(1).min(dim=2)
        parts = F.maximum(least, 0.1) * F.minimum(stacked.sum(dim=2), 3.0) + 1 / (1 + least**2)
        return parts[:, 1:] * parts[:, :-1] + stacked[:, 0, -2:]


class Windows(nn.Module):
    """Pools whose last windows are cut off or have gaps, frames, and a variance."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(x, (2, 1, 1, 3), mode="reflect"), (-1, 2), value=0.25)
        most = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
        apart = F.max_pool2d(x, (2, 3), stride=1, dilation=(2, 1))
        mean = F.avg_pool2d(most, (3, 2), stride=2, padding=1, ceil_mode=True)
        inside = F.avg_pool2d(apart, 2, stride=3, padding=1, ceil_mode=True, count_include_pad=False)
        share = F.avg_pool2d(apart, 2, divisor_override=3)
        parts = [each.reshape(len(x.data), -1) for each in (mean, inside, share, F.adaptive_avg_pool2d(x, (None, 1)))]
        return F.concatenate([*parts, x.var(dim=(2, 3)), x.var(dim=1, keepdim=True).reshape(len(x.data), -1)], dim=1)


class Series(nn.Module):
    """Recurrent layers of each kind, with the last state of one as the first of another."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 6, bias=False, batch_first=True)
        self.tanh = nn.RNN(6, 4, batch_first=True)
        self.relu = nn.RNN(4, 3, nonlinearity="relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x, (h, _) = self.lstm(x)
        x, _ = self.gru(x, h[1:2])
        return self.relu(self.tanh(x)[0])[0][:, -1]


IMAGES = (1, 8, 8)

MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{name: (make(), (1, 28, 28)) for name, make in nn.models.MODELS.items()},
    "options of convolutions": (
        nn.Sequential(
            nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
            nn.Conv2d(4, 8, 2, groups=2, dilation=(1, 2)),
            nn.MaxPool2d(2, stride=1, padding=1),
            nn.AvgPool2d((2, 2), padding=1),
            nn.Flatten(),
        ),
        IMAGES,
    ),
    "signals": (
        nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1)),
        (3, 16),
    ),
    "normalisation": (
        nn.Sequential(
            *(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.AdaptiveAvgPool2d((3, 2))),
            *(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)),
            nn.LayerNorm(6, elementwise_affine=False),
        ),
        IMAGES,
    ),
    "activations": (
        nn.Sequential(
            *(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.LeakyReLU(0.2), nn.GELU(), nn.GELU("tanh"), nn.Tanh()),
            *(nn.Softplus(), nn.Softplus(3.0), nn.Sigmoid(), nn.Softmax(), nn.Identity(), nn.LogSoftmax()),
        ),
        (4, 5),
    ),
    "functions": (Functions(), (4, 8)),
    "windows": (Windows(), (2, 8, 7)),
    "series": (Series(), (7, 5)),
}


def outputs(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the largest difference between the model and its export, over several numbers of samples."""
    rng = generator(0, Purpose.CANARY)
    samples = rng.standard_normal((3, *shape), dtype=np.float32)
    trace = trace_of(model, samples)
    weights = model.state_dict()
    content = onnx_bytes(graph_of(trace, weights), [sample_port("", shape)], [output_port(trace.shape[1:])], {})
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 2, 3, 17):
        x = rng.standard_normal((count, *shape), dtype=np.float32)
        with no_grad():
            expected = model(Tensor(x)).data
        (found,) = session.run(None, {"samples": x})
        assert found.shape == expected.shape
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


@pytest.mark.parametrize(("model", "shape"), MODELS.values(), ids=MODELS)
def test_the_outputs_are_the_same(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.initialize(1)
    model.train()
    with no_grad():  # so that running statistics are not those of a new model
        model(Tensor(generator(1, Purpose.CANARY).standard_normal((9, *shape), dtype=np.float32) + 1))
    assert outputs(model.eval(), shape) < 1e-5


def test_a_table_of_vectors_takes_integers_as_numbers() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x.data.astype(np.int64)).sum(dim=1)

    # Its indices are an array that NumPy made: they cannot be followed.
    with pytest.raises(ModelError, match="'embedding' to numbers that depend on the samples"):
        trace_of(Words().eval(), np.array([[1, 2], [3, 4], [5, 6]], np.float32))


def test_what_has_no_counterpart_is_named() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.smooth_l1_loss(x, x * 0.5, reduction="none")

    trace = trace_of(First(), np.ones((3, 4), np.float32))
    with pytest.raises(ModelError, match="the model applies 'smooth_l1', which is not exported to ONNX"):
        graph_of(trace, {})


def test_an_index_of_other_kinds_is_named() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, ::2]

    trace = trace_of(Chosen(), np.ones((3, 4), np.float32))
    with pytest.raises(ModelError, match="expected integers or one list of them, and slices without a step"):
        graph_of(trace, {})


def test_a_transformer_over_tokens_is_exported() -> None:
    layers = (nn.TransformerEncoderLayer(12, 3, 20, norm_first=first, is_causal=first) for first in (True, False))
    model = nn.Sequential(nn.Embedding(9, 12), nn.PositionalEmbedding(6, 12), *layers, nn.Linear(12, 9)).initialize(1)
    tokens = generator(0, Purpose.CANARY).integers(0, 9, (17, 6), dtype=np.int32)
    trace = trace_of(model.eval(), tokens[:3])
    inputs, outputs = [sample_port("", (6,), of_tokens=True)], [output_port(trace.shape[1:])]
    content = onnx_bytes(graph_of(trace, model.state_dict()), inputs, outputs, {})
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 2, 17):
        with no_grad():
            expected = model(Tensor(tokens[:count])).data
        (found,) = session.run(None, {"samples": tokens[:count].astype(np.int64)})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_uneven_adaptive_pooling_is_named() -> None:
    trace = trace_of(nn.AdaptiveAvgPool2d(3), np.ones((3, 1, 8, 8), np.float32))
    with pytest.raises(ModelError, match=r"pooling from \(8, 8\) to \(3, 3\) is not exported to ONNX"):
        graph_of(trace, {})


class Priced(nn.Module):
    """Takes a category and a signal by name, and returns more than one output."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.filters, self.head = nn.Embedding(5, 4), nn.Conv1d(3, 2, 4), nn.Linear(8, 2)

    def forward(self, kind: Tensor, signal: Tensor) -> Any:
        both = F.concatenate([self.kinds(kind), F.relu(self.filters(signal)).flatten(1)], dim=1)
        return {"hidden": both, "logits": self.head(both)}


def test_a_model_of_several_inputs_is_exported_with_their_names(tmp_path: Path) -> None:
    rng = generator(4, Purpose.CANARY)
    x = {"kind": rng.integers(0, 5, 40), "signal": rng.normal(3.0, 2.0, size=(40, 3, 5))}
    part = (x, rng.integers(0, 2, 40))
    brief: dict[str, Any] = {"epochs": 1, "global_batch": 16, "workers": 0, "verbose": False}
    trained = fit(Priced, (part, part), run_dir=tmp_path / "run", **brief)
    assert run(["export", str(trained.folder), str(tmp_path / "priced.onnx")]) == 0
    session = runtime.InferenceSession(tmp_path / "priced.onnx", providers=["CPUExecutionProvider"])
    scales = json.loads(session.get_modelmeta().custom_metadata_map["inputs"])
    assert [each.name for each in session.get_inputs()] == ["kind", "signal"]
    assert scales["kind"] == {"mean": 0.0, "std": 1.0}
    signal = ((x["signal"] - scales["signal"]["mean"]) / scales["signal"]["std"]).astype(np.float32)
    for rows in (1, 7):
        given = {"kind": x["kind"][:rows].astype(np.int64), "signal": signal[:rows]}
        found = session.run(None, given)[0]
        shares = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
        expected = trained.predict_proba({name: array[:rows] for name, array in x.items()})
        np.testing.assert_allclose(shares, expected, atol=1e-5)


def test_a_run_is_exported_with_what_its_samples_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = small_run(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)))
    path = tmp_path / "net.onnx"
    assert run(["export", str(trained.folder), str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}, {path.stat().st_size:,} bytes\n"
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    message = session.get_modelmeta().custom_metadata_map
    raw = np.arange(2 * 784, dtype=np.float32).reshape(2, 1, 28, 28) % 256
    prepared = ((raw / 255 - float(message["mean"])) / float(message["std"])).astype(np.float32)
    with no_grad():
        expected = trained.model(Tensor(prepared)).data
    np.testing.assert_allclose(session.run(None, {"samples": prepared})[0], expected, atol=1e-5)
    assert layout_of(trained.model).size == 784 * 8 + 8 + 4 * 8 + 8 * 10 + 10
