"""Dead and saturated units, and sizes that explode or vanish, on both sides of each limit; without a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.checking.checkup.activations import (
    ModuleCall,
    Signals,
    check_activations,
    check_initial_values,
    check_norms,
)
from lockstep.common import nn
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor


def fill(value: float) -> Callable[[Array], object]:
    return lambda weight: weight.fill(value)


def repeat(weight: Array) -> None:
    weight[...] = weight[0]


@pytest.mark.parametrize(
    ("layer", "change", "what", "evidence"),
    [
        (0, fill(0.0), "all weights of 0 (Linear) are equal", "each of the 12 values of '0.weight' is zero"),
        (0, fill(0.5), "all weights of 0 (Linear) are equal", "each of the 12 values of '0.weight' is 0.5"),
        (0, fill(np.nan), "the weights of 0 (Linear) are not finite", "'0.weight' holds NaN or infinity"),
        (0, repeat, "all units of 0 (Linear) are equal", "the 3 rows of '0.weight' are equal"),
        (2, fill(0.0), "", ""),
        (2, repeat, "", ""),
        (2, fill(0.5), "all weights of 2 (Linear) are equal", "each of the 6 values of '2.weight' is 0.5"),
        (2, fill(np.inf), "the weights of 2 (Linear) are not finite", "'2.weight' holds NaN or infinity"),
    ],
)
def test_units_that_start_equal_are_found(
    layer: int, change: Callable[[Array], object], what: str, evidence: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).initialize(1)
    assert check_initial_values(model) == []
    change(dict(model.named_parameters())[f"{layer}.weight"].data)
    found = check_initial_values(model)
    assert [(finding.what, finding.evidence) for finding in found] == [(what, evidence)] * bool(what)
    if "0.5" in evidence or "zero" in evidence:
        inputs = 4 if layer == 0 else 3
        assert f"deviation {np.sqrt(2 / inputs):.3g} = sqrt(2 / {inputs})" in found[0].change


def test_the_inputs_of_a_kernel_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Linear(3, 2)).initialize(1)
    dict(model.named_parameters())["0.weight"].data.fill(1.0)
    (finding,) = check_initial_values(model)
    assert "sqrt(2 / 50)" in finding.change


def test_a_layer_with_one_unit_has_no_equal_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2), nn.Linear(2, 2)).initialize(1)
    weights = dict(model.named_parameters())
    weights["0.weight"].data.fill(0.5)
    assert check_initial_values(model) == []
    weights["1.weight"].data.fill(0.5)
    assert [finding.kind for finding in check_initial_values(model)] == ["equal-weights"]


def test_a_parameter_of_the_model_itself_is_named_by_its_name() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(np.ones((3, 2), np.float32))
            self.last = nn.Linear(2, 2)

    (finding,) = check_initial_values(Bare().train())
    assert finding.evidence == "each of the 6 values of 'table' is 1"


def signals(*calls: ModuleCall, **values: Any) -> Signals:
    given: dict[str, Any] = {"loss": 1.0, "outputs": np.zeros((7, 3)), "classes": 3, "guess": 0.0, "input_size": 2.0}
    return Signals(**{**given, "calls": list(calls), "gradients": [], "nonfinite": None, **values})


def call(*applied: tuple[str, NDArray[Any]], output: Any = None, name: str = "1") -> ModuleCall:
    return ModuleCall(name, nn.ReLU(), (), {}, output, list(applied))


def units(values: list[float], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array in which each unit, along the second axis, has a value at one of its places, 0 elsewhere."""
    made = np.zeros((shape[0], len(values), *shape[1:]), np.float32)
    made.reshape(shape[0], len(values), -1)[-1, :, 0] = values
    return made


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
@pytest.mark.parametrize(("dead", "is_found"), [(2, False), (3, True), (4, True)])
def test_most_units_of_a_layer_are_alive(shape: tuple[int, ...], dead: int, is_found: bool) -> None:
    found = check_activations(signals(call(("relu", units([0.5] * (4 - dead) + [0.0] * dead, shape)))))
    assert [finding.kind for finding in found] == ["dead-relu"] * is_found
    for finding in found:
        assert finding.what == f"{dead} of 4 ReLUs of 1 (ReLU) are dead"
        assert "all of 7 training samples" in str(finding)


