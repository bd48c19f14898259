"""Compares two models by their parts: are they of the same constructor call? Drawn or trained values may differ."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

#: Tells whether two parts of one type are alike; None for those of which it knows nothing.
Judge = Callable[[Any, Any], bool | None]


def differences(
    here: Mapping[str, object], there: Mapping[str, object], judge: Judge, shown: Callable[[object], str]
) -> Iterator[str]:
    """Yield the parts of one of two models only, or of both and unlike; `shown` describes a part."""
    for place in sorted(here.keys() | there.keys()):
        if place not in here or place not in there:
            yield f"{place!r} is in the model and not in a new one, or the other way round"
        elif not is_alike(here[place], there[place], judge):
            yield f"{place!r} is {shown(here[place])} in the model and {shown(there[place])} in a new one"


def is_alike(here: Any, there: Any, judge: Judge) -> bool:
    """Return whether two parts are alike, as `judge` has it, or by their values."""
    if type(here) is not type(there):
        return False
    if (judged := judge(here, there)) is not None:
        return judged
    if isinstance(here, np.ndarray):
        return np.array_equal(here, there)
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(is_alike(*pair, judge) for pair in zip(here, there, strict=True))
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(is_alike(value, there[key], judge) for key, value in here.items())
    return here is there or bool(here == there)
