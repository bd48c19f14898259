"""Descriptions: every class there and back through each format that carries one, and what is refused."""

import json
import tomllib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lockstep.common import nn
from lockstep.common.errors import ModelError
from lockstep.common.nn.description import MAX_DEPTH, build, count_values, describe
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module, layer
from tests.lockstep.common.nn.examples import ALL, label, public_classes


def toml(value: Any) -> str:
    """Write a value as TOML on one line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return json.dumps(value)


TRIPS: dict[str, Callable[[Any], Any]] = {
    "json": lambda data: json.loads(json.dumps(data)),
    "sorted json": lambda data: json.loads(json.dumps(data, sort_keys=True)),
    "msgpack": lambda data: msgspec.msgpack.decode(msgspec.msgpack.encode(data)),
    "toml": lambda data: tomllib.loads(f"model = {toml(data)}")["model"],
}


def test_every_public_class_can_be_described() -> None:
    described = {type(part) for module in ALL for part in build(describe(module)).modules()}
    assert described == public_classes()


@pytest.mark.parametrize("module", [*ALL, *(build() for build in MODELS.values())], ids=label)
def test_what_is_built_again_is_the_same(module: Module) -> None:
    description = describe(module)
    for name, trip in TRIPS.items():
        assert trip(description) == description, name
    again = build(description)
    assert repr(again) == repr(module)
    assert describe(again) == description
    assert {name: each.shape for name, each in again.state_dict().items()} == {
        name: each.shape for name, each in module.state_dict().items()
    }


@pytest.mark.parametrize("module", ALL, ids=label)
def test_a_layer_knows_how_many_values_it_will_hold(module: Module) -> None:
    counted = count_values(describe(module))
    held = sum(values.size for values in module.state_dict().values())
    assert abs(held - counted) <= 0.25 * counted + 64


def test_only_layers_of_the_library_are_registered() -> None:
    with pytest.raises(TypeError, match="expected a layer of this library"):
        layer(repeatable=True)(Own)
    with pytest.raises(TypeError, match="with a name of its own"):
        layer(repeatable=False)(nn.Linear)


def test_defaults_are_left_out_however_they_were_written() -> None:
    expected = {"class": "Conv2d", "args": [], "kwargs": {"in_channels": 1, "out_channels": 2, "kernel_size": [3, 3]}}
    assert describe(nn.Conv2d(1, 2, 3)) == expected
    assert describe(nn.Conv2d(1, 2, (3, 3), stride=(1, 1), padding=0, bias=True)) == expected


def test_a_generator_is_never_described() -> None:
    assert describe(nn.Dropout(0.3)) == {"class": "Dropout", "args": [], "kwargs": {"p": 0.3}}
    with pytest.raises(ModelError, match="expected a list and a table without rng"):
        build({"class": "Dropout", "kwargs": {"rng": 3}})


def test_the_description_is_of_the_model_as_it_is_now() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU())
    dropout = model[0]
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.1
    model[1] = nn.Tanh()
    assert repr(build(describe(model))) == repr(model)


def test_one_written_by_hand_may_leave_out_what_is_empty() -> None:
    built = build({"class": "Sequential", "args": [{"class": "Linear", "args": [4, 3]}, {"class": "ReLU"}]})
    assert repr(built) == repr(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))


def test_a_module_without_state_may_stand_in_two_places() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    again = build(describe(model))
    assert repr(again) == repr(model)
    theirs, ours = again.initialize(3).state_dict(), model.initialize(3).state_dict()
    assert all((theirs[name] == ours[name]).all() for name in ours)


@pytest.mark.parametrize("shared", [nn.Linear(4, 4), nn.Dropout()], ids=label)
def test_a_module_with_state_may_not(shared: Module) -> None:
    with pytest.raises(ModelError, match=r"at '0' is used again at '2': .*path/to/file\.py:function"):
        describe(nn.Sequential(shared, nn.ReLU(), shared))


class Own(nn.Linear):
    """Not Lockstep's, though its parent is."""


def test_a_class_of_ones_own_cannot_be_described() -> None:
    with pytest.raises(ModelError, match=r"the model is a Own, which cannot be described: .*path/to/file\.py:function"):
        describe(Own(2, 2))
    with pytest.raises(ModelError, match=r"the module at '0\.inner' is a Own"):
        describe(nn.Sequential(nn.Sequential({"inner": Own(2, 2)})))


def test_another_class_of_a_known_name_cannot_be_described() -> None:
    impostor = type("ReLU", (Module,), {})
    with pytest.raises(ModelError, match="cannot be described"):
        describe(impostor())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Linear", "a module is described by 'Linear': expected a table"),
        (None, "a module is described by None: expected a table"),
        ({"class": "Liner"}, "unknown module class 'Liner': .* did you mean 'Linear'"),
        ({"class": "os.system"}, "unknown module class 'os.system'"),
        ({"class": 3}, "unknown module class 3"),
        ({}, "unknown module class None"),
        ({"class": "Linear", "arguments": [3, 4]}, "has key 'arguments': expected class, args and kwargs only"),
        ({"class": "Linear", "args": 3}, "'Linear' has args 3"),
        ({"class": "Linear", "args": [3]}, r"cannot build Linear from \[3\] and \{\}: .*out_features"),
        ({"class": "Linear", "args": [3, 0]}, "out_features is 0: expected at least 1"),
        ({"class": "Linear", "args": [3, 4], "kwargs": {"biass": True}}, "biass"),
        ({"class": "Linear", "args": [{"class": "ReLU"}, 4]}, "is not an argument of a layer"),
        ({"class": "Dropout", "args": [1.5]}, r"dropout probability is 1.5: expected a number in \[0, 1\]"),
        ({"class": "Sequential", "args": [3]}, "a module is described by 3"),
        ({"class": "Sequential", "args": [["a.b", {"class": "ReLU"}]]}, "'a.b' cannot name a module"),
        (
            {"class": "Sequential", "args": [["a", {"class": "ReLU"}]] * 2},
            r"its modules are named \['a', 'a'\]: expected texts, each different",
        ),
        ({"class": "Sequential", "args": [[3, {"class": "ReLU"}]]}, r"its modules are named \[3\]: expected texts"),
        ({"class": "Sequential", "args": [[["a"], {"class": "ReLU"}]]}, "cannot build Sequential"),
        ({"class": "Sequential", "kwargs": {"x": 1}}, "cannot build Sequential"),
    ],
)
def test_wrong_data_is_told_in_one_line(data: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        build(data)
    assert "\n" not in str(caught.value)


def test_nesting_is_bounded() -> None:
    data: dict[str, Any] = {"class": "ReLU"}
    for _ in range(MAX_DEPTH):
        data = {"class": "Sequential", "args": [data]}
    build(data)
    with pytest.raises(ModelError, match=f"nested more than {MAX_DEPTH} deep"):
        build({"class": "Sequential", "args": [data]})
