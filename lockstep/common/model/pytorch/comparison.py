"""Compares two modules of PyTorch: are they of the same constructor call, and of which one?

Drawn or trained values may differ.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lockstep.common.model.likeness import differences as unlike
from lockstep.common.model.pytorch.state import bytes_of


def differences(model: Any, other: Any) -> Iterator[str]:
    """Yield the parts of one of the modules only, or of both and unlike."""
    yield from unlike(dict(_parts(model)), dict(_parts(other)), _judged, _shown)
    if _ties(model) != _ties(other):
        yield "layers share parameters in the model, and others in a new one"


def first_difference(model: Any, other: Any) -> str | None:
    """Return in what the modules are unlike, or None; freeze the parameters of the other one as the model's.

    A frozen parameter is named last, as no argument decides it: it would hide the argument that is missing.
    """
    found = list(differences(model, other))
    _frozen_alike(model, other)
    return next(differences(model, other), found[0] if found else None)


def unkept_arguments(model: Any) -> list[str]:
    """Return the arguments of a module's class that the module does not hold under their names."""
    parameters = list(inspect.signature(type(model).__init__).parameters.values())[1:]
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return [name for name in named if not hasattr(model, name)]


def _parts(model: Any) -> Iterator[tuple[str, object]]:
    for prefix, layer in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for key, value in vars(layer).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                yield f"{start}{key}", len(value)
            elif key not in vars(torch.nn.Module()) and (not key.startswith("_") or _is_plain(value)):
                yield f"{start}{key}", value
        for parts in (layer._parameters, layer._buffers, layer._modules):
            for key, value in parts.items():
                yield f"{start}{key}", value


def _ties(model: Any) -> dict[str, str]:
    """Return for each parameter that has several names the first of them, by the others."""
    first: dict[int, str] = {}
    found = ((name, first.setdefault(id(each), name)) for name, each in model.named_parameters(remove_duplicate=False))
    return {name: other for name, other in found if name != other}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _judged(here: Any, there: Any) -> bool | None:
    if isinstance(here, torch.Tensor):
        return bool((here.shape, here.dtype, here.requires_grad) == (there.shape, there.dtype, there.requires_grad))
    return True if isinstance(here, torch.nn.Module) else None  # its own parts are looked at


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        is_frozen = isinstance(value, torch.nn.Parameter) and not value.requires_grad
        return f"of shape {tuple(value.shape)}{', frozen,' if is_frozen else ''}"
    return f"a {type(value).__name__}" if isinstance(value, torch.nn.Module) else repr(value)


#: Returns an expression for a value of a user.
Expression = Callable[[object, str], str]

#: Arguments that layers do not keep: where a layer is, and of which type.
UNKEPT = ("self", "device", "dtype")


def constructed(model: Any, expression: Expression) -> tuple[str, Mapping[str, bool]] | None:
    """Return a call that builds a module like this one; None if its layers do not show what they were built with.

    The call was made, and its result compared. The mapping has `requires_grad` of parameters, by name, if that differs
    from the result of the call.
    """
    requires_grad: dict[str, bool] = {}
    call, again = _call(model, expression, "", requires_grad)
    if call is None or any(True for _ in differences(model, again)):
        return None
    return call, requires_grad


def _call(layer: Any, expression: Expression, prefix: str, requires_grad: dict[str, bool]) -> tuple[str | None, Any]:
    """Return the call that builds a layer, and a layer that was built so, whose parameters are frozen as the layer's.

    `requires_grad` gets those that are not so by the call alone, by their names after the prefix.
    """
    name = expression(type(layer), "the model")
    if type(layer) in (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict):
        return _container(layer, name, expression, prefix, requires_grad)
    given = _arguments(layer)
    try:
        again = type(layer)(**given)
    except Exception:  # noqa: BLE001  # a class of a user may raise anything
        return None, None
    requires_grad |= {f"{prefix}{key}": value for key, value in _frozen_alike(layer, again).items()}
    if any(True for _ in differences(layer, again)) or not _has_same_constants(layer, again):
        return None, None
    return f"{name}({', '.join(f'{key}={expression(value, name)}' for key, value in given.items())})", again


def _frozen_alike(layer: Any, again: Any) -> dict[str, bool]:
    """Freeze the parameters that are frozen in the layer, and nothing else; return the changes."""
    found = dict(again.named_parameters())
    changed = {
        key: parameter.requires_grad
        for key, parameter in layer.named_parameters()
        if key in found and found[key].requires_grad != parameter.requires_grad
    }
    for key, value in changed.items():
        found[key].requires_grad = value
    return changed


def _arguments(layer: Any) -> dict[str, object]:
    """Return the arguments of a layer's class that it holds under their names, as most layers do."""
    given: dict[str, object] = {}
    for name, parameter in inspect.signature(type(layer).__init__).parameters.items():
        if name not in UNKEPT and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and hasattr(layer, name):
            value = getattr(layer, name)
            if isinstance(parameter.default, bool) and (value is None or isinstance(value, torch.Tensor)):
                given[name] = value is not None  # as `bias`
            elif not isinstance(value, torch.Tensor | torch.nn.Module):
                given[name] = value
    return given


def _has_same_constants(layer: Any, again: Any) -> bool:
    """Tell whether a user's layer holds the same in its buffers, which may come from its arguments."""
    if type(layer).__module__.partition(".")[0] == "torch":
        return True
    pairs = ((layer._buffers[name], again._buffers[name]) for name in layer._buffers)
    return all(one is other is None or bytes_of(one) == bytes_of(other) for one, other in pairs)


def _container(
    layer: Any, name: str, expression: Expression, prefix: str, requires_grad: dict[str, bool]
) -> tuple[str | None, Any]:
    calls, again = dict[str, str](), dict[str, Any]()
    for key, part in layer._modules.items():
        call, again[key] = _call(part, expression, f"{prefix}{key}.", requires_grad)
        if call is None:
            return None, None
        calls[key] = call
    if isinstance(layer, torch.nn.ModuleList):
        return f"{name}([{', '.join(calls.values())}])", torch.nn.ModuleList(again.values())
    if isinstance(layer, torch.nn.Sequential) and list(calls) == list(map(str, range(len(calls)))):
        return f"{name}({', '.join(calls.values())})", torch.nn.Sequential(*again.values())
    named = ", ".join(f"({key!r}, {call})" for key, call in calls.items())
    return f"{name}({expression(OrderedDict, name)}([{named}]))", type(layer)(OrderedDict(again))
