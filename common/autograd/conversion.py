"""Turning what people write into arrays, with the checks on it."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from common.autograd.primitives.primitive import Array


def as_array(data: Any, dtype: DTypeLike | None = None) -> Array:
    """Return `data` as an array without copying one; numbers and lists of numbers become float32, of bools bool."""
    if isinstance(data, np.ndarray | np.generic) or hasattr(data, "__array__"):
        array = np.asarray(data, dtype)
    else:
        array = np.asarray(data)
        chosen = dtype if dtype is not None or array.dtype == np.bool_ else np.float32
        if array.dtype == np.object_ or array.dtype.kind in "USmM":
            raise TypeError(f"a tensor cannot hold {data!r}: expected numbers, or lists of them with equal lengths")
        array = np.asarray(array, chosen)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor cannot have dtype {array.dtype!s}: expected floats, integers or bools")
    return array


def require_floating(array: Array) -> None:
    """Raise RuntimeError for an array of a dtype that no gradient can have."""
    if array.dtype not in (np.float32, np.float64):
        raise RuntimeError(f"a tensor of dtype {array.dtype} cannot require a gradient: only float32 and float64 can")


def matching(gradient: Any, array: Array, name: str) -> Array:
    """Return `gradient` as an array; raise ValueError where its shape or dtype is not that of `array`."""
    found: Array = np.asarray(gradient)
    if found.shape != array.shape or found.dtype != array.dtype:
        raise ValueError(
            f"{name} has shape {found.shape} and dtype {found.dtype}: "
            f"must be those of the data, {array.shape} and {array.dtype}"
        )
    return found
