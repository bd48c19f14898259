"""A job is tried: mistakes that people make are found with both libraries, and healthy jobs give no alarm."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import doctor, nn
from lockstep.checking.checkup.consultation import Examination, trial_subject
from lockstep.checking.checkup.training import TrialSubject
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.model.source import open_model
from lockstep.common.runtime.clock import ManualClock
from tests.lockstep.tiny_data import tiny_arrays

Data = tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]

#: Of all jobs here.
VALUES: dict[str, Any] = {"global_batch": 32, "micro_batches": 4, "epochs": 20, "lr": 0.05}


def rows(samples: int = 600) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return samples of three classes that overlap a little, in six features."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, samples)
    features = rng.normal(size=(3, 6))[labels] * 1.5 + rng.normal(size=(samples, 6))
    return features.astype(np.float32), labels


def split(x: NDArray[Any], y: NDArray[Any]) -> Data:
    return (x[:-100], y[:-100]), (x[-100:], y[-100:])


def blobs() -> Data:
    return split(*rows())


def numbers(shift: float = 0.0) -> Data:
    x, _ = rows()
    return split(x, (np.tanh(x[:, 0]) - x[:, 1] * x[:, 2] / 4 + shift).astype(np.float32))


def shuffled() -> Data:
    x, y = rows()
    return split(x, np.random.default_rng(1).permutation(y))


def noisy() -> Data:
    """Return samples most of whose labels are those of others, as hard data has them."""
    (x, y), rng = rows(3000), np.random.default_rng(2)
    return split(x, np.where(rng.random(y.size) < 0.65, rng.permutation(y), y))


def with_column(column: NDArray[Any]) -> Data:
    x, y = rows()
    return split(np.column_stack([x, column]).astype(np.float32), y)


def net(*more: nn.Module, inputs: int = 6, outputs: int = 3) -> nn.Sequential:
    nn.manual_seed(3)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs), *more)


class Detached(nn.Module):
    """A layer whose output is detached, so that nothing before it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x).relu().detach())


class Drawn(nn.Module):
    """A layer with numbers of its own in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.rng = nn.Linear(6, 16), nn.Linear(16, 3), np.random.default_rng(0)

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x).relu() * self.rng.random(16).astype(np.float32))


class Mixed(nn.Module):
    """A layer that takes the mean over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        hidden = self.first(x).relu()
        return self.last(hidden - hidden.mean(axis=0))


def sorted_by_class() -> Data:
    x, y = rows()
    order = np.argsort(y, kind="stable")
    return split(x[order], y[order])


def dead() -> nn.Sequential:
    model = net()
    for name, parameter in model.named_parameters():
        if name == "0.bias":
            parameter.data[...] = -50.0
    return model


