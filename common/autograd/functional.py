"""Everything that can be computed on tensors, as functions with PyTorch's names and arguments.

Arguments may be tensors, arrays or numbers; targets that are classes are integers: a tensor, an array or a list.
"""

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.autograd.primitives import (
    activation,
    elementwise,
    indexing,
    linear_algebra,
    losses,
    normalization,
    reduction,
    shape,
)
from common.autograd.primitives import softmax as softmax_primitives
from common.autograd.primitives.primitive import Array
from common.autograd.primitives.reduction import Axis
from common.autograd.primitives.spatial import average_pooling, convolution, pooling
from common.autograd.primitives.spatial.windows import Pair
from common.autograd.tensor import Tensor, apply

# Arithmetic, activations and reductions


def add(x: Any, other: Any) -> Tensor:
    return apply(elementwise.add, x, other)


def subtract(x: Any, other: Any) -> Tensor:
    return apply(elementwise.subtract, x, other)


def multiply(x: Any, other: Any) -> Tensor:
    return apply(elementwise.multiply, x, other)


def divide(x: Any, other: Any) -> Tensor:
    return apply(elementwise.divide, x, other)


def power(x: Any, exponent: Any) -> Tensor:
    return apply(elementwise.power, x, exponent)


def negate(x: Any) -> Tensor:
    return apply(elementwise.negate, x)


def abs(x: Any) -> Tensor:  # noqa: A001
    """Return the absolute value; at 0 its derivative is 0."""
    return apply(elementwise.absolute, x)


def maximum(x: Any, other: Any) -> Tensor:
    """Return the greater of the two, element by element; at a tie each gets half of the gradient."""
    return apply(elementwise.maximum, x, other)


def minimum(x: Any, other: Any) -> Tensor:
    """Return the smaller of the two, element by element; at a tie each gets half of the gradient."""
    return apply(elementwise.minimum, x, other)


def where(condition: Any, x: Any, other: Any) -> Tensor:
    """Return `x` where `condition` holds and `other` elsewhere."""
    return apply(elementwise.where, condition, x, other)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002
    """Bound from below and above; the gradient passes where nothing was cut off."""
    return apply(elementwise.clip, x, low=min, high=max)


clamp = clip


def matmul(x: Any, other: Any) -> Tensor:
    """Return `x @ other`, with vectors and batches as in NumPy."""
    return apply(linear_algebra.matmul, x, other)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Return `x @ weight.T + bias`: x (..., features), weight (out, features), bias (out,), result (..., out)."""
    return apply(linear_algebra.linear, x, weight, bias)


def exp(x: Any) -> Tensor:
    return apply(activation.exp, x)


def log(x: Any) -> Tensor:
    return apply(activation.log, x)


def sqrt(x: Any) -> Tensor:
    return apply(activation.sqrt, x)


def tanh(x: Any) -> Tensor:
    return apply(activation.tanh, x)


def sigmoid(x: Any) -> Tensor:
    return apply(activation.sigmoid, x)


def relu(x: Any) -> Tensor:
    return apply(activation.relu, x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    return apply(activation.leaky_relu, x, negative_slope=negative_slope)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """Return `x Phi(x)`, exactly, or with `approximate="tanh"` in the paper's tanh form (arXiv:1606.08415)."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}: must be 'none' or 'tanh'")
    return apply(activation.gelu if approximate == "none" else activation.gelu_tanh, x)


def softplus(x: Any, beta: float = 1.0) -> Tensor:
    """Return `log(1 + exp(beta x)) / beta`, for any x without overflow."""
    return apply(activation.softplus, x, beta=beta)


