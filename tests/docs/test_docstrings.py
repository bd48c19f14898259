"""Every public name explains itself: what it does, its shapes or units, what it raises, how it differs from PyTorch."""

import ast
import doctest
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lockstep
from docs.generators.public_api import difference, functions_of, members_of
from lockstep import F, nn, optim
from lockstep.common.nn.module import LAYERS
from tests.docs import words
from tests.docs.prose import passages_of_markdown

#: What names a shape, or the unit of a number.
SHAPE_OR_UNIT = re.compile(
    r"shape|\([^()]*,[^()]*\)|element by element|second|epoch|steps?\b|pixels|digits|share|bytes|number|rate",
    re.IGNORECASE,
)

#: What names the errors.
ERRORS = re.compile(r"\b[Rr]aises?\b|\w+Error\b")

#: Arguments of PyTorch that nothing here has, as docs/reference/api/differences.md says, or that have other names.
GENERAL = {
    *("device", "dtype", "inplace", "out", "layout", "foreach", "capturable", "differentiable", "fused", "maximize"),
    *("size_average", "reduce", "input", "self", "params", "args", "kwargs", "defaults"),
}


@dataclass(frozen=True)
class Entry:
    """One public function, class, method or property."""

    name: str
    member: Any
    #: The class of a method or a property, whose text may explain it.
    owner: type | None = None

    @property
    def text(self) -> str:
        return inspect.getdoc(self.member) or "" if self.owner else inspect.cleandoc(self.own)

    @property
    def own(self) -> str:
        """The docstring itself, and not that of a class it inherits from."""
        return (vars(self.member).get("__doc__") if inspect.isclass(self.member) else self.member.__doc__) or ""

    @property
    def arguments(self) -> list[str]:
        is_error = inspect.isclass(self.member) and issubclass(self.member, BaseException)
        if is_error or isinstance(self.member, property) or not callable(self.member):
            return []
        return [name for name in inspect.signature(self.member).parameters if name not in ("self", "cls")]


def of_module(prefix: str, module: ModuleType) -> Iterator[Entry]:
    for name in functions_of(module):
        yield Entry(f"{prefix}.{name}", getattr(module, name))


def of_class(prefix: str, kind: type) -> Iterator[Entry]:
    yield Entry(prefix, kind)
    for name in members_of(kind):
        member = inspect.getattr_static(kind, name)
        yield Entry(f"{prefix}.{name}", getattr(member, "__func__", getattr(member, "func", member)), kind)


def of_names(prefix: str, module: ModuleType, names: list[str]) -> Iterator[Entry]:
    for name in names:
        member = getattr(module, name)
        if inspect.ismodule(member):
            continue
        if inspect.isclass(member):
            yield from of_class(f"{prefix}{name}", member)
        else:
            yield Entry(f"{prefix}{name}", member)


def entries() -> Iterator[Entry]:
    yield from of_names("", lockstep, lockstep.__all__)
    yield from of_names("nn.", nn, nn.__all__)
    yield from of_names("optim.", optim, optim.__all__)
    yield from of_module("F", F)
    for name in ("init", "models", "description", "inspection"):
        yield from of_module(f"nn.{name}", getattr(nn, name))


ENTRIES = list(entries())

#: Those that take whatever they are given, and do not look at it.
RAISE_NOTHING = (
    *("nn.Identity", "nn.Stochastic", "optim.Schedule", "nn.description.is_describable"),
    *("nn.init.constant_", "nn.init.zeros_", "nn.init.ones_"),
)

#: Those that take a path, a name or a description, and return what is not an array.
WITHOUT_SHAPES = (
    *("load_run", "nn.init.calculate_gain"),
    *("nn.description.is_describable", "nn.description.build", "nn.description.count_values"),
)


def complaints(entry: Entry) -> Iterator[str]:
    """Yield what is missing in the docstring of an entry."""
    first = entry.text.split("\n\n")[0].strip()
    if not first.endswith((".", ":")):
        yield f"{entry.name}: does not begin with a sentence: {first!r}"
        return
    text = " ".join([entry.text, *(inspect.getdoc(member) or "" for member in (entry.owner, *methods(entry.member)))])
    if not entry.owner and entry.arguments:
        if not SHAPE_OR_UNIT.search(text) and entry.name not in WITHOUT_SHAPES:
            yield f"{entry.name}: names no shape and no unit"
        if not ERRORS.search(text) and entry.name not in RAISE_NOTHING:
            yield f"{entry.name}: names no error"
    raised = raised_in(entry.member.fget if isinstance(entry.member, property) else entry.member)
    yield from (f"{entry.name}: does not name {name}, which it raises" for name in sorted(raised) if name not in text)


