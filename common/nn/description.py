"""A model as data that any process can build again: classes and constructor arguments, never code or weights.

    {"class": "Sequential", "args": [
        {"class": "Flatten", "args": [], "kwargs": {}},
        {"class": "Linear", "args": [], "kwargs": {"in_features": 784, "out_features": 10}}], "kwargs": {}}

JSON, msgpack and TOML carry it without loss: no null, no tuples, string keys. Only Lockstep's own classes can be
described, so that building what another process sent runs no code of that process. The rule that makes it work is
PyTorch's habit: a layer keeps each argument of its constructor in the attribute of the same name.
"""

import difflib
import inspect
import reprlib
from collections.abc import Mapping
from typing import Any, TypedDict

from common.errors import ModelError
from common.files.sanitize import one_line
from common.nn.described_size import MAX_VALUES, values_of
from common.nn.layers.activations import GELU, Identity, LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Softplus, Tanh
from common.nn.layers.attention import MultiheadAttention, TransformerEncoderLayer
from common.nn.layers.containers import ModuleList, Sequential
from common.nn.layers.convolution import Conv1d, Conv2d
from common.nn.layers.dropout import Dropout
from common.nn.layers.embedding import Embedding, PositionalEmbedding
from common.nn.layers.flatten import Flatten
from common.nn.layers.linear import Linear
from common.nn.layers.losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss, NLLLoss
from common.nn.layers.normalization import BatchNorm1d, BatchNorm2d, LayerNorm
from common.nn.layers.pooling import AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from common.nn.module import Module, Stochastic
from common.nn.parameter import Parameter

#: Characters of a described value in an error's text.
MOST_TOLD = 200

#: Tells the beginning of a value. To tell the whole of one as long as a header, and then to cut it, took megabytes.
_TELLER = reprlib.Repr()
_TELLER.maxlevel = 4
_TELLER.maxlist = _TELLER.maxtuple = _TELLER.maxdict = 8
_TELLER.maxstring = _TELLER.maxother = _TELLER.maxlong = 100

#: Nested descriptions allowed in one that came from elsewhere.
MAX_DEPTH = 32

Description = TypedDict("Description", {"class": str, "args": list[Any], "kwargs": dict[str, Any]})

_CLASSES: dict[str, type[Module]] = {
    kind.__name__: kind
    for kind in (
        *(Linear, Conv1d, Conv2d, Embedding, PositionalEmbedding, Flatten, Dropout),
        *(MultiheadAttention, TransformerEncoderLayer),
        *(MaxPool1d, MaxPool2d, AvgPool1d, AvgPool2d, AdaptiveAvgPool1d, AdaptiveAvgPool2d),
        *(BatchNorm1d, BatchNorm2d, LayerNorm),
        *(ReLU, LeakyReLU, GELU, Softplus, Tanh, Sigmoid, Softmax, LogSoftmax, Identity),
        *(Sequential, ModuleList),
        *(CrossEntropyLoss, NLLLoss, MSELoss, BCEWithLogitsLoss),
    )
}


def is_describable(kind: type[Module]) -> bool:
    """Tell whether a class is the library's own, so that its modules can be described."""
    return _CLASSES.get(kind.__name__) is kind


def describe(module: Module) -> Description:
    """Return the description of `module` as it is now; arguments that equal their defaults are left out.

    ModelError where a class is not Lockstep's own, or where a module with state is used in two places (two would be
    built).
    """
    places: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in places and _has_state(part):
            raise ModelError(
                f"the {type(part).__name__} at {places[id(part)]!r} is used again at {name!r}: expected a module of "
                "its own in each place; to share weights, give the model as path/to/file.py:function"
            )
        places[id(part)] = name
    return _describe(module, "")


def build(description: Mapping[str, Any], *, most_values: int = MAX_VALUES) -> Module:
    """Return a new module, with parameters from the default generator; ModelError says what is wrong with the data.

    Nothing is built of a description that comes to more than `most_values` values.
    """
    values = _values_of(description, depth=0)
    if values > most_values:
        raise ModelError(f"the description of a model comes to {values:,} values: expected at most {most_values:,}")
    return _build(description, depth=0)


def _has_state(module: Module) -> bool:
    return any(isinstance(part, Stochastic) for part in module.modules()) or bool(module.state_dict())


def _describe(module: Module, name: str) -> Description:
    kind = type(module)
    if _CLASSES.get(kind.__name__) is not kind:
        where = f"the module at {name!r}" if name else "the model"
        raise ModelError(
            f"{where} is a {kind.__qualname__}, which cannot be described: expected only classes of lockstep.nn; "
            "give a model of your own as path/to/file.py:function"
        )
    if isinstance(module, Sequential | ModuleList):
        return {"class": kind.__name__, "args": _children(module, name), "kwargs": {}}
    return {"class": kind.__name__, "args": [], "kwargs": _arguments(module)}


