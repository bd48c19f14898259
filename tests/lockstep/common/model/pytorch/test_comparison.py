"""Whether two modules come from one call, and which call that was: what was drawn or trained does not count."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
comparison: Any = pytest.importorskip("lockstep.common.model.pytorch.comparison")
nn = torch.nn


def model_with(**values: Any) -> Any:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for name, value in values.items():
        setattr(model[0], name, value)
    return model


def difference(model: Any, other: Any) -> str:
    return "; ".join(comparison.differences(model, other))


class Unlike:
    """Equals nothing else."""


def test_what_was_drawn_trained_or_is_a_mode_is_no_difference() -> None:
    model = model_with()
    model(torch.ones(4, 3))
    with torch.no_grad():
        model[0].weight.add_(1)
    assert difference(model.eval(), model_with()) == ""


@pytest.mark.parametrize(
    "values",
    [
        {"own": 1},
        {"own": np.ones(3)},
        {"own": [torch.ones(3), np.ones(2)]},
        {"own": {"a": torch.ones(3)}},
        {"own": (1, "a", [None])},
        {"_own": [1, (2.0,)]},
    ],
)
def test_values_of_ones_own_that_are_equal_are_no_difference(values: dict[str, Any]) -> None:
    copies = ({name: copied(value) for name, value in values.items()} for _ in range(2))
    assert difference(*(model_with(**each) for each in copies)) == ""


def copied(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value.copy() if hasattr(value, "copy") else value


@pytest.mark.parametrize(
    ("here", "there", "text"),
    [
        (1, 2, "'0.own' is 1 in the model and 2 in a new one"),
        (1, 1.0, "'0.own' is 1 in the model and 1.0 in a new one"),
        (np.ones(2), np.zeros(2), "'0.own' is array([1., 1.]) in the model and array([0., 0.]) in a new one"),
        ([1, 2], [1], "'0.own' is [1, 2] in the model and [1] in a new one"),
        ((1, 2), (1, 3), "'0.own' is (1, 2) in the model and (1, 3) in a new one"),
        ({"a": 1}, {"b": 1}, "'0.own' is {'a': 1} in the model and {'b': 1} in a new one"),
        ({"a": 1}, {"a": 2}, "'0.own' is {'a': 1} in the model and {'a': 2} in a new one"),
        (torch.ones(2), torch.ones(3), "'0.own' is of shape (2,) in the model and of shape (3,) in a new one"),
        (torch.ones(2), torch.ones(2).int(), "'0.own' is of shape (2,) in the model and of shape (2,) in a new one"),
        (nn.ReLU(), nn.GELU(), "'0.own' is a ReLU in the model and a GELU in a new one"),
    ],
)
def test_values_of_ones_own_that_differ_are_named(here: Any, there: Any, text: str) -> None:
    assert difference(model_with(own=here), model_with(own=there)).partition("; ")[0] == text


def test_what_one_of_them_has_alone_is_named() -> None:
    for pair in ((model_with(own=1), model_with()), (model_with(), model_with(own=1))):
        assert difference(*pair) == "'0.own' is in the model and not in a new one, or the other way round"
    longer = nn.Sequential(*model_with(), nn.ReLU())
    assert difference(longer, model_with()).startswith("'2' is in the model and not in a new one")


def test_private_objects_are_no_difference_and_public_ones_are() -> None:
    assert difference(model_with(_own=Unlike()), model_with(_own=Unlike())) == ""
    assert "'0.own' is <" in difference(model_with(own=Unlike()), model_with(own=Unlike()))
    shared = Unlike()
    assert difference(model_with(own=shared), model_with(own=shared)) == ""
    assert "'0._own'" in difference(model_with(_own=[1]), model_with(_own=[2]))


def test_hooks_frozen_parameters_and_ties_are_differences() -> None:
    hooked, frozen = model_with(), model_with()
    hooked[0].register_forward_hook(lambda *_: None)
    assert "'0._forward_hooks' is 1 in the model and 0 in a new one" in difference(hooked, model_with())
    frozen[0].bias.requires_grad_(False)
    assert difference(frozen, model_with()) == (
        "'0.bias' is of shape (2,), frozen, in the model and of shape (2,) in a new one"
    )
    tied, two = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    assert difference(tied, two) == ""
    tied[1].weight = tied[0].weight
    assert difference(tied, two) == "layers share parameters in the model, and others in a new one"
    two[1].weight = two[0].weight
    assert difference(tied, two) == ""


def expression(value: object, owner: str) -> str:
    assert owner  # errors name it
    return value.__name__ if isinstance(value, type) else repr(value)


class Halving(torch.nn.Module):  # type: ignore[misc]
    """A layer that holds its arguments."""

    def __init__(self, size: int, share: float = 0.5) -> None:
        super().__init__()
        self.size, self.share = size, share
        self.register_buffer("scale", torch.full((size,), share))


class Forgetting(Halving):
    """A layer whose buffer was changed, which its arguments do not show."""

    def __init__(self, size: int) -> None:
        super().__init__(size)


def forgetting() -> Any:
    made = Forgetting(2)
    made.scale.fill_(0.25)
    return made


class Hidden(torch.nn.Module):  # type: ignore[misc]
    """A layer that does not hold its argument."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)


def frozen_layer() -> Any:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (
            nn.Linear(3, 2, bias=False),
            "Linear(in_features=3, out_features=2, bias=False)",
        ),
        (nn.Linear(3, 2), "Linear(in_features=3, out_features=2, bias=True)"),
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.25)), "Sequential(ReLU(inplace=False), Dropout(p=0.25, inplace=False))"),
        (nn.ModuleList([nn.Tanh()]), "ModuleList([Tanh()])"),
        (
            nn.ModuleDict({"a": nn.Tanh()}),
            "ModuleDict(OrderedDict([('a', Tanh())]))",
        ),
        (
            nn.Sequential(OrderedDict([("a", nn.Tanh()), ("b", nn.Tanh())])),
            "Sequential(OrderedDict([('a', Tanh()), ('b', Tanh())]))",
        ),
        (Halving(2), "Halving(size=2, share=0.5)"),
        (Halving(3, 0.1), "Halving(size=3, share=0.1)"),
        (forgetting(), None),
        (Hidden(2), None),
        (nn.Sequential(nn.ReLU(), Hidden(2)), None),
    ],
)
def test_a_call_that_builds_a_module_is_found_or_none(model: Any, call: str | None) -> None:
    found = comparison.constructed(model, expression)
    assert found == (None if call is None else (call, {}))


def test_a_frozen_layer_is_built_and_frozen_again() -> None:
    found = comparison.constructed(nn.Sequential(nn.Linear(2, 2), frozen_layer()), expression)
    layer = "Linear(in_features=2, out_features=2, bias=True)"
    assert found == (f"Sequential({layer}, {layer})", {"1.weight": False, "1.bias": False})


def test_layers_that_share_a_parameter_have_no_call() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert comparison.constructed(tied, expression) is None
