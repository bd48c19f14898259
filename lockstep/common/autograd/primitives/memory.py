"""New arrays of primitives, made after those that they were given: so a tape knows them (see `Primitive`)."""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array

Shape = tuple[int, ...]


def empty(shape: Shape, like: Array, dtype: Any = None) -> Array:
    """Return a new array in C order, of the dtype of `like` if none is given; its contents have no meaning."""
    made: Array = np.empty_like(like, dtype, "C", shape=shape)
    return made


def zeros(shape: Shape, like: Array, dtype: Any = None) -> Array:
    """Return a new array of zeros in C order, of the dtype of `like` if none is given."""
    made: Array = np.zeros_like(like, dtype, "C", shape=shape)
    return made


def copied(x: Array, dtype: Any = None) -> Array:
    """Return a copy in C order."""
    made = empty(x.shape, x, dtype)
    np.copyto(made, x)
    return made


def contiguous(x: Array, dtype: Any = None) -> Array:
    """Return `x` in C order and of that dtype: itself, if it is so already, else a copy."""
    return x if x.flags.c_contiguous and dtype in (None, x.dtype) else copied(x, dtype)