def test_a_vector_has_no_units() -> None:
    assert check_activations(signals(call(("relu", np.zeros(5, np.float32))))) == []


@pytest.mark.parametrize(
    ("primitive", "low", "high", "ends"),
    [
        *(("tanh", 0.974, 0.976, "-1 or 1"), ("tanh", -0.974, -0.976, "-1 or 1")),
        *(("sigmoid", 0.98, 0.99, "0 or 1"), ("sigmoid", 0.02, 0.01, "0 or 1")),
    ],
)
def test_most_of_a_layer_is_not_flat(primitive: str, low: float, high: float, ends: str) -> None:
    half = np.array([[high, high, low, low]], np.float32)
    more = np.array([[high, high, high, low]], np.float32)
    assert check_activations(signals(call((primitive, half)))) == []
    (finding,) = check_activations(signals(call((primitive, more))))
    assert finding.kind == "saturated"
    assert f"near {ends}" in str(finding)
    assert "75%" in str(finding)


def test_each_layer_is_looked_at_and_other_functions_are_not() -> None:
    dead, flat = units([0.0, 0.0], (5,)), np.ones((5, 2), np.float32)
    calls = call(("relu", dead), ("exp", flat), ("tanh", flat)), call(("relu", dead))
    assert [each.kind for each in check_activations(signals(*calls))] == ["dead-relu", "saturated", "dead-relu"]


@pytest.mark.parametrize(("size", "text"), [(1.999e4, ""), (2.001e4, "at 1 (ReLU) they are 1e+04 times the input")])
def test_activations_do_not_explode(size: float, text: str) -> None:
    outputs = [Tensor(np.full((2, 2), value, np.float32)) for value in (1.0, size)]
    calls = [call(output=output, name=str(place)) for place, output in enumerate(outputs)]
    found = check_norms(signals(call(output=(1, 2)), *calls, *(calls if text else [])))
    assert [finding.what for finding in found] == [f"the activations explode: {text}"] * bool(text)
    assert [finding.evidence for finding in found] == ["their size is 2e+04; the size of the samples is 2"] * len(found)


def test_what_is_no_tensor_has_no_size() -> None:
    assert check_norms(signals(call(output=(1, 2)), input_size=1e-5)) == []


def test_samples_of_zeros_count_as_1() -> None:
    grown = call(output=Tensor(np.full((2, 2), 1.01e4, np.float32)))
    assert [finding.kind for finding in check_norms(signals(grown, input_size=0.0))] == ["exploding"]
    assert check_norms(signals(grown, input_size=1.02)) == []


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ([1.0, 5.0, 0.999e4], ""),
        ([1.0, 5.0, 1.001e4], "'a' is 1e+04 times smaller than the gradient of 'c'"),
        ([0.999e4, 5.0, 1.0], ""),
        ([1.001e4, 5.0, 1.0], "'a' is 1e+04 times larger than the gradient of 'c'"),
        ([1.0, 1e9, 1.0], ""),
        ([4e5, 1.0, 2.0], "'a' is 2e+05 times larger than the gradient of 'c'"),
        ([2.0, 1.0, 4e5], "'a' is 2e+05 times smaller than the gradient of 'c'"),
        ([1e9], ""),
        ([1.0, 1e4], ""),
        ([1e4, 1.0], ""),
        ([1.0, 2e4], "'a' is 2e+04 times smaller than the gradient of 'b'"),
        ([None, 1.0, 2e4], "'b' is 2e+04 times smaller than the gradient of 'c'"),
        ([0.0, 4e4, 1.0, None], "'b' is 4e+04 times larger than the gradient of 'c'"),
    ],
)
def test_gradients_have_one_size(sizes: list[float | None], text: str) -> None:
    found = check_norms(signals(gradients=list(zip("abcd", sizes, strict=False))))
    assert [finding.evidence for finding in found] == [f"the gradient of {text}"] * bool(text)
    assert [finding.kind for finding in found] == ["vanishing" if "smaller" in text else "exploding"] * len(found)


def test_what_is_not_finite_is_all_that_is_named() -> None:
    found = check_norms(signals(nonfinite="2 (Linear)", gradients=[("a", 1.0), ("b", 1e9)]))
    assert [finding.kind for finding in found] == ["not-finite"]
    assert "2 (Linear)" in str(found[0])
