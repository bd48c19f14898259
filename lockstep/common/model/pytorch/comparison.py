"""Whether two modules of PyTorch come from the same constructor call; what was drawn or trained may differ."""

from collections.abc import Iterator
from typing import Any

import torch

#: What does not show how a module was built.
PASSING = ("training",)


def differences(model: Any, other: Any) -> Iterator[str]:
    """Yield what is in one of the modules only, or in both and unlike."""
    here, there = dict(_parts(model)), dict(_parts(other))
    for place in sorted(here.keys() | there.keys()):
        if place not in here or place not in there:
            yield f"{place!r} is in the model and not in a new one, or the other way round"
        elif not _is_alike(here[place], there[place]):
            yield f"{place!r} is {_shown(here[place])} in the model and {_shown(there[place])} in a new one"


def _parts(model: Any) -> Iterator[tuple[str, object]]:
    for prefix, layer in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(layer).items() if not key.startswith("_") and key not in PASSING}
        for parts in (plain, layer._parameters, layer._buffers, layer._modules):
            for key, value in parts.items():
                yield (f"{prefix}.{key}" if prefix else key), value


def _is_alike(here: Any, there: Any) -> bool:
    if type(here) is not type(there):
        return False
    if isinstance(here, torch.Tensor):
        is_alike = here.shape == there.shape and here.dtype == there.dtype
        return bool(is_alike and here.requires_grad == there.requires_grad)
    if isinstance(here, torch.nn.Module):
        return True  # its own parts are looked at
    return here is there or bool(here == there)


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        is_frozen = isinstance(value, torch.nn.Parameter) and not value.requires_grad
        return f"of shape {tuple(value.shape)}{', frozen,' if is_frozen else ''}"
    return f"a {type(value).__name__}" if isinstance(value, torch.nn.Module) else repr(value)
