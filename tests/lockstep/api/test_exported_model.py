"""A model of one's own is told by its source: what it uses comes with it, and what cannot come is named."""

import dataclasses
import linecache
import site
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lockstep import fit, nn
from lockstep.api.exported_model import (
    Model,
    ModelText,
    borrowed_names,
    check_rebuilt,
    exported,
    model_text,
    package_folders,
    text_of,
)
from lockstep.common.errors import ModelError
from lockstep.common.nn.module import Module
from tests.lockstep.api import zoo
from tests.lockstep.common.model.built import build_model
from tests.lockstep.tiny_data import tiny_arrays


def built(text: ModelText, folder: Path) -> Module:
    """Build a model as a worker does: from the file alone."""
    path = folder / "model.py"
    path.write_text(text.text)
    return build_model(f"{path}:{text.function}")


@pytest.mark.parametrize(
    "model",
    [
        zoo.Net(),
        zoo.Net,
        zoo.build,
        zoo.Noisy(),
        zoo.anonymous,
        zoo.local(),
        zoo.closed(),
        partial(zoo.Wide, 9),
        zoo.partial,
    ],
    ids=[
        "instance",
        "class",
        "function",
        "with a dropout",
        "lambda",
        "local class",
        "closure",
        "class with arguments",
        "layer with arguments",
    ],
)
def test_the_file_builds_the_model_alone(tmp_path: Path, model: Any) -> None:
    text = model_text(model)
    there, here = built(text, tmp_path), model if isinstance(model, Module) else model()
    assert {name: array.shape for name, array in there.state_dict().items()} == {
        name: array.shape for name, array in here.state_dict().items()
    }
    assert repr(there) == repr(here)


def test_the_text_is_what_is_needed_and_no_more() -> None:
    text = model_text(zoo.Net).text
    assert "class Block(layers.Module):" in text
    assert "Alias = Block" in text
    assert "@loud\nclass Net(Module):" in text
    assert "import lockstep.common.nn as layers\n" in text
    assert "from lockstep.common.nn.module import Module\n" in text
    assert text.index("class Block") < text.index("class Net")
    assert "Wide" not in text
    assert "SLOPES" not in text


def test_a_lambda_is_the_one_that_it_was_compiled_from() -> None:
    functions: list[Any] = zoo.several
    assert [text_of(each) for each in functions] == [
        "(lambda: [Net() for _ in range(2)][-1])",
        "(lambda: Net())", "(lambda: (lambda: Net())())", "(lambda n=1: None)",
    ]  # fmt: skip


def test_variables_around_a_function_come_with_their_values() -> None:
    text = model_text(zoo.closed()).text
    assert "width = 5\n" in text
    assert "doubled = (lambda x: x * factor)\n" in text
    assert text.index("factor = 2") < text.index("doubled = ") < text.index("def build")


def test_the_same_definitions_give_the_same_text() -> None:
    assert model_text(zoo.Net()) == model_text(zoo.Net())


def test_what_is_made_of_layers_is_told_as_data() -> None:
    assert exported(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))).text is None
    assert exported("mlp").value == "mlp"
    assert exported(zoo.Net()).value == "Net.py:build"


