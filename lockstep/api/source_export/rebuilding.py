"""Whether a class, called without arguments, builds the model that was given: what a file of its source would build."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import ModelError
from common.nn.module import Module, Parameter, RunningStatistic

#: What every module has of its own, and what tells nothing of how it was built.
PASSING = ("training", "rng", "_observers")


def check_rebuilt(model: Module) -> None:
    """Raise `ModelError` with the first thing in which the model differs from what its class alone builds."""
    name = type(model).__name__
    advice = f"expected a model that {name}() builds; give `fit` a function instead: `def build(): return {name}(...)`"
    try:
        other = type(model)()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{name}() raised {text}: {advice}") from error
    for odd in _differences(model, other):
        raise ModelError(f"{odd}: {advice}")


def _differences(model: Module, other: Module) -> Iterator[str]:
    here, there = dict(_attributes(model)), dict(_attributes(other))
    for place in sorted(here.keys() | there.keys()):
        if place not in here or place not in there:
            yield f"{place!r} is in the model and not in a new one, or the other way round"
        elif not _is_alike(here[place], there[place]):
            yield f"{place!r} is {_told(here[place])} in the model and {_told(there[place])} in a new one"


def _attributes(model: Module) -> Iterator[tuple[str, object]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name not in PASSING:
                yield f"{prefix}.{name}" if prefix else name, value


def _is_alike(here: Any, there: Any) -> bool:
    """Tell whether two attributes come from the same constructor call: what is drawn or trained may differ."""
    if type(here) is not type(there):
        return False
    if isinstance(here, Module):
        return True  # its own attributes are looked at
    if isinstance(here, Parameter):
        return bool(here.shape == there.shape)
    if isinstance(here, RunningStatistic):
        return bool(here.value.shape == there.value.shape)
    if isinstance(here, np.ndarray):
        return np.array_equal(here, there)
    return here is there or bool(here == there)


def _told(value: object) -> str:
    if isinstance(value, Parameter):
        return f"of shape {value.shape}"
    return f"a {type(value).__name__}" if isinstance(value, Module | np.ndarray) else repr(value)