class Recurrent(nn.Module):
    """A linear recurrence whose weights are too large."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.again.weight.data *= 5.0

    def forward(self, x: Any) -> Any:
        state = self.enter(x)
        for _ in range(10):
            state = self.again(state)
        return self.last(state)


#: Mistake -> model, data, values, and the kinds of which one is to be found.
MISTAKES: dict[str, tuple[Any, Data, dict[str, Any], set[str]]] = {
    "rate too high": (net(), blobs(), {"optimizer": "adam", "lr": 3.0}, {"rate"}),
    "rate too high for noisy labels": (net(), noisy(), {"optimizer": "adam", "lr": 0.7}, {"rate"}),
    "rate too low for noisy labels": (net(), noisy(), {"optimizer": "adam", "lr": 1e-5}, {"rate"}),
    "rate too low": (net(), blobs(), {"lr": 1e-7}, {"rate"}),
    # The weights of a normalisation are 1: steps below its rounding move none of their bits.
    "rate too low for a 1": (net(nn.LayerNorm(3)), blobs(), {"lr": 2e-9}, {"rate"}),
    "last ReLU": (net(nn.ReLU()), blobs(), {}, {"last-relu"}),
    "last ReLU of a regression": (net(nn.ReLU(), outputs=1), numbers(), {"loss": "mse"}, {"last-relu"}),
    "shuffled labels": (net(), shuffled(), {}, {"labels"}),
    # Learned by heart, but not yet far.
    "shuffled labels, slowly": (net(), shuffled(), {"optimizer": "adam", "lr": 0.03}, {"labels"}),
    "constant feature": (net(inputs=7), with_column(np.full(600, 2024.0)), {}, {"data"}),
    "unscaled inputs": (net(inputs=7), with_column(1e6 * rows()[0][:, 0]), {}, {"data"}),
    "dead ReLUs": (dead(), blobs(), {}, {"dead-relu"}),
    "target leak": (net(inputs=7), with_column(10 - rows()[1]), {}, {"leak"}),
    "one class": (net(), split(rows()[0], (np.arange(600) % 50 == 0).astype(int) * 2), {}, {"labels"}),
    "wrong loss": (net(outputs=1), split(rows()[0], rows()[1].astype(np.float32)), {"loss": "mse"}, {"loss"}),
    "frozen layer": (Detached(), blobs(), {}, {"frozen", "gradient"}),
    "random forward": (Drawn(), blobs(), {}, {"random"}),
    "mixed samples": (Mixed(), blobs(), {"optimizer": "adam", "lr": 0.01}, {"mixed-samples"}),
    "sorted before the split": (net(), sorted_by_class(), {}, {"labels"}),
    "weight decay too large": (net(), blobs(), {"weight_decay": 1.0}, {"held-back"}),
    "clipped too much": (net(), blobs(), {"clip_norm": 1e-6}, {"held-back"}),
    "each value clipped too much": (net(), blobs(), {"clip_value": 1e-7}, {"held-back"}),
    "exploding recurrent net": (Recurrent(), blobs(), {}, {"exploding", "first-loss"}),
}


def of(examined: Examination) -> str:
    return str(examined)


@pytest.mark.parametrize(("model", "data", "values", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found(model: Any, data: Data, values: dict[str, Any], expected: set[str]) -> None:
    examined = doctor(model, data, **{**VALUES, **values})
    assert set(examined.kinds) & expected, of(examined)


def test_what_is_to_be_done_names_what_was_done() -> None:
    examined = doctor(Detached(), blobs(), **VALUES)
    assert ".detach()" in examined.findings[0].cause
    assert (
        "F and methods of Tensor only; or correct the derivative of its primitive, if you"
        in examined.findings[0].change
    )
    (finding,) = doctor(net(), blobs(), **VALUES, weight_decay=1.0).findings
    assert finding.what == "weight_decay = 1 keeps the model from learning"
    (finding,) = doctor(net(), sorted_by_class(), **VALUES).findings
    assert finding.what == "class 0 is in the training set and not in the test set"


def images() -> Data:
    return tiny_arrays()


#: Healthy job -> model, data, values.
HEALTHY: dict[str, tuple[Any, Data, dict[str, Any]]] = {
    "classes of rows": (net(), blobs(), {}),
    "noisy labels": (net(), noisy(), {"optimizer": "adam", "lr": 0.01}),
    "a regression": (net(outputs=1), numbers(), {"loss": "mse"}),
    "a regression far from 0": (net(outputs=1), numbers(1.0), {"loss": "mse", "optimizer": "adam", "lr": 0.01}),
    "weight decay and clipping": (net(), blobs(), {"weight_decay": 1e-3, "clip_norm": 1.0, "clip_value": 0.1}),
    "pictures": ("linear", images(), {"lr": 0.01}),
    "a convolutional net": ("lenet", images(), {"lr": 0.01, "momentum": 0.9}),
    "a description with dropout": (net(nn.Dropout(0.1)), blobs(), {"optimizer": "adamw", "lr": 0.01}),
}


@pytest.mark.parametrize(("model", "data", "values"), HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_job_gives_no_alarm(model: Any, data: Data, values: dict[str, Any]) -> None:
    examined = doctor(model, data, **{**VALUES, **values})
    assert examined.is_healthy, of(examined)


class OwnClass(nn.Module):
    """A class, which `fit` takes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def test_a_class_is_examined_as_fit_takes_it() -> None:
    examined = doctor(OwnClass, blobs(), **VALUES)
    assert examined.is_healthy, of(examined)
    assert examined.subject == "OwnClass on arrays"


