"""Which first weights keep units equal forever."""

from collections.abc import Callable

import numpy as np
import pytest

from lockstep.checking.checkup.checks.initial_values import check_initial_values
from lockstep.common import nn
from lockstep.common.autograd.primitives.primitive import Array


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
