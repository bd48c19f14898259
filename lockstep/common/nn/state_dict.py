"""Copies a state dict into a module's arrays, all of it or nothing; does not know modules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The count of PyTorch's BatchNorm for its `momentum=None`, which Lockstep lacks: in a state dict, never needed.
_COUNTER = "num_batches_tracked"


class IncompatibleKeys(NamedTuple):
    """The keys that `load_state_dict(strict=False)` ignored."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(
    own: Mapping[str, NDArray[Any]], given: Mapping[str, ArrayLike], *, strict: bool, owner: str
) -> IncompatibleKeys:
    """Copy `given` into the arrays of `own` that have the same names; `owner` is what the error calls them.

    Raises RuntimeError, before anything is copied, that names every key whose shape differs and, if `strict`, every
    key that only one side has; TypeError if values are not numbers. PyTorch's `num_batches_tracked` is ignored.
    """
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own and not is_counter(key, own)]
    arrays = {
        key: np.asarray(given[key]).astype(own[key].dtype, casting="same_kind", copy=False)
        for key in own
        if key in given
    }
    problems = [
        f"{key!r} has shape {array.shape}, expected {own[key].shape}"
        for key, array in arrays.items()
        if array.shape != own[key].shape
    ]
    if strict:
        problems = [*_with_keys("missing keys", missing), *_with_keys("unexpected keys", unexpected), *problems]
    if problems:
        advice = "" if not strict else "; strict=False loads the keys that agree"
        raise RuntimeError(f"the state dict does not fit {owner}: {'; '.join(problems)}{advice}")
    for key, array in arrays.items():
        np.copyto(own[key], array)
    return IncompatibleKeys(missing, unexpected)


def is_counter(key: str, own: Mapping[str, object]) -> bool:
    """Tell whether a key is that of PyTorch's count of batches, next to a running mean of ours."""
    prefix, name = key[: -len(_COUNTER)], key[-len(_COUNTER) :]
    return name == _COUNTER and prefix + "running_mean" in own


def _with_keys(title: str, keys: list[str]) -> list[str]:
    return [f"{title}: {', '.join(map(repr, keys))}"] if keys else []