def test_the_model_that_is_examined_keeps_its_values() -> None:
    model = net()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    doctor(model, blobs(), **VALUES)
    after = model.state_dict()
    assert all((after[name] == array).all() for name, array in before.items())
    assert all(parameter.data.flags.writeable for parameter in model.parameters())
    assert model.training


def test_a_trial_ends_when_its_time_is_over() -> None:
    class Slow(ManualClock):
        def now(self) -> float:
            self.seconds += 0.1
            return self.seconds

    job = Job(model="linear", data="mnist", global_batch=8, micro_batches=1)
    model = open_model(job.model, 0)
    subject: TrialSubject = trial_subject(job, model, load("mnist"), Slow())
    assert 20 < len(subject.run(200).losses) < 100


TORCH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3){last})
        {change}

    def forward(self, x):
        {forward}
"""

#: Mistake -> the end of the layers, a line after they are made, the forward, values, and the kind to be found.
TORCH_MISTAKES: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "rate too high": ("", "", "return self.layers(x)", {"optimizer": "adam", "lr": 3.0}, "rate"),
    "rate too low": ("", "", "return self.layers(x)", {"lr": 1e-7}, "rate"),
    "last ReLU": (", nn.ReLU()", "", "return self.layers(x)", {}, "last-relu"),
    "dead ReLUs": ("", "nn.init.constant_(self.layers[0].bias, -50.0)", "return self.layers(x)", {}, "dead-relu"),
    "frozen layer": ("", "", "return self.layers[2](self.layers[:2](x).detach())", {}, "frozen"),
    "exploding": ("", "nn.init.normal_(self.layers[2].weight, std=1e5)", "return self.layers(x)", {}, "exploding"),
}


@pytest.fixture
def torch_file(tmp_path: Any) -> Any:
    pytest.importorskip("torch")

    def write(last: str = "", change: str = "", forward: str = "return self.layers(x)") -> str:
        path = tmp_path / "own_net.py"
        path.write_text(TORCH.format(last=last, change=change or "pass", forward=forward))
        return f"{path}:Net"

    return write


@pytest.mark.parametrize(
    ("last", "change", "forward", "values", "expected"), TORCH_MISTAKES.values(), ids=TORCH_MISTAKES
)
def test_a_mistake_in_pytorch_is_found(
    torch_file: Any, last: str, change: str, forward: str, values: dict[str, Any], expected: str
) -> None:
    examined = doctor(torch_file(last, change, forward), blobs(), **{**VALUES, **values})
    assert expected in examined.kinds, of(examined)


def test_a_job_that_ends_while_its_loss_falls_is_found_and_a_longer_one_is_not() -> None:
    short = doctor(net(), blobs(), **{**VALUES, "epochs": 1, "lr": 0.002})
    assert short.kinds == ["length"]
    (finding,) = short.findings
    assert finding.evidence.startswith("after its 16 steps the loss is about 1.")
    assert finding.change.startswith("set epochs = 13 or more")
    assert doctor(net(), blobs(), **{**VALUES, "epochs": 13, "lr": 0.002}).is_healthy


def test_shuffled_labels_are_found_with_a_model_of_pytorch_and_a_healthy_one_gives_no_alarm(torch_file: Any) -> None:
    model = torch_file()
    assert "labels" in doctor(model, shuffled(), **VALUES).kinds
    healthy = doctor(model, blobs(), **VALUES)
    assert healthy.is_healthy, of(healthy)


def test_nothing_that_follows_from_a_mistake_is_found_besides_it() -> None:
    examined = doctor(net(nn.ReLU()), blobs(), **VALUES)
    assert examined.kinds == ["last-relu"]
