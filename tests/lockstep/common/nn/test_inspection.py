import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.inspection import first_nonfinite_layer
from lockstep.common.nn.module import Module
from tests.lockstep.common.nn.examples import rng

X = Tensor(rng().normal(size=(4, 3)).astype(np.float32))


def model_with(value: float, layer: str) -> nn.Sequential:
    """Return a model in which the bias of one layer is `value`."""
    model = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 2)
    )
    model.initialize(0)
    dict(model.named_parameters())[f"{layer}.bias"].data[...] = value
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_layer_in_order_of_execution_is_named(value: float) -> None:
    assert first_nonfinite_layer(model_with(value, "3.1"), X) == "3.1 (Linear)"


def test_a_finite_model_has_none() -> None:
    assert first_nonfinite_layer(model_with(1.0, "0"), X) is None


def test_an_overflow_is_found_without_a_warning() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    for parameter in model.parameters():
        parameter.data[...] = 3e38
    assert first_nonfinite_layer(model, Tensor(np.full((1, 3), 3e38, np.float32))) == "0 (Linear)"


def test_a_wrong_input_is_not_blamed_on_a_layer() -> None:
    assert first_nonfinite_layer(model_with(1.0, "0"), Tensor([[np.nan, 1, 2]])) == "the input"


def test_an_operation_between_layers_is_the_owners() -> None:
    class Log(Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).log()

    assert first_nonfinite_layer(Log(), X) == "Log"
    assert first_nonfinite_layer(nn.Sequential({"log": Log()}), X) == "log (Log)"


@pytest.mark.parametrize("is_observed", [False, True])
def test_nothing_in_the_model_changes(is_observed: bool) -> None:
    model = model_with(np.nan, "4")
    model.reseed(1, 2, 3)
    norm, dropout = model[1], model[2]
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(dropout, nn.Dropout)
    if is_observed:
        norm.running_mean.observed = np.full(3, 5, np.float32)
    before, drawn = model.state_dict(), repr(dropout.rng.bit_generator.state)
    first_nonfinite_layer(model, X)
    assert all(np.array_equal(array, before[name], equal_nan=True) for name, array in model.state_dict().items())
    assert repr(dropout.rng.bit_generator.state) == drawn
    assert norm.running_mean.observed is None or (norm.running_mean.observed == 5).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module._observers == () for module in model.modules())


def test_a_dropout_that_was_never_reseeded_leaves_the_default_generator_alone() -> None:
    model = nn.Sequential(nn.Dropout())
    nn.manual_seed(0)
    expected = model(X).data
    nn.manual_seed(0)
    first_nonfinite_layer(model, X)
    np.testing.assert_array_equal(model(X).data, expected)
