"""What a model does as a list of primitives; whatever leaves them is refused."""

import numpy as np
import pytest

from lockstep import F, Tensor, nn
from lockstep.common.errors import ModelError
from lockstep.results.evaluation.onnx_graph import ANY, INPUT, trace_of

SAMPLES = np.linspace(-1, 1, 3 * 8, dtype=np.float32).reshape(3, 1, 2, 4)


def test_operands_are_the_input_results_weights_and_constants() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) * 2

    trace = trace_of(Net().eval(), SAMPLES)
    assert [step.primitive for step in trace.steps] == ["reshape", "linear", "multiply"]
    reshape, linear, multiply = trace.steps
    assert reshape.operands == (INPUT,)
    assert reshape.shape == (ANY, 8)
    assert linear.operands == (reshape.result, "linear.weight", "linear.bias")
    assert multiply.operands == (linear.result, 2)
    assert trace.output == multiply.result
    assert trace.shape == (ANY, 3)


def test_nothing_in_the_model_changes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3)).eval()
    before = model.state_dict()
    trace_of(model, SAMPLES)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


class ByNumPy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(Tensor(np.sin(x.data)))


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() if x.data.shape[0] == 2 else x.exp().log()


class ByCount(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: len(x.data), 0]


class OutOfNothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Tensor(np.zeros((len(x), 2)))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ByNumPy(), "applies 'relu' to numbers that depend on the samples not only through primitives"),
        (ByValue(), "takes other steps for other samples"),
        (ByCount(), "gives 'index' an option that depends on the number of samples"),
        (OutOfNothing(), "the model's output does not come from its primitives"),
    ],
)
def test_what_is_no_graph_of_primitives_is_refused(model: nn.Module, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        trace_of(model, SAMPLES)