def sum(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    return apply(reduction.reduce_sum, x, axis=dim, keepdims=keepdim)


def mean(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:
    return apply(reduction.reduce_mean, x, axis=dim, keepdims=keepdim)


def max(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Return the greatest elements, without their indices; those that tie share the gradient evenly."""
    return apply(reduction.reduce_max, x, axis=dim, keepdims=keepdim)


def min(x: Any, dim: Axis = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Return the smallest elements, without their indices; those that tie share the gradient evenly."""
    return apply(reduction.reduce_min, x, axis=dim, keepdims=keepdim)


def var(x: Any, dim: Axis = None, keepdim: bool = False, correction: int = 1) -> Tensor:
    """Return the variance, divided by the count less `correction`: 1 is the unbiased one, PyTorch's default."""
    return apply(reduction.variance, x, axis=dim, correction=correction, keepdims=keepdim)


# Changing the shape, joining and cutting


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
    """Drop axes of size 1: all of them, or `dim` if its size is 1."""
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
        sizes = [builtins.min(sizes, whole - start) for start in range(0, whole, sizes)]
    if builtins.sum(sizes) != whole:
        raise ValueError(
            f"split sizes {list(sizes)!r} sum to {builtins.sum(sizes)}: must sum to {whole}, the size of axis {dim}"
        )
    before = (slice(None),) * (dim % x.ndim)
    ends = [builtins.sum(sizes[: index + 1]) for index in range(len(sizes))]
    return tuple(x[(*before, slice(end - size, end))] for end, size in zip(ends, sizes, strict=True))


# Convolution and pooling


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate signals (batch, in, length) with `weight` (out, in/groups, kernel), plus `bias` (out,)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply(convolution.conv1d, x, weight, bias, **options)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Correlate images (batch, in, height, width) with `weight` (out, in/groups, kh, kw), plus `bias` (out,)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply(convolution.conv2d, x, weight, bias, **options)


def max_pool1d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Return the largest element of each window of signals; the stride defaults to the kernel."""
    return apply(pooling.max_pool1d, x, kernel_size=kernel_size, stride=stride, padding=padding)


def max_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Return the largest element of each window of images; the stride defaults to the kernel."""
    return apply(pooling.max_pool2d, x, kernel_size=kernel_size, stride=stride, padding=padding)


def avg_pool1d(
    x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> Tensor:
    """Return the mean of each window of signals; the stride defaults to the kernel."""
    options = {"stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return apply(average_pooling.avg_pool1d, x, kernel_size=kernel_size, **options)


def avg_pool2d(
    x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, count_include_pad: bool = True
) -> Tensor:
    """Return the mean of each window of images; the stride defaults to the kernel."""
    options = {"stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return apply(average_pooling.avg_pool2d, x, kernel_size=kernel_size, **options)


def adaptive_avg_pool1d(x: Any, output_size: Pair) -> Tensor:
    """Return the means over `output_size` windows that cover each signal."""
    return apply(average_pooling.adaptive_avg_pool1d, x, output_size=output_size)


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Tensor:
    """Return the means over `output_size` windows (rows, columns) that cover each image."""
    return apply(average_pooling.adaptive_avg_pool2d, x, output_size=output_size)


# Softmax and losses


def _indices(target: Any) -> Any:
    return target if isinstance(target, Tensor | np.ndarray) else np.asarray(target)


def softmax(x: Any, dim: int = -1) -> Tensor:
    """Return `exp(x) / sum exp(x)` along an axis."""
    return apply(softmax_primitives.softmax, x, axis=dim)


def causal_softmax(x: Any) -> Tensor:
    """Return the softmax of each row of (..., t, s) over the columns up to its own; 0 in later ones."""
    return apply(softmax_primitives.causal_softmax, x)


def log_softmax(x: Any, dim: int = -1) -> Tensor:
    """Return `x - log sum exp(x)` along an axis."""
    return apply(softmax_primitives.log_softmax, x, axis=dim)


def cross_entropy(logits: Any, target: Any, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Return `-log softmax(logits)[target]`: logits (batch, classes, ...), target integers (batch, ...).

    `reduction` is "mean", "sum" or "none". Raises ValueError for a class outside the logits.
    """
    target = _indices(target)
    return apply(losses.cross_entropy, logits, target, label_smoothing=label_smoothing, reduction=reduction)


def nll_loss(log_probabilities: Any, target: Any, reduction: str = "mean") -> Tensor:
    """Return `-log_probabilities[target]`, shapes as in `cross_entropy`."""
    return apply(losses.nll, log_probabilities, _indices(target), reduction=reduction)


def mse_loss(prediction: Any, target: Any, reduction: str = "mean") -> Tensor:
    """Return the squared difference; the shapes must be equal."""
    return apply(losses.mse, prediction, target, reduction=reduction)


def binary_cross_entropy_with_logits(logits: Any, target: Any, reduction: str = "mean") -> Tensor:
    """Return `-(t log sigmoid(x) + (1 - t) log(1 - sigmoid(x)))`, for any x without overflow."""
    return apply(losses.bce_with_logits, logits, target, reduction=reduction)


# Normalisation, dropout, embedding and attention


def batch_norm(
    x: Tensor,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `(x - mean) / sqrt(var + eps) * weight + bias` of each channel of (batch, channels, ...).

    In training, mean and variance are those of the batch, and the running arrays (channels,), where given, move towards
    them by `momentum`, in place, the variance with the divisor count - 1 as in PyTorch (count if that is 0).
    Otherwise the running arrays are used.
    """
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm outside of training needs running_mean and running_var: got None")
        statistics = {"mean": running_mean, "var": running_var}
        return apply(normalization.batch_norm_inference, x, weight, bias, eps=eps, **statistics)
    mean, var = normalization.batch_statistics(x.data)
    count = x.size // len(mean)
    for running, observed in ((running_mean, mean), (running_var, var * (count / builtins.max(1, count - 1)))):
        if running is not None:
            running += momentum * (observed - running)
    return apply(normalization.batch_norm, x, weight, bias, mean=mean, var=var, eps=eps)


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Bring each sample, over its last axes, of shape `normalized_shape`, to mean 0 and variance 1."""
    axes = len(normalized_shape)
    if x.shape[x.ndim - axes :] != tuple(normalized_shape):
        raise ValueError(f"normalized_shape is {tuple(normalized_shape)!r}: must be the last sizes of {x.shape}")
    return apply(normalization.layer_norm, x, weight, bias, axes=axes, eps=eps)


def dropout(x: Tensor, p: float, training: bool, rng: np.random.Generator) -> Tensor:
    """In training, zero each element with probability `p` and scale the others by 1 / (1 - p); else return `x`."""
    return apply(elementwise.dropout, x, p=p, rng=rng) if training and p != 0 else x


def embedding(indices: Any, weight: Any) -> Tensor:
    """Return the rows of `weight` (entries, features) at integer `indices` of any shape."""
    chosen = indices if isinstance(indices, Tensor) else np.asarray(indices)
    return apply(indexing.embedding, chosen, weight)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Return `softmax(query keyᵀ / √d) value`: (..., t, d), (..., s, d) and (..., s, e) to (..., t, e).

    Vaswani et al., "Attention is all you need", NeurIPS 2017, eq. 1. With `is_causal`, a place sees none that is later.
    """
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    return (causal_softmax(scores) if is_causal else softmax(scores)) @ value
