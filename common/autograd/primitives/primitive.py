"""What a primitive is: a function on plain arrays with its derivatives beside it. Has never heard of `Tensor`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An array of numbers: float32 or float64 where a gradient flows, integers or booleans where they choose.
Array = NDArray[Any]

#: `(gradient of the result, saved, *arrays, **options) -> gradient of one argument`. It may have the result's
#: broadcast shape: the engine sums it down to the argument's shape, in one place for all primitives.
Derivative = Callable[..., Array]


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """A differentiable function on arrays.

    `forward(*arrays, **options)` returns the result; with `keeps`, it returns `(result, saved)`. Each derivative gets
    as `saved` that second value, or the result itself where the primitive keeps nothing else. A `None` in
    `derivatives` marks an argument that has no gradient (integer indices). There is one entry an array argument; where
    their number varies (concatenate), `derivatives` is a single function of `(index, gradient, saved, *arrays)`.
    """

    name: str
    forward: Callable[..., Any]
    derivatives: tuple[Derivative | None, ...] | Callable[..., Array]
    keeps: bool = False


def is_floating(array: Array) -> bool:
    """Tell whether a gradient can flow through `array`."""
    return bool(np.issubdtype(array.dtype, np.floating))
