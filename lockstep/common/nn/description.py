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

from lockstep.common.errors import ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.common.nn.layers.containers import ModuleList, Sequential
from lockstep.common.nn.module import LAYERS, Module, Stochastic, arguments_of

#: Values of a described model: half a GiB of float32. A description comes from elsewhere, and is a few bytes long.
MAX_VALUES = 2**27

#: Characters of a described value in an error's text.
MOST_SHOWN = 200

#: Shows the beginning of a value: to format the whole of one as long as a header, and then to cut it, took megabytes.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 8
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100

#: Nested descriptions allowed in one that came from elsewhere.
MAX_DEPTH = 32

Description = TypedDict("Description", {"class": str, "args": list[Any], "kwargs": dict[str, Any]})


def is_describable(kind: type[Module]) -> bool:
    """Return whether a class is a layer of this library, so that its modules can be described."""
    return LAYERS.get(kind.__name__) is kind


def describe(module: Module) -> Description:
    """Return the description of `module` as it is now; arguments that equal their defaults are left out.

    It has sizes and no weights. Raises ModelError if a class is not a layer of Lockstep, or if a module with state is
    used in two places (two would be built).
    """
    places: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in places and _has_state(part):
            raise ModelError(
                f"the {type(part).__name__} at {places[id(part)]!r} is used again at {name!r}: expected a separate "
                "module in each place; to share weights, give the model as path/to/file.py:function"
            )
        places[id(part)] = name
    return _describe(module, "")


def build(description: Mapping[str, Any], *, most_values: int = MAX_VALUES) -> Module:
    """Return a new module, with parameters from the default generator.

    Nothing is built of a description that amounts to more than `most_values` values. Raises ModelError that explains
    the fault of the description.
    """
    values = count_values(description)
    if values > most_values:
        raise ModelError(f"the description of a model has {values:,} values: expected at most {most_values:,}")
    return _build(description, depth=0)


def _has_state(module: Module) -> bool:
    return any(isinstance(part, Stochastic) for part in module.modules()) or bool(module.state_dict())


def _describe(module: Module, name: str) -> Description:
    kind = type(module)
    if not is_describable(kind):
        where = f"the module at {name!r}" if name else "the model"
        raise ModelError(
            f"{where} is a {kind.__qualname__}, which cannot be described: expected only classes of lockstep.nn; "
            "give your own model as path/to/file.py:function"
        )
    if isinstance(module, Sequential | ModuleList):
        return {"class": kind.__name__, "args": _children(module, name), "kwargs": {}}
    return {"class": kind.__name__, "args": [], "kwargs": _arguments(module)}


def _children(container: Module, prefix: str) -> list[Any]:
    """Describe what a container holds, as `[name, description]` if the names are not just positions."""
    items = list(container.named_children(remove_duplicate=False))
    described = [_describe(child, f"{prefix}.{name}" if prefix else name) for name, child in items]
    names = [name for name, _ in items]
    if names == [str(i) for i in range(len(names))]:
        return list(described)
    return [[name, description] for name, description in zip(names, described, strict=True)]


def _arguments(module: Module) -> dict[str, Any]:
    """Return the constructor's arguments as data, without those that equal their defaults."""
    parameters = inspect.signature(type(module)).parameters
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments_of(module).items()}
    return {name: value for name, value in plain.items() if not _is_default(value, parameters[name].default)}


def _is_default(value: Any, default: Any) -> bool:
    return bool(value == default) or (isinstance(value, list) and all(size == default for size in value))


def count_values(description: object, depth: int = 0) -> int:
    """Return about how many values a described module will hold. Raises ModelError as `build` does."""
    if depth > MAX_DEPTH:
        raise ModelError(f"the description of a model is nested more than {MAX_DEPTH} deep: expected a flatter one")
    kind, args, kwargs = _checked(description)
    if issubclass(kind, Sequential | ModuleList):
        return sum(count_values(child, depth + 1) for _, child in _named(args))
    try:
        bound = inspect.signature(kind).bind(*args, **kwargs)
        bound.apply_defaults()
        return kind.count_values(bound.arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise _not_built(kind, args, kwargs, error) from error


def _not_built(kind: type[Module], args: list[Any], kwargs: dict[str, Any], error: Exception) -> ModelError:
    return ModelError(f"cannot build {kind.__name__} from {_shown(args)} and {_shown(kwargs)}: {one_line(str(error))}")


def _shown(value: object) -> str:
    """Return a value as a part of an error's text."""
    return one_line(_REPR.repr(value), MOST_SHOWN)


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
        raise ValueError(f"its modules are named {_shown(names)}: expected texts, each different")
    return {name: _build(description, depth + 1) for name, description in pairs}


def _argument(value: object) -> object:
    if isinstance(value, Mapping):
        raise TypeError(f"{_shown(value)} is not an argument of a layer: expected a number, text, bool or list")
    return tuple(value) if isinstance(value, list) else value


def _checked(description: object) -> tuple[type[Module], list[Any], dict[str, Any]]:
    """Return the class, its positional arguments and those by name."""
    if not isinstance(description, Mapping):
        raise ModelError(f"a module is described by {_shown(description)}: expected a table of class, args and kwargs")
    for key in description:
        if key not in ("class", "args", "kwargs"):
            raise ModelError(f"the description of a module has key {_shown(key)}: expected class, args and kwargs only")
    name, args, kwargs = description.get("class"), description.get("args", []), description.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict) or "rng" in kwargs:
        raise ModelError(
            f"{_shown(name)} has args {_shown(args)} and kwargs {_shown(kwargs)}: "
            "expected a list and a table without rng"
        )
    if not isinstance(name, str) or name not in LAYERS:
        nearest = difflib.get_close_matches(_shown(name), LAYERS, n=1, cutoff=0.0)[0]
        raise ModelError(
            f"unknown module class {_shown(name)}: expected a class of lockstep.nn; did you mean {nearest!r}?"
        )
    return LAYERS[name], args, kwargs
