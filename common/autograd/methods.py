"""The methods of a tensor that compute: functions, reductions, changes of shape, in PyTorch's names."""

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from common.autograd.primitives import activation, elementwise, reduction, shape
from common.autograd.primitives.reduction import Axis

T = TypeVar("T")


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes that were given one by one, or as one tuple or list."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


class Methods(Generic[T]):
    """`axis` and `keepdims` are NumPy's names, `dim` and `keepdim` PyTorch's for the same; no axis means all."""

    __slots__ = ()

    #: `(primitive, *operands, **options) -> T`
    _apply: Callable[..., T]
    #: Declared here, made by the tensor.
    shape: tuple[int, ...]

    def exp(self) -> T:
        return self._apply(activation.exp, self)

    def log(self) -> T:
        return self._apply(activation.log, self)

    def sqrt(self) -> T:
        return self._apply(activation.sqrt, self)

    def tanh(self) -> T:
        return self._apply(activation.tanh, self)

    def sigmoid(self) -> T:
        return self._apply(activation.sigmoid, self)

    def relu(self) -> T:
        return self._apply(activation.relu, self)

    def clip(self, min: Any = None, max: Any = None) -> T:  # noqa: A002
        """Bound from below and above; the gradient passes where nothing was cut off."""
        return self._apply(elementwise.clip, self, low=min, high=max)

    #: PyTorch has both names.
    clamp = clip

    def sum(self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> T:
        return self._apply(reduction.reduce_sum, self, axis=_either(axis, dim), keepdims=keepdims or keepdim)

    def mean(self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> T:
        return self._apply(reduction.reduce_mean, self, axis=_either(axis, dim), keepdims=keepdims or keepdim)

    def max(self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> T:
        """Return the greatest elements, without their indices; those that tie share the gradient evenly."""
        return self._apply(reduction.reduce_max, self, axis=_either(axis, dim), keepdims=keepdims or keepdim)

    def min(self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> T:
        """Return the smallest elements, without their indices; those that tie share the gradient evenly."""
        return self._apply(reduction.reduce_min, self, axis=_either(axis, dim), keepdims=keepdims or keepdim)

    def var(
        self, axis: Axis = None, keepdims: bool = False, *, correction: int = 1, dim: Axis = None, keepdim: bool = False
    ) -> T:
        """Return the variance, divided by the count less `correction`: 1 is the unbiased one, PyTorch's default."""
        along, kept = _either(axis, dim), keepdims or keepdim
        return self._apply(reduction.variance, self, axis=along, correction=correction, keepdims=kept)

    def reshape(self, *sizes: Any) -> T:
        """Return the elements in another shape, one of whose sizes may be -1; a view where possible."""
        return self._apply(shape.reshape, self, shape=_sizes(sizes))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> T:
        """Merge the axes from `start_dim` to `end_dim`, both included."""
        sizes = self.shape or (1,)
        start, end = start_dim % len(sizes), end_dim % len(sizes)
        if start > end:
            raise ValueError(f"start_dim {start_dim!r} lies behind end_dim {end_dim!r} in shape {self.shape}")
        merged = (*sizes[:start], math.prod(sizes[start : end + 1]), *sizes[end + 1 :])
        return self._apply(shape.reshape, self, shape=merged)

    def transpose(self, dim0: int, dim1: int) -> T:
        """Swap two axes."""
        return self._apply(shape.transpose, self, first=dim0, second=dim1)

    def permute(self, *dims: Any) -> T:
        """Reorder all axes."""
        return self._apply(shape.permute, self, axes=_sizes(dims))

    def squeeze(self, dim: Axis = None) -> T:
        """Drop axes of size 1: all of them, or `dim` where its size is 1 (PyTorch's rule: others stay)."""
        if dim is not None:
            chosen = dim if isinstance(dim, tuple) else (dim,)
            dim = tuple(each for each in chosen if self.shape[each] == 1)
        return self._apply(shape.squeeze, self, axis=dim)

    def unsqueeze(self, dim: int) -> T:
        """Insert an axis of size 1 at `dim`."""
        return self._apply(shape.unsqueeze, self, axis=dim)

    def broadcast_to(self, *sizes: Any) -> T:
        """Repeat axes of size 1, without copying, until the shape is `sizes`."""
        return self._apply(shape.broadcast_to, self, shape=_sizes(sizes))

    # The last: below it, T is no longer the type.
    @property
    def T(self) -> T:  # noqa: N802
        """The tensor with its axes in reverse order."""
        return self._apply(shape.permute, self, axes=tuple(reversed(range(len(self.shape)))))


def _either(axis: Axis, dim: Axis) -> Axis:
    """Return the axis under whichever name it was given; PyTorch's users pass lists too."""
    chosen = axis if dim is None else dim
    return tuple(chosen) if isinstance(chosen, list) else chosen
