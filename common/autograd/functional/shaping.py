"""Changing the shape, joining and cutting, as functions."""

from collections.abc import Sequence
from typing import Any

from common.autograd.primitives import shape
from common.autograd.primitives.reduction import Axis
from common.autograd.tensor import Tensor, apply


def reshape(x: Any, sizes: Sequence[int]) -> Tensor:
    return apply(shape.reshape, x, shape=tuple(sizes))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merge the axes from `start_dim` to `end_dim`, both included."""
    return x.flatten(start_dim, end_dim)


def transpose(x: Any, dim0: int, dim1: int) -> Tensor:
    """Swap two axes."""
    return apply(shape.transpose, x, first=dim0, second=dim1)


def permute(x: Any, dims: Sequence[int]) -> Tensor:
    """Reorder all axes."""
    return apply(shape.permute, x, axes=tuple(dims))


def squeeze(x: Tensor, dim: Axis = None) -> Tensor:
    """Drop axes of size 1: all of them, or `dim` where its size is 1."""
    return x.squeeze(dim)


def unsqueeze(x: Any, dim: int) -> Tensor:
    """Insert an axis of size 1 at `dim`."""
    return apply(shape.unsqueeze, x, axis=dim)


def broadcast_to(x: Any, sizes: Sequence[int]) -> Tensor:
    """Repeat axes of size 1, without copying, until the shape is `sizes`."""
    return apply(shape.broadcast_to, x, shape=tuple(sizes))


def pad(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Frame with `value`; `pad` is PyTorch's: (before, after) of the last axis, then of the one before it, ..."""
    count = len(pad) // 2
    if len(pad) % 2 or count > x.ndim or any(each < 0 for each in pad):
        raise ValueError(f"pad is {pad!r} for shape {x.shape}: expected a (before, after) >= 0 for some last axes")
    last = [(pad[2 * index], pad[2 * index + 1]) for index in reversed(range(count))]
    return apply(shape.pad, x, widths=((0, 0),) * (x.ndim - count) + tuple(last), value=value)


def concatenate(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join along an axis that exists; PyTorch's `cat`."""
    return apply(shape.concatenate, *tensors, axis=dim)


cat = concatenate


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join along a new axis."""
    return apply(shape.stack, *tensors, axis=dim)


def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Cut along an axis into parts of one size, the last perhaps smaller, or of the sizes given."""
    whole = x.shape[dim]
    if isinstance(sizes, int):
        if sizes <= 0:
            raise ValueError(f"split size is {sizes!r}: must be at least 1")
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    if sum(sizes) != whole:
        raise ValueError(
            f"split sizes {list(sizes)!r} sum to {sum(sizes)}: must sum to {whole}, the size of axis {dim}"
        )
    before = (slice(None),) * (dim % x.ndim)
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return tuple(x[(*before, slice(end - size, end))] for end, size in zip(ends, sizes, strict=True))
