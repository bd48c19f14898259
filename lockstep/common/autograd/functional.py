"""Everything that can be computed on tensors, as functions with PyTorch's names and arguments.

Arguments may be tensors, arrays or numbers; targets that are classes are integers: a tensor, an array or a list.
"""

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lockstep.common.autograd import windowed
from lockstep.common.autograd.primitives import (
    elementwise,
    linear_algebra,
    losses,
    normalization,
    shape,
)
from lockstep.common.autograd.primitives import softmax as softmax_primitives
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.numerics.random import Source

# What tensors have as methods is the same function.
abs, maximum, minimum, clip, clamp = Tensor.abs, Tensor.maximum, Tensor.minimum, Tensor.clip, Tensor.clamp  # noqa: A001
exp, log, sqrt, tanh, sigmoid, relu = Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.tanh, Tensor.sigmoid, Tensor.relu
sum, mean, max, min, var = Tensor.sum, Tensor.mean, Tensor.max, Tensor.min, Tensor.var  # noqa: A001
flatten, transpose, squeeze, unsqueeze = Tensor.flatten, Tensor.transpose, Tensor.squeeze, Tensor.unsqueeze
matmul = Tensor.matmul

# Arithmetic and activations


def add(x: Any, other: Any) -> Tensor:
    """Return `x + other`, element by element. Shapes broadcast; raises ValueError if they do not.

    >>> F.add([[1.0], [2.0]], [10.0, 20.0])
    tensor([[11., 21.],
            [12., 22.]])
    """
    return apply(elementwise.add, x, other)


def subtract(x: Any, other: Any) -> Tensor:
    """Return `x - other`, element by element. Shapes broadcast; raises ValueError if they do not."""
    return apply(elementwise.subtract, x, other)


def multiply(x: Any, other: Any) -> Tensor:
    """Return `x * other`, element by element. Shapes broadcast; raises ValueError if they do not."""
    return apply(elementwise.multiply, x, other)


def divide(x: Any, other: Any) -> Tensor:
    """Return `x / other`, element by element. Shapes broadcast; raises ValueError if they do not.

    A division by 0 gives an infinity or NaN, as in NumPy.
    """
    return apply(elementwise.divide, x, other)


def power(x: Any, exponent: Any) -> Tensor:
    """Return `x ** exponent`, element by element. Shapes broadcast; raises ValueError if they do not.

    The gradient of the exponent is NaN where `x` is negative.

    Differs from PyTorch: PyTorch calls it `pow`.
    """
    return apply(elementwise.power, x, exponent)


def negate(x: Any) -> Tensor:
    """Return `-x`, of the shape of `x`. Raises TypeError if `x` does not hold numbers.

    Differs from PyTorch: PyTorch calls it `neg`.
    """
    return apply(elementwise.negate, x)


