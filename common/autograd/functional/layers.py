"""Normalisation, dropout, embedding and attention as functions, with PyTorch's arguments."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from common.autograd.functional.losses import causal_softmax, softmax
from common.autograd.primitives import elementwise, indexing, normalization
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor, apply


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
    them by `momentum`, in place, the variance with the divisor count - 1 as in PyTorch (count where that is 0).
    Otherwise the running arrays are used.
    """
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm outside of training needs running_mean and running_var: got None")
        statistics = {"mean": running_mean, "var": running_var}
        return apply(normalization.batch_norm_inference, x, weight, bias, eps=eps, **statistics)
    mean, var = normalization.batch_statistics(x.data)
    count = x.size // len(mean)
    for running, observed in ((running_mean, mean), (running_var, var * (count / max(1, count - 1)))):
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
    scores = (query * (1 / sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    return (causal_softmax(scores) if is_causal else softmax(scores)) @ value