def methods(member: Any) -> list[Any]:
    return [inspect.getattr_static(member, name) for name in members_of(member)] if inspect.isclass(member) else []


def raised_in(member: Any) -> set[str]:
    """Return the classes of exceptions that a function, or the methods of a class, raise in their own lines."""
    functions = [member]
    if inspect.isclass(member):
        functions = [each for each in vars(member).values() if inspect.isfunction(each)]
    found = set()
    for function in functions:
        if not inspect.isfunction(function) or not function.__module__.startswith(("common.", "lockstep.")):
            continue
        if inspect.unwrap(function).__code__.co_filename.startswith("<"):  # made by a dataclass
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if name.endswith("Error"):
                    found.add(name)
    return found


def test_the_search_finds_what_there_is() -> None:
    """A search that finds nothing would pass all other tests."""
    names = {entry.name for entry in ENTRIES}
    assert len(names) == len(ENTRIES) > 230
    assert {
        "fit",
        "Run.test_accuracy",
        "Tensor.backward",
        "nn.Conv2d",
        "F.relu",
        "optim.Adam",
        "nn.Module.eval",
    } <= names


def test_every_public_name_explains_itself() -> None:
    assert [complaint for entry in ENTRIES for complaint in complaints(entry)] == []


def test_the_estimators_explain_themselves() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: .venv/bin/pip install -e '.[sklearn]'")
    import lockstep.sklearn as estimators

    found = list(of_names("sklearn.", estimators, estimators.__all__))
    assert len(found) > 8
    assert [complaint for entry in found for complaint in complaints(entry)] == []


def test_public_names_are_explained_in_words_that_are_read_once() -> None:
    passages = [passage for entry in ENTRIES for passage in passages_of_markdown(entry.text, entry.name)]
    assert [complaint for passage in passages for complaint in words.complaints(passage)] == []


WITH_EXAMPLES = [entry for entry in ENTRIES if ">>>" in entry.own]


@pytest.mark.parametrize("entry", WITH_EXAMPLES, ids=lambda entry: str(entry.name))
def test_its_example_is_true(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"np": np, **{name: getattr(lockstep, name) for name in lockstep.__all__}}
    test = doctest.DocTestParser().get_doctest(entry.own, names, entry.name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert said == []


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 15


def parameters_of(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if not name.startswith("_")}


def test_layers_name_the_arguments_of_pytorch_that_they_lack() -> None:
    torch = pytest.importorskip("torch")
    found = {}
    for name, kind in LAYERS.items():
        text, other = difference(kind.__doc__), getattr(torch.nn, name, None)
        lacking = parameters_of(other.__init__) - parameters_of(kind.__init__) - GENERAL if other else {"no such layer"}
        found[name] = {parameter for parameter in lacking if parameter not in text}
    assert {name: lacking for name, lacking in found.items() if lacking} == {}


def test_functions_name_what_pytorch_calls_otherwise() -> None:
    torch = pytest.importorskip("torch")
    found = {}
    for name in functions_of(F):
        text = difference(getattr(F, name).__doc__)
        other = getattr(torch.nn.functional, name, None) or getattr(torch, name, None)
        try:
            lacking = parameters_of(other) - parameters_of(getattr(F, name)) - GENERAL if other else {"PyTorch"}
        except ValueError:  # written in C++, without a signature that Python knows
            continue
        found[name] = {parameter for parameter in lacking if parameter not in text}
    assert {name: lacking for name, lacking in found.items() if lacking} == {}


# The tools themselves.


def test_what_is_missing_in_a_docstring_is_found() -> None:
    def bad(x: int) -> None:
        """Add something."""
        raise ValueError(x)

    bad.__module__ = "lockstep.common.bad"
    assert list(complaints(Entry("bad", bad))) == [
        "bad: names no shape and no unit",
        "bad: names no error",
        "bad: does not name ValueError, which it raises",
    ]
    bad.__doc__ = "Add numbers. Raises ValueError."
    assert list(complaints(Entry("bad", bad))) == []
    bad.__doc__ = None
    assert list(complaints(Entry("bad", bad))) == ["bad: does not begin with a sentence: ''"]


def test_what_differs_is_the_paragraph_that_says_so() -> None:
    assert difference("A.\n\nDiffers from PyTorch: there is\nno `x`.\n\nB.") == "There is no `x`."
    assert difference("A.") == ""
