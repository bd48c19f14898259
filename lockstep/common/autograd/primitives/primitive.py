"""Primitives: functions on plain arrays, with their derivatives next to them. Does not know `Tensor`."""

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


#: Stands for the result itself among the indices of `Primitive.reads`.
RESULT = -1


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """A differentiable function on arrays.

    `forward(*arrays, **options)` returns the result; with `keeps`, it returns `(result, saved)`. Each derivative gets
    as `saved` that second value, or the result itself if the primitive keeps nothing else. A `None` in
    `derivatives` marks an argument that has no gradient (integer indices). There is one entry per array argument; if
    their number varies (concatenate), `derivatives` is a single function of `(index, gradient, saved, *arrays)`.

    `reads` has for each derivative the indices of the arguments whose values it uses, with `RESULT` for the result if
    nothing else is saved; `None` means all. A derivative gets `None` for whatever no wanted derivative reads: the graph
    keeps no such array alive, and it may be changed in place.

    `writes` are the indices of the arguments whose derivative takes `out=`, an array of the argument's shape and dtype
    which it fills and returns: a parameter's gradient then lands in its buffer without a copy.

    The forward and the derivatives make the same calls of NumPy for all arrays of the same shapes, which a tape can
    record: they are leaves, ufuncs of elements and their `reduce` (`np.asanyarray`, not `np.asarray`, between them),
    `np.empty_like`, `np.zeros_like` and `np.copyto` of what they were given, and views of it. Then several
    micro-batches are computed at once, call by call. Those of an `is_opaque` primitive may be any calls: it is called
    for one micro-batch after the other.
    """

    name: str
    forward: Callable[..., Any]
    derivatives: tuple[Derivative | None, ...] | Callable[..., Array]
    keeps: bool = False
    reads: tuple[tuple[int, ...], ...] | None = None
    writes: tuple[int, ...] = ()
    is_opaque: bool = False

    def __post_init__(self) -> None:
        """Raise TypeError unless `reads` has one tuple per derivative."""
        reads, count = self.reads, len(self.derivatives) if isinstance(self.derivatives, tuple) else 0
        if reads is not None and (len(reads) != count or not all(isinstance(each, tuple) for each in reads)):
            raise TypeError(f"reads of {self.name!r} is {reads!r}: expected {count} tuples, one for each derivative")


@dataclass(eq=False, slots=True)
class Sink:
    """Gets the statistics of each batch that is normalised by them: mean, variance, and the shape of the batch."""

    #: Called with them; if it is None, they stay here.
    put: Callable[[Array, Array, tuple[int, ...]], None] | None = None
    last: tuple[Array, Array, tuple[int, ...]] | None = None

    def observe(self, mean: Array, var: Array, shape: tuple[int, ...]) -> None:
        if self.put is None:
            self.last = mean, var, shape
        else:
            self.put(mean, var, shape)


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