def where(condition: Any, x: Any, other: Any) -> Tensor:
    """Return `x` where `condition` holds and `other` elsewhere.

    All three shapes broadcast; raises ValueError if they do not.

    `condition` holds bools; no gradient goes to it.
    """
    return apply(elementwise.where, condition, x, other)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Return `x @ weight.T + bias`: x (..., features), weight (out, features), bias (out,), result (..., out).

    Raises ValueError if the sizes do not fit.

    >>> F.linear([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    tensor([[1., 2., 3.]])
    """
    return apply(linear_algebra.linear, x, weight, bias)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """Return `x` where it is above 0, and `negative_slope * x` elsewhere; the shape is that of `x`.

    Raises TypeError if `x` does not hold numbers.
    """
    return apply(elementwise.leaky_relu, x, negative_slope=negative_slope)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """Return `x Phi(x)`, of the shape of `x`, where Phi is the normal distribution function.

    With `approximate="tanh"` it is the paper's approximation by tanh (arXiv:1606.08415). Raises ValueError for an
    `approximate` that is neither "none" nor "tanh".
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}: must be 'none' or 'tanh'")
    return apply(elementwise.gelu if approximate == "none" else elementwise.gelu_tanh, x)


def softplus(x: Any, beta: float = 1.0, threshold: float = math.inf) -> Tensor:
    """Return `log(1 + exp(beta x)) / beta`, of the shape of `x`, without overflow.

    If beta x is above `threshold`, it is `x`. Raises TypeError if `x` holds no numbers.

    Differs from PyTorch: there is no threshold by default, as nothing overflows; PyTorch's is 20.
    """
    if threshold != math.inf:
        x = _tensor(x)
        return where((x * beta > threshold).data, x, apply(elementwise.softplus, x, beta=beta))
    return apply(elementwise.softplus, x, beta=beta)


# Changing the shape, joining and cutting


def reshape(x: Any, sizes: Sequence[int]) -> Tensor:
    """Return the elements in another shape; one of the `sizes` may be -1, which is then computed.

    It is a view of the same memory if that is possible. Raises ValueError if the number of elements differs.
    """
    return apply(shape.reshape, x, shape=tuple(sizes))


def permute(x: Any, dims: Sequence[int]) -> Tensor:
    """Reorder all axes: the shape of the result is that of `x` in the order of `dims`.

    Raises ValueError if `dims` does not name each axis once.
    """
    return apply(shape.permute, x, axes=tuple(dims))


def broadcast_to(x: Any, sizes: Sequence[int]) -> Tensor:
    """Repeat axes of size 1, without a copy, until the shape is `sizes`. Raises ValueError if it cannot become that.

    Differs from PyTorch: a size is never -1.
    """
    return apply(shape.broadcast_to, x, shape=tuple(sizes))


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Add a frame of `value`, by default 0. `pad` is (before, after) of the last axis, then of the one before, and so
    on.

    Negative numbers cut elements off. The frame is that of a mirror with `mode="reflect"`, of the elements at the edge
    with "replicate", and of those at the other end with "circular". Raises ValueError if there are more pairs than
    axes, or if the frame does not fit.

    >>> F.pad(Tensor([[1.0, 2.0]]), (1, 0))
    tensor([[0., 1., 2.]])

    Differs from PyTorch: in any mode, each axis may be padded, and empty axes may not.
    """
    x, count = _tensor(x), len(pad) // 2
    if len(pad) % 2 or count > x.ndim:
        raise ValueError(f"pad is {pad!r} for shape {x.shape}: expected a (before, after) for some last axes")
    last = [(pad[2 * index], pad[2 * index + 1]) for index in reversed(range(count))]
    widths = [(0, 0)] * (x.ndim - count) + last
    if mode != "constant":
        return _framed(x, widths, mode)
    inner: Any = tuple(slice(-builtins.min(0, before), builtins.min(0, after) or None) for before, after in widths)
    if any(before < 0 or after < 0 for before, after in last):
        if any(size + before + after < 0 for size, (before, after) in zip(x.shape, widths, strict=True)):
            raise ValueError(f"pad is {pad!r} for shape {x.shape}: expected to cut off no more than there is")
        x = x[inner]
    widths = [(builtins.max(0, before), builtins.max(0, after)) for before, after in widths]
    return apply(shape.pad, x, widths=tuple(widths), value=0.0 if value is None else value)


#: By mode, the elements that frame an axis of `size`, at places from below 0 to beyond the end.
_FRAMES = {
    "reflect": lambda at, size: size - 1 - np.abs(size - 1 - np.abs(at)),
    "replicate": lambda at, size: np.clip(at, 0, size - 1),
    "circular": lambda at, size: at % size,
}


def _framed(x: Tensor, widths: Sequence[tuple[int, int]], mode: str) -> Tensor:
    if mode not in _FRAMES:
        raise ValueError(f"mode is {mode!r}: expected 'constant', 'reflect', 'replicate' or 'circular'")
    for axis, (before, after) in enumerate(widths):
        if not before and not after:
            continue
        size = x.shape[axis]
        least, most = {"reflect": (-size, size - 1), "circular": (0, size)}.get(mode, (-size, math.inf if size else 0))
        if builtins.max(before, after) > most or builtins.min(before, after) < least:
            raise ValueError(f"padding {(before, after)} of an axis of {size} elements does not fit mode {mode!r}")
        x = x[(slice(None),) * axis + (_FRAMES[mode](np.arange(-before, size + after), size),)]
    return x


def concatenate(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join tensors along the axis `dim`: (a, c) and (b, c) to (a + b, c). `cat` is the same function.

    Raises ValueError if another size differs, or if there are no tensors.
    """
    # PyTorch leaves out empty arrays of one axis, also if the others have more axes.
    filled = [each for each in tensors if np.shape(each.data if isinstance(each, Tensor) else each) != (0,)]
    return apply(shape.concatenate, *(filled or tensors), axis=dim)


cat = concatenate


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis `dim`: k times (a, b) to (k, a, b).

    Raises ValueError if their shapes differ, or if no tensor is given.
    """
    return apply(shape.stack, *tensors, axis=dim)


def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Cut along the axis `dim` into parts of `sizes` elements, the last perhaps smaller, or into parts of the sizes
    given.

    The parts are views: (a + b, c) to (a, c) and (b, c). Raises ValueError if a size is below 1, or if the sizes do not
    sum to that of the axis.

    Differs from PyTorch: the arguments `tensor` and `split_size_or_sections` are called `x` and `sizes`.
    """
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

conv1d, conv2d = windowed.conv1d, windowed.conv2d
max_pool1d, max_pool2d = windowed.max_pool1d, windowed.max_pool2d
avg_pool1d, avg_pool2d = windowed.avg_pool1d, windowed.avg_pool2d
adaptive_avg_pool1d, adaptive_avg_pool2d = windowed.adaptive_avg_pool1d, windowed.adaptive_avg_pool2d


# Softmax and losses


def _indices(target: Any) -> Any:
    return target if isinstance(target, Tensor | np.ndarray) else np.asarray(target)


def softmax(x: Any, dim: int = -1) -> Tensor:
    """Return `exp(x) / sum exp(x)` along the axis `dim`, of the shape of `x`, without overflow.

    Raises ValueError for an axis that `x` does not have.

    Differs from PyTorch: `dim` has a default, the last axis.
    """
    return _along(softmax_primitives.softmax, x, dim)


def causal_softmax(x: Any) -> Tensor:
    """Return the softmax of each row of (..., t, s) over the columns up to its own; 0 in later ones.

    The shape stays. Raises ValueError for fewer than two axes.

    Differs from PyTorch: PyTorch has no such function.
    """
    x = _tensor(x)
    if x.ndim < 2:
        raise ValueError(f"causal_softmax got shape {x.shape!r}, expected (..., t, s)")
    return softmax(x + softmax_primitives.later(x.shape[-2], x.shape[-1], x.dtype.str))


def log_softmax(x: Any, dim: int = -1) -> Tensor:
    """Return `x - log sum exp(x)` along the axis `dim`, of the shape of `x`, without overflow.

    Raises ValueError for an axis that `x` does not have.

    Differs from PyTorch: `dim` has a default, the last axis.
    """
    return _along(softmax_primitives.log_softmax, x, dim)


def _along(primitive: Primitive, x: Any, dim: int) -> Tensor:
    """Apply a primitive along an axis; a number has one element along the axis 0 or -1, as in PyTorch."""
    if np.ndim(x.data if isinstance(x, Tensor) else x):
        return apply(primitive, x, axis=dim)
    return apply(primitive, _tensor(x).reshape(1), axis=dim).reshape(())


def cross_entropy(
    logits: Any,
    target: Any,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    weight: Any = None,
    ignore_index: int | None = None,
) -> Tensor:
    """Return `-log softmax(logits)[target]`: logits (n, classes, ...), target integers (n, ...).

    `reduction` is "mean" or "sum", which give a number, or "none", which keeps the shape of `target`. With
    `label_smoothing` ε, a target is 1 - ε of its class and ε of all classes evenly. Raises ValueError for a class
    outside of the logits, for targets that are not integers of the right shape, and for another `reduction`.

    `weight` (classes,) is what a target of each class weighs; a target that is `ignore_index` weighs nothing. A mean is
    over the weights.

    >>> round(F.cross_entropy([[2.0, 0.0], [0.0, 2.0]], [0, 1]).item(), 4)
    0.1269

    Targets may be probabilities of the shape of the logits instead.

    Differs from PyTorch: no `ignore_index` is the default.
    """
    target = _indices(target)
    if (target.data if isinstance(target, Tensor) else target).dtype.kind == "f":
        return _soft_cross_entropy(_tensor(logits), _tensor(target), label_smoothing, reduction, weight)
    if weight is not None or ignore_index is not None:
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
        weights = _class_weights(logits, weight)
        return apply(losses.weighted_cross_entropy, logits, target, weight=weights, **options)
    return apply(losses.cross_entropy, logits, target, label_smoothing=label_smoothing, reduction=reduction)


def _soft_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float, reduction: str, weight: Any) -> Tensor:
    """Return the cross-entropy with probabilities of classes."""
    if logits.shape != target.shape:
        raise ValueError(f"probabilities of shape {target.shape} for logits of {logits.shape}: expected the same shape")
    axis = 1 if logits.ndim > 1 else 0
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / logits.shape[axis]
    scores = log_softmax(logits, axis)
    if weight is not None:
        scores = scores * Tensor(np.asarray(weight, scores.dtype)).reshape(
            [-1 if each == axis else 1 for each in range(logits.ndim)]
        )
    losses = negate(sum(scores * target, axis))
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}: expected 'mean', 'sum' or 'none'")
    if reduction == "none":
        return losses
    return sum(losses) if reduction == "sum" else divide(sum(losses), builtins.max(1, losses.size))