class Holding(Module):
    """Holds arrays in each way."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.table, self.listed, self.named = np.full(3, value), [np.full(2, value)], {"a": (np.full(2, value), 1)}


def test_a_class_that_holds_arrays_builds_the_same_each_time() -> None:
    check_rebuilt(Holding())
    for name in ("table", "listed", "named"):
        with pytest.raises(ModelError, match=f"'{name}' is .* in the model and .* in a new one"):
            check_rebuilt(_with(Holding(), name, getattr(Holding(2.0), name)))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another argument": (
        lambda: zoo.Wide(9),
        r"'out.bias' is of shape \(10,\) in the model and None in a new",
    ),
    "an attribute": (lambda: _with(zoo.Wide(), "width", 8), "'width' is 8 in the model and 7 in a new one"),
    "a needed argument": (
        lambda: zoo.Needy(3),
        r"Needy\(\) raised TypeError: .*: expected a model that Needy",
    ),
    "a name": (lambda: zoo.Lost(), "Lost uses 'nowhere', which is defined nowhere: define it, or import it"),
    "an array": (lambda: zoo.Arrayed(), "Arrayed uses 'SLOPES', a ndarray, which cannot be written down"),
    "a module": (
        lambda: zoo.Foreign(),
        "Foreign uses the module 'cells' from .*: pass its name 'tests.lockstep.api.zoo:Foreign' instead",
    ),
    "a module in a call": (lambda: partial(zoo.Foreign), "'cells' from .*: pass FILE.py:FUNCTION instead"),
    "a module in a lambda": (
        lambda: lambda: zoo.Foreign(),
        "'zoo' from .*: pass FILE.py:FUNCTION instead, of a file",
    ),
    "infinity": (lambda: zoo.infinite, "infinite uses 'ODD', a dict, which cannot be written down"),
    "no text": (lambda: zoo.Barely(), "the source of Bare cannot be had"),
    "another thing": (lambda: 3.5, "expected a Module, its class, or a function that returns it"),
    "data": (
        lambda: (np.zeros((60, 3)), {"y": np.zeros(60)}),
        r"is \(ndarray \(60, 3\), {'y': ndarray \(60,\)}\): .* fit",
    ),
    "lists": (lambda: [[[1.5] * 99] * 60, 3], r"is \(\(\[1.5, .*, …\), 3\): expected a Module"),
    "a container": (lambda: nn.Sequential(zoo.Block(3)), "the Sequential holds a Block of your own, and what that was"),
}


def _with(model: Module, name: str, value: object) -> Module:
    setattr(model, name, value)
    return model


@pytest.mark.parametrize(("model", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_named(model: Callable[[], Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        model_text(model())


FROZEN = {
    "data": (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "^the parameter '1.bias' is frozen, and the model is sent"),
    "text": (zoo.Net(), r"of shape \(10,\), frozen, in the model and of shape \(10,\) in a new one: .* `lambda: Net"),
}


@pytest.mark.parametrize(("model", "text"), FROZEN.values(), ids=FROZEN)
def test_a_parameter_that_is_frozen_is_named_if_what_is_sent_would_be_trained(model: Module, text: str) -> None:
    _, parameter = list(model.named_parameters())[-1]
    parameter.requires_grad = False
    with pytest.raises(ModelError, match=text):
        exported(model)


# As a notebook does it: cells that are no files, whose text only `linecache` has


def run_cell(text: str, names: dict[str, Any], number: int = 1) -> None:
    """Run a cell as IPython does."""
    name = f"/nowhere/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), names)


CELL = """
scale = 3
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)
    def forward(self, x):
        return self.linear(x.reshape(len(x.data), -1)) * scale
