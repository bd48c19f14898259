"""Softmax and the losses as functions. Class targets are integers: a tensor, an array or a list."""

from typing import Any

import numpy as np

from common.autograd.primitives import losses
from common.autograd.primitives import softmax as softmax_primitives
from common.autograd.tensor import Tensor, apply


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