def _class_weights(scores: Any, weight: Any) -> Any:
    """Return what each class weighs: 1 if nothing is said."""
    shape: tuple[int, ...] = np.shape(scores.data if isinstance(scores, Tensor) else scores)
    return np.ones(shape[len(shape) > 1], np.float32) if weight is None else np.asarray(weight)


def nll_loss(
    log_probabilities: Any,
    target: Any,
    reduction: str = "mean",
    weight: Any = None,
    ignore_index: int | None = None,
) -> Tensor:
    """Return `-log_probabilities[target]`: (n, classes, ...) and integers (n, ...), as in `cross_entropy`.

    `reduction` is "mean", "sum" or "none", and `weight` and `ignore_index` are as there. Raises ValueError for a class
    that there is not, for targets that are not integers of the right shape, and for another `reduction`.

    Differs from PyTorch: no `ignore_index` is the default.
    """
    if weight is not None or ignore_index is not None:
        options = {"ignore_index": ignore_index, "reduction": reduction}
        weights = _class_weights(log_probabilities, weight)
        return apply(losses.weighted_nll, log_probabilities, _indices(target), weight=weights, **options)
    return apply(losses.nll, log_probabilities, _indices(target), reduction=reduction)


def mse_loss(prediction: Any, target: Any, reduction: str = "mean") -> Tensor:
    """Return the squared difference of two tensors of one shape.

    `reduction` is "mean" over all elements or "sum", which give a number, or "none", which keeps the shape. Raises
    ValueError if the shapes differ, and for another `reduction`.

    Differs from PyTorch: shapes that differ raise instead of being broadcast with a warning; there is no `weight`.
    """
    return apply(losses.mse, prediction, target, reduction=reduction)