"""


@pytest.fixture
def notebook() -> dict[str, Any]:
    """Return the names of a notebook, as a module that has no file."""
    module = ModuleType("notebook_of_this_test")
    sys.modules[module.__name__] = module
    vars(module)["nn"] = nn
    return vars(module)


def test_a_class_of_a_cell_is_found_without_a_file(notebook: dict[str, Any]) -> None:
    run_cell(CELL, notebook)
    text = model_text(notebook["Net"]()).text
    assert "scale = 3\n" in text
    assert "import lockstep.common.nn as nn\n" in text


def test_a_class_that_was_defined_again_is_the_new_one(notebook: dict[str, Any]) -> None:
    run_cell(CELL, notebook)
    run_cell(CELL.replace("* scale", "* 5"), notebook, number=2)
    text = model_text(notebook["Net"]).text
    assert "* 5" in text
    assert "scale" not in text


def test_a_cell_that_changed_since_is_told(notebook: dict[str, Any]) -> None:
    run_cell(CELL, notebook)
    name = notebook["Net"].forward.__code__.co_filename
    linecache.cache[name] = (1, None, ["class Other: pass\n"], name)
    with pytest.raises(ModelError, match=r"the source of Net in .* has changed since it was run: run its cell again"):
        text_of(notebook["Net"])


EVALUATED = """
WIDTH, KIND = 24, nn.Tanh
def half(width=WIDTH // 2, *, scale=WIDTH):
    return width * scale
class Net(nn.Module):
    depth: int = WIDTH + 1  # ä
    ä, steps = 1, 2
    rest = 3
    def __init__(self, width=WIDTH, kind=KIND, sizes=(3, 4), inner=half, *, name="ä", scale = (-WIDTH)):
        super().__init__()
        self.linear, self.kind = nn.Linear(784, width), kind()
        self.all = [self.depth, width, sizes, inner(), name, scale, self.times(), WIDTH, self.rest]
    @staticmethod
    def times(factor=WIDTH):
        return factor
build = lambda width=WIDTH: Net(width)
def around(width):
    class Inner(Net):
        own = width
        def __init__(self, size=width): super().__init__(size)
    return Inner
Inner = around(WIDTH)
"""


@pytest.mark.parametrize("name", ["Net", "build", "Inner"])
def test_default_arguments_and_attributes_have_their_values_of_then(
    tmp_path: Path, notebook: dict[str, Any], name: str
) -> None:
    run_cell(EVALUATED, notebook)
    run_cell("WIDTH, KIND = 40, nn.ReLU\nNet.rest = 5", notebook, number=2)
    here = notebook[name]()
    there = built(model_text(notebook[name]), tmp_path)
    assert repr(there) == repr(here)
    assert vars(there)["all"] == [25, 24, (3, 4), 288, "ä", -24, 24, 40, 5] == vars(here)["all"]
    assert getattr(there, "own", 24) == getattr(here, "own", 24)


def test_what_has_its_value_is_sent_as_it_was_written(notebook: dict[str, Any]) -> None:
    cell = """@dataclasses.dataclass
class Net:
    width: int = dataclasses.field(default=3, repr=False)
    kind: type = nn.Tanh
    size = 2.5, -1
    def area(self, deep=scale, factor=1_000, where=None, made=lambda width: width + width, of=nn.Linear(2, 3), by=half):
        return factor
"""
    notebook["dataclasses"] = dataclasses
    half = "def half(x):\n    return x\n"
    run_cell("scale = 7\n" + half + cell + half, notebook)
    assert model_text(partial(notebook["Net"])).text.count(cell) == 1


def test_borrowed_names() -> None:
    text = """
class A(Base):
    x: Kind = first
    def f(self, y=second):
        z = [q for q in third]
        return __class__, z, print, A, y.attribute
"""
    assert borrowed_names(text) == ["Base", "Kind", "first", "second", "third"]


def test_two_things_of_one_name_are_told(notebook: dict[str, Any]) -> None:
    notebook["Block"], notebook["other_net"] = zoo.Block, zoo.Net
    run_cell("class Block(nn.Module):\n    def forward(self, x):\n        return x\n", notebook)
    run_cell("def build():\n    return nn.Sequential(Block(), other_net())\n", notebook, number=2)
    with pytest.raises(ModelError, match="uses a 'Block' that is not the one which another part of the model uses"):
        model_text(notebook["build"])


# Trained


def test_it_is_trained_and_loaded_again(tmp_path: Path) -> None:
    brief: dict[str, Any] = {"workers": 0, "epochs": 2, "global_batch": 32, "micro_batches": 4, "verbose": False}
    models: tuple[Model, ...] = (zoo.Net(), zoo.Net)
    runs = [fit(model, tiny_arrays(), run_dir=tmp_path / str(place), **brief) for place, model in enumerate(models)]
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    assert runs[0].model.eval().state_dict().keys() == zoo.Net().state_dict().keys()
    warm = fit(zoo.Net(), tiny_arrays(), run_dir=tmp_path / "warm", warm_start=True, **brief)
    assert warm.weights_sha256 != runs[0].weights_sha256


@pytest.mark.parametrize("kind", [zoo.Net, zoo.Tied])
def test_weights_that_were_changed_and_are_not_used_are_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: type[nn.Module]
) -> None:
    told = "the weights of the model are not used"
    brief: dict[str, Any] = {"workers": 0, "steps": 1, "global_batch": 32}
    trained = fit(kind(), tiny_arrays(), run_dir=tmp_path / "new", **brief).model
    assert told not in capfd.readouterr().out
    fit(trained, tiny_arrays(), run_dir=tmp_path / "trained", **brief)
    assert f"notice: {told}" in capfd.readouterr().out
    with pytest.warns(UserWarning, match=told) as warned:
        fit(trained, tiny_arrays(), run_dir=tmp_path / "silent", verbose=False, **brief)
    assert (warned[0].filename, capfd.readouterr().out) == (__file__, "")


def test_one_that_cannot_be_told_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        fit(zoo.Lost(), tiny_arrays(), run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_packages_of_the_system_are_installed_beside_those_of_an_environment() -> None:
    search = ["", "/home/me/project", "/usr/lib/python3/dist-packages", "/opt/base/lib/python3.13/site-packages"]
    folders = [str(folder) for folder in package_folders(search)]
    assert {*search[2:], *site.getsitepackages()} <= set(folders)
    assert not {*search[:2], "."} & set(folders)