def _children(container: Module, prefix: str) -> list[Any]:
    """Describe what a container holds, as `[name, description]` where the names are not just positions."""
    items = list(container.named_children(remove_duplicate=False))
    described = [_describe(child, f"{prefix}.{name}" if prefix else name) for name, child in items]
    names = [name for name, _ in items]
    if names == [str(i) for i in range(len(names))]:
        return list(described)
    return [[name, description] for name, description in zip(names, described, strict=True)]


def _arguments(module: Module) -> dict[str, Any]:
    """Return the constructor's arguments, read from the attributes of the same names."""
    parameters = inspect.signature(type(module).__init__).parameters.values()
    values = {p.name: (getattr(module, p.name), p.default) for p in parameters if p.name not in ("self", "rng")}
    return {name: _plain(value) for name, (value, default) in values.items() if not _is_default(value, default)}


def _plain(value: Any) -> Any:
    """Return an argument as data. A `bias` is a parameter or None where the argument was True or False."""
    if value is None or isinstance(value, Parameter):
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _is_default(value: Any, default: Any) -> bool:
    plain = _plain(value)
    return bool(plain == default) or (isinstance(plain, list) and all(size == default for size in plain))


def _values_of(description: object, depth: int) -> int:
    """Return about how many values a described module will hold; errors as of `build`."""
    if depth > MAX_DEPTH:
        raise ModelError(f"the description of a model is nested more than {MAX_DEPTH} deep: expected a flatter one")
    kind, args, kwargs = _checked(description)
    if issubclass(kind, Sequential | ModuleList):
        return sum(_values_of(child, depth + 1) for _, child in _named(args))
    try:
        return values_of(kind, args, kwargs)
    except (TypeError, ValueError, KeyError) as error:
        raise _not_built(kind, args, kwargs, error) from error


def _not_built(kind: type[Module], args: list[Any], kwargs: dict[str, Any], error: Exception) -> ModelError:
    return ModelError(f"cannot build {kind.__name__} from {_told(args)} and {_told(kwargs)}: {one_line(str(error))}")


def _told(value: object) -> str:
    """Return a value as a part of an error's text."""
    return one_line(_TELLER.repr(value), MOST_TOLD)


def _build(description: object, depth: int) -> Module:
    kind, args, kwargs = _checked(description)
    try:
        if issubclass(kind, Sequential):
            return Sequential(_named_children(args, depth), **kwargs)
        if issubclass(kind, ModuleList):
            return ModuleList(_named_children(args, depth).values(), **kwargs)
        return kind(*map(_argument, args), **{name: _argument(value) for name, value in kwargs.items()})
    except (ArithmeticError, TypeError, ValueError, KeyError, MemoryError) as error:
        raise _not_built(kind, args, kwargs, error) from error


def _named(args: list[Any]) -> list[Any]:
    """Return the names and the descriptions of what a container holds; see `_children`."""
    return [arg if isinstance(arg, list) and len(arg) == 2 else (str(i), arg) for i, arg in enumerate(args)]


def _named_children(args: list[Any], depth: int) -> dict[str, Module]:
    """Build what a container holds."""
    pairs = _named(args)
    names = [name for name, _ in pairs]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"its modules are named {_told(names)}: expected texts, each different")
    return {name: _build(description, depth + 1) for name, description in pairs}


def _argument(value: object) -> object:
    if isinstance(value, Mapping):
        raise TypeError(f"{_told(value)} is no argument of a layer: expected a number, a text, a truth value or a list")
    return tuple(value) if isinstance(value, list) else value


def _checked(description: object) -> tuple[type[Module], list[Any], dict[str, Any]]:
    """Return the class, its positional arguments and those by name."""
    if not isinstance(description, Mapping):
        raise ModelError(f"a module is described by {_told(description)}: expected a table with class, args and kwargs")
    for key in description:
        if key not in ("class", "args", "kwargs"):
            raise ModelError(f"the description of a module has key {_told(key)}: expected class, args and kwargs only")
    name, args, kwargs = description.get("class"), description.get("args", []), description.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict) or "rng" in kwargs:
        raise ModelError(
            f"{_told(name)} has args {_told(args)} and kwargs {_told(kwargs)}: expected a list, and a table without rng"
        )
    if not isinstance(name, str) or name not in _CLASSES:
        nearest = difflib.get_close_matches(_told(name), _CLASSES, n=1, cutoff=0.0)[0]
        raise ModelError(
            f"unknown module class {_told(name)}: expected a class of lockstep.nn; did you mean {nearest!r}?"
        )
    return _CLASSES[name], args, kwargs