def l1_loss(prediction: Any, target: Any, reduction: str = "mean") -> Tensor:
    """Return the absolute difference of two tensors of one shape; `reduction` as in `mse_loss`.

    Raises ValueError if the shapes differ, and for another `reduction`.

    Differs from PyTorch: shapes that differ raise instead of being broadcast with a warning; there is no `weight`.
    """
    return apply(losses.l1, prediction, target, reduction=reduction)


def smooth_l1_loss(prediction: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """Return `d² / (2 beta)` of differences d below `beta`, and `|d| - beta / 2` of others; as `mse_loss`.

    Raises ValueError if the shapes differ, for another `reduction`, and for a `beta` that is not above 0.

    Differs from PyTorch: shapes that differ raise instead of being broadcast with a warning; `beta` is never 0.
    """
    if not beta > 0.0:
        raise ValueError(f"beta is {beta!r}: expected a number above 0; with 0 it is l1_loss")
    return apply(losses.smooth_l1, prediction, target, beta=beta, reduction=reduction)


def binary_cross_entropy_with_logits(
    logits: Any, target: Any, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """Return `-(t log sigmoid(x) + (1 - t) log(1 - sigmoid(x)))` of logits x and targets t of one shape, without
    overflow.

    `reduction` is "mean" over all elements or "sum", which give a number, or "none", which keeps the shape. Raises
    ValueError if the shapes differ, and for another `reduction`. `pos_weight` is what each place of the last axis
    weighs where its target is 1.

    Differs from PyTorch: there is no `weight`.
    """
    if pos_weight is not None:
        weights = np.asarray(pos_weight)
        return apply(losses.weighted_bce_with_logits, logits, target, pos_weight=weights, reduction=reduction)
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
    """Return `(x - mean) / sqrt(var + eps) * weight + bias` of each channel of (n, channels, ...), in the same shape.

    In training, mean and variance are those of the batch, and the running arrays (channels,), if given, move towards
    them by `momentum`, in place, the variance with the divisor count - 1. Otherwise the running arrays are used.
    `weight` and `bias` are (channels,) or None. Raises ValueError for fewer than two axes, and for running arrays that
    are None outside of training.

    Differs from PyTorch: a batch of one value per channel has variance 0 and results in `bias`, where PyTorch raises.
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
    return apply(normalization.batch_norm, x, weight, bias, np.stack((mean, var)), eps=eps)


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Bring each sample to mean 0 and variance 1 over its last axes, of shape `normalized_shape`; the shape of `x`
    stays.

    `weight` and `bias` have the shape `normalized_shape`, or are None. Raises ValueError if `x` does not end in that
    shape.
    """
    axes = len(normalized_shape)
    if x.shape[x.ndim - axes :] != tuple(normalized_shape):
        raise ValueError(f"normalized_shape is {tuple(normalized_shape)!r}: must be the last sizes of {x.shape}")
    return apply(normalization.layer_norm, x, weight, bias, axes=axes, eps=eps)


def dropout(x: Tensor, p: float, training: bool, rng: np.random.Generator | Source) -> Tensor:
    """In training, zero each element with probability `p` and scale the others by 1 / (1 - p); else return `x`.

    `rng` draws which ones. The shape stays. Raises ValueError for a `p` outside of 0 to 1.

    Differs from PyTorch: the generator is an argument, so that the bits can be repeated; nothing is done in place.
    """
    return apply(elementwise.dropout, x, p=p, rng=rng) if training and p != 0 else x


def embedding(indices: Any, weight: Any) -> Tensor:
    """Return the rows of `weight` (entries, features) at integer `indices` of any shape (...): the result is (...,
    features).

    Raises TypeError for indices that are not integers, IndexError for one below 0 or beyond the last row.

    Differs from PyTorch: there is no `padding_idx`, no `max_norm` (so no `norm_type`), no `scale_grad_by_freq`, and no
    `sparse` gradient.
    """
    chosen = indices if isinstance(indices, Tensor) else np.asarray(indices)
    return apply(shape.embedding, chosen, weight)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return `softmax(query keyᵀ / √d) value`: (..., t, d), (..., s, d) and (..., s, e) to (..., t, e).

    Vaswani et al., "Attention is all you need", NeurIPS 2017, eq. 1. With `is_causal`, position i of t sees the first
    i + 1 of s. `attn_mask` (..., t, s) is added to the scores, or of bools is True where a position sees another;
    `scale` is in place of 1 / √d. Raises ValueError if the sizes do not fit, or for a mask together with `is_causal`.

    Differs from PyTorch: `dropout_p` is always 0, and there is no `enable_gqa`.
    """
    if dropout_p:
        raise ValueError(f"dropout_p is {dropout_p!r}: expected 0; apply F.dropout, whose generator is an argument")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask is given together with is_causal: expected one of the two")
    query = _tensor(query)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(query * factor, transpose(key, -2, -1))
    if attn_mask is not None:
        mask = _tensor(attn_mask)
        hidden = np.where(mask.data, 0, -np.inf).astype(scores.dtype) if mask.dtype == np.bool_ else mask
        scores = scores + hidden
    return matmul(causal_softmax(scores) if is_causal else softmax(scores), value)


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)
