"""What a model of PyTorch consists of, and what is refused with the reason and what to do."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.errors import ModelError
from lockstep.common.model.source import open_model, torch_model
from tests.lockstep.common.model.pytorch.jobs import NETS, model_of

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

nn = torch.nn


def test_the_layout_has_the_names_of_pytorch_in_its_order() -> None:
    model = open_model(f"{NETS}:cnn", 3)
    state = model.module.state_dict()
    names = [entry.name for entry in (*model.layout.parameters, *model.layout.statistics)]
    assert sorted(names) == sorted(name for name in state if not name.endswith("num_batches_tracked"))
    assert [entry.name for entry in model.layout.parameters] == [name for name, _ in model.module.named_parameters()]
    # Zeros are between the arrays.
    assert np.unique(model.momenta()).tolist() == pytest.approx([0.0, 0.1, 0.3])
    for name, array in model.layout.read(model.first_weights(3)).items():
        np.testing.assert_array_equal(array, state[name].numpy())


class Shared(nn.Module):  # type: ignore[misc, name-defined]
    """Weights that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(3.0))


def test_shared_weights_come_once_and_constants_not_at_all() -> None:
    model = torch_model(Shared())
    assert [entry.name for entry in model.layout.parameters] == ["first.weight", "first.bias", "second.bias"]
    assert not model.layout.statistics


def scripted() -> Any:
    with warnings.catch_warnings():
        # Deprecated since 2.15, and still in use.
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(2, 2))


def compiled_part() -> Any:
    model = nn.Linear(2, 2)
    model.helper = torch.compile(lambda x: x)
    return model


REFUSED = {
    "device": (lambda: nn.Linear(2, 2, device="meta"), r"the parameter 'weight' is on device 'meta': expected 'cpu'"),
    "buffer's device": (
        lambda: nn.BatchNorm1d(2).register_buffer("far", torch.zeros(1, device="meta")) or far(),
        r"the buffer 'far' is on device 'meta'",
    ),
    "half": (lambda: nn.Linear(2, 2).half(), r"'weight' is float16: expected float32"),
    "double": (lambda: nn.Sequential(nn.Linear(2, 2, dtype=torch.float64)), r"'0.weight' is float64"),
    "frozen": (lambda: nn.Linear(2, 2).requires_grad_(False), "all parameters of the model are frozen: expected"),
    "lazy": (lambda: nn.LazyLinear(3), r"'weight' has no shape yet"),
    "compiled": (
        lambda: torch.compile(nn.Linear(2, 2)),
        r"^the model is an OptimizedModule: expected the plain module",
    ),
    "compiled part": (compiled_part, r"torch.compile has compiled, 'helper'"),
    "replicated": (
        lambda: nn.DataParallel(nn.Linear(2, 2)),
        r"^the model is a DataParallel: expected the plain module",
    ),
    "script": (scripted, r"expected the plain module"),
    "synchronized": (lambda: nn.SyncBatchNorm(3), r"is a SyncBatchNorm"),
    "cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), r"momentum=None, whose average depends"),
    "observed": (
        lambda: nn.Sequential(nn.Linear(2, 2), torch.ao.quantization.FakeQuantize()),
        r"the module '1' is a FakeQuantize, which records the range",
    ),
    "frozen bfloat16": (
        lambda: with_frozen(torch.zeros(2, dtype=torch.bfloat16)),
        r"the frozen parameter 'fixed' is bfloat16, which NumPy and files of weights lack",
    ),
    "nothing": (lambda: nn.ReLU(), r"the model has no parameters"),
}


def with_frozen(value: Any) -> Any:
    model = nn.Linear(2, 2)
    model.fixed = nn.Parameter(value, requires_grad=False)
    return model


def test_a_frozen_parameter_may_be_of_whole_numbers() -> None:
    frozen = torch_model(with_frozen(torch.arange(3))).layout.frozen
    assert [(each.name, str(each.array.dtype)) for each in frozen] == [("fixed", "int64")]


def far() -> Any:
    model = nn.BatchNorm1d(2)
    model.register_buffer("far", torch.zeros(1, device="meta"))
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_named(what: str) -> None:
    build, text = REFUSED[what]
    with pytest.raises(ModelError, match=text) as raised:
        torch_model(build())  # type: ignore[no-untyped-call]  # a class of PyTorch
    assert "\n" not in str(raised.value)
    assert "expected" in str(raised.value)


def test_outputs_that_are_no_tensor_are_named(tmp_path: Path) -> None:
    model = model_of(tmp_path, "def build():\n    return nn.Sequential(nn.Flatten(), nn.LSTM(784, 10))\n")
    assert model.outputs(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 10)
    text = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(1, 1)\n"
    )
    model = model_of(tmp_path, f"{text}    def forward(self, x):\n        return 3\n\ndef build():\n    return Net()\n")
    with pytest.raises(ModelError, match="the model returned a int: expected a tensor of outputs"):
        model.outputs(np.zeros((2, 1, 28, 28), np.float32))
