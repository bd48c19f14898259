"""What users may give in place of an array, of a shape and of axes. Does not know `Tensor`."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.primitives.reduction import Axis

#: Types, not their subclasses: `np.float64` is a `float`.
_TYPED_BY_HAND = frozenset({float, int, list, tuple})


def sizes_of(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes that were given one by one, or as one tuple or list."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def either(axis: Axis, dim: Axis) -> Axis:
    """Return the axis under whichever name it was given; PyTorch's users pass lists too."""
    chosen = axis if dim is None else dim
    return tuple(chosen) if isinstance(chosen, list) else chosen


def as_array(data: Any, dtype: DTypeLike | None = None) -> Array:
    """Return `data` as an array without copying one; numbers and lists of numbers become float32, of bools bool."""
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(
            f"a tensor cannot be made of these values: expected lists of the same length ({error})"
        ) from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor cannot hold {data!r}, dtype {array.dtype}: expected floats, integers or bools")
    if dtype is None and array.dtype.kind != "b" and type(data) in _TYPED_BY_HAND:
        # As PyTorch: numbers typed by hand have single precision, arrays from NumPy keep theirs.
        dtype = np.float32
    return np.asarray(array, dtype)


def as_operand(data: Any) -> Array | float:
    """Return `data` as something to compute with; `np.float64` numbers become Python's, which take the others' dtype.

    Otherwise one `np.sqrt(2)` would turn a float32 graph into a float64 one; PyTorch has the same rule.
    """
    return float(data) if isinstance(data, float) else as_array(data)


def require_floating(array: Array) -> None:
    """Raise RuntimeError for an array of a dtype that no gradient can have."""
    if array.dtype not in (np.float32, np.float64):
        raise RuntimeError(f"a tensor of dtype {array.dtype} cannot require a gradient: only float32 and float64 can")


def matching(gradient: Any, array: Array, name: str) -> Array:
    """Return `gradient` as an array; raise ValueError if its shape or dtype is not that of `array`."""
    found: Array = np.asarray(gradient)
    if found.shape != array.shape or found.dtype != array.dtype:
        raise ValueError(
            f"{name} has shape {found.shape} and dtype {found.dtype}: "
            f"must be those of the data, {array.shape} and {array.dtype}"
        )
    return found
