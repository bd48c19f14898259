"""Losses over a batch: a number with reduction "mean" or "sum", one loss per sample with "none".

Class indices are integers of shape (batch,) for logits (batch, classes), or (batch, ...) for (batch, classes,
...); a single sample is () for (classes,), as in PyTorch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.elementwise import softplus
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.softmax import shifted
from lockstep.common.numerics import leaves

Shape = tuple[int, ...]


def _cross_entropy(logits: Array, target: Array, *, label_smoothing: float = 0.0, reduction: str = "mean") -> Array:
    """Return the mean of -log softmax(logits)[target] over the samples; softmax and logarithm fused.

    With smoothing ε, the target's distribution is (1 - ε) at the class and ε / classes everywhere (Szegedy et al.
    2016, section 7; PyTorch's formula). Raises ValueError for a target outside [0, classes).
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing!r}, expected a number from 0 to 1")
    index = _classes(logits.shape, target)
    losses = leaves.cross_entropy(_rows(logits).T, index, options=(label_smoothing,))
    return _reduced(losses, target.shape, reduction)


def _cross_entropy_logits(
    gradient: Array,
    _: None,
    logits: Array,
    target: Array,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
    index = target.reshape(-1).astype(np.int64, copy=False)
    spread = np.broadcast_to(_spread(gradient, index.size, reduction).reshape(-1), index.shape, subok=True)
    result = leaves.cross_entropy_gradient(_rows(logits).T, index, spread, options=(label_smoothing,))
    return _unrow(result.T, logits.shape)


cross_entropy = Primitive("cross_entropy", _cross_entropy, (_cross_entropy_logits, None), reads=((0, 1), ()))


def _nll(log_probabilities: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Shape]:
    """Return the mean of -log_probabilities[target]. Raises ValueError for a target outside [0, classes)."""
    index, rows = _classes(log_probabilities.shape, target), _rows(log_probabilities)
    losses = -rows[np.arange(index.size), index]
    return _reduced(losses, target.shape, reduction), log_probabilities.shape


def _nll_log_probabilities(gradient: Array, shape: Shape, _: None, target: Array, *, reduction: str = "mean") -> Array:
    result = np.zeros((target.size, _class_count(shape)), gradient.dtype)
    result[np.arange(target.size), target.reshape(-1)] = -_spread(gradient, target.size, reduction).reshape(-1)
    return _unrow(result, shape)


nll = Primitive("nll", _nll, (_nll_log_probabilities, None), keeps=True, reads=((1,), ()), is_opaque=True)


def _class_coefficients(index: Array, is_kept: Array, weight: Array, label_smoothing: float) -> tuple[Array, Array]:
    """Return what each log-probability is multiplied by, (samples, classes), and the weight of each target."""
    own = weight[index] * is_kept
    shares = np.multiply.outer(is_kept.astype(weight.dtype), weight * (label_smoothing / len(weight)))
    shares[np.arange(index.size), index] += (1.0 - label_smoothing) * own
    return shares, own


def _kept(target: Array, ignore_index: int | None) -> tuple[Array, Array]:
    """Return targets with a class in place of each ignored one, and a mask of those that are not ignored."""
    is_kept = np.ones(target.shape, np.bool_) if ignore_index is None else target != ignore_index
    return np.where(is_kept, target, 0), is_kept.reshape(-1)


def _weighted_cross_entropy(
    logits: Array,
    target: Array,
    *,
    weight: Array,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, tuple[Array, Array, Shape, Array]]:
    """Return the mean of -weight[target] log softmax(logits)[target] over the targets, by their weights.

    With smoothing ε, each class c of `classes` gets ε / classes of its own weight in addition (PyTorch's formula).
    """
    scores = shifted(_rows(logits), axis=1)
    probabilities = leaves.exp(scores)
    total = leaves.total(probabilities, axis=1, keepdims=True)
    probabilities /= total
    scores -= leaves.log(total)
    return _weighted(scores, probabilities, logits.shape, target, weight, ignore_index, label_smoothing, reduction)


def _weighted_nll(
    log_probabilities: Array, target: Array, *, weight: Array, ignore_index: int | None = None, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array, Shape, Array]]:
    """Return the mean of -weight[target] log_probabilities[target] over the targets, by their weights."""
    rows = _rows(log_probabilities)
    nothing = np.zeros((1, 1), rows.dtype)
    return _weighted(rows, nothing, log_probabilities.shape, target, weight, ignore_index, 0.0, reduction)


def _weighted(
    scores: Array,
    probabilities: Array,
    shape: Shape,
    target: Array,
    weight: Array,
    ignore_index: int | None,
    label_smoothing: float,
    reduction: str,
) -> tuple[Array, tuple[Array, Array, Shape, Array]]:
    classes, is_kept = _kept(target, ignore_index)
    index, each = _classes(shape, classes), weight.astype(scores.dtype, copy=False)
    if len(each) != scores.shape[1]:
        raise ValueError(f"a loss got {len(each)} weights, expected {scores.shape[1]}, one for each class")
    shares, own = _class_coefficients(index, is_kept, each, label_smoothing)
    losses = -leaves.total(shares * scores, axis=1)
    divisor = np.asanyarray(leaves.total(own), scores.dtype)
    result = _reduced(losses, target.shape, reduction if reduction != "mean" else "sum")
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            result = np.asanyarray(result / divisor)
    return result, (shares, probabilities, shape, divisor)


def _weighted_scores(
    gradient: Array,
    saved: tuple[Array, Array, Shape, Array],
    *_: None,
    reduction: str = "mean",
    **__: object,
) -> Array:
    shares, probabilities, shape, divisor = saved
    result = probabilities * leaves.total(shares, axis=1, keepdims=True)
    result = result - shares
    if reduction != "mean":
        spread = gradient
    else:  # 0 if all targets are ignored, as in PyTorch, where the loss is NaN
        spread = np.asanyarray(gradient / divisor) if divisor else np.zeros_like(gradient)
    result *= spread.reshape(-1, 1) if reduction == "none" else spread
    return _unrow(result, shape)


weighted_cross_entropy = Primitive(
    "weighted_cross_entropy",
    _weighted_cross_entropy,
    (_weighted_scores, None),
    keeps=True,
    reads=((), ()),
    is_opaque=True,
)
weighted_nll = Primitive(
    "weighted_nll", _weighted_nll, (_weighted_scores, None), keeps=True, reads=((), ()), is_opaque=True
)


def _of_difference(name: str, loss: Callable[..., Array], slope: Callable[..., Array]) -> Primitive:
    """Return a loss of the differences of two arrays of one shape, a mean over all elements by default.

    `loss(difference, **options)` is that of each element, and `slope(difference, spread, **options)` its derivative,
    times what the element gets of the result's gradient.
    """

    def forward(prediction: Array, target: Array, *, reduction: str = "mean", **options: float) -> tuple[Array, Array]:
        _check_same(prediction, target, name)
        difference = prediction - target
        return _reduced(loss(difference, **options), difference.shape, reduction), difference

    def of_prediction(gradient: Array, difference: Array, *_: None, reduction: str = "mean", **options: float) -> Array:
        return slope(difference, _spread(gradient, difference.size, reduction), **options)

    def of_target(gradient: Array, difference: Array, *_: None, **options: Any) -> Array:
        return -of_prediction(gradient, difference, **options)

    return Primitive(name, forward, (of_prediction, of_target), keeps=True, reads=((), ()))


def _smooth_l1(difference: Array, beta: float = 1.0) -> Array:
    """Return d²/(2·beta) where |d| < beta, and |d| - beta/2 elsewhere (Girshick, Fast R-CNN, ICCV 2015)."""
    # min(|d|, beta)·(|d| - min(|d|, beta)/2)/beta is both, without a case.
    far = np.abs(difference)
    near = np.minimum(far, beta)
    result: Array = near * (far - 0.5 * near) / beta
    return result


mse = _of_difference("mse", np.square, lambda difference, spread: difference * (2 * spread))
# The derivative is 0 where both are equal, as in PyTorch.
l1 = _of_difference("l1", np.abs, lambda difference, spread: np.sign(difference) * spread)
smooth_l1 = _of_difference(
    "smooth_l1",
    _smooth_l1,
    lambda difference, spread, beta=1.0: np.minimum(np.maximum(difference, -beta), beta) / beta * spread,
)


def _bce_with_logits(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Return the mean of -(t log σ(x) + (1 - t) log(1 - σ(x))).

    As max(x, 0) - x t + log(1 + exp(-|x|)), which does not overflow.
    """
    _check_same(logits, target, "bce_with_logits")
    losses = np.maximum(logits, 0) - logits * target + leaves.log1p(leaves.exp(-np.abs(logits)))
    return _reduced(losses, losses.shape, reduction)


def _bce_with_logits_logits(
    gradient: Array, _: None, logits: Array, target: Array, *, reduction: str = "mean"
) -> Array:
    # σ(x) = (1 + tanh(x / 2)) / 2 holds for every x without a case and without an overflow.
    result: Array = 0.5 * (1 + leaves.tanh(0.5 * logits)) - target
    result *= _spread(gradient, logits.size, reduction)
    return result


bce_with_logits = Primitive(
    "bce_with_logits",
    _bce_with_logits,
    (
        _bce_with_logits_logits,
        lambda g, _, logits, target, reduction="mean": -logits * _spread(g, logits.size, reduction),
    ),
    reads=((0, 1), (0,)),
)


def _weighted_bce(logits: Array, target: Array, *, pos_weight: Array, reduction: str = "mean") -> Array:
    """Return the mean of -(w t log σ(x) + (1 - t) log(1 - σ(x))), with a weight w for each place of the last axis."""
    _check_same(logits, target, "bce_with_logits")
    factor = 1 + (pos_weight.astype(logits.dtype, copy=False) - 1) * target
    losses = (1 - target) * logits + factor * softplus.forward(-logits, 1.0)
    return _reduced(losses, losses.shape, reduction)


def _weighted_bce_logits(
    gradient: Array, _: None, logits: Array, target: Array, *, pos_weight: Array, reduction: str = "mean"
) -> Array:
    factor = 1 + (pos_weight.astype(logits.dtype, copy=False) - 1) * target
    result: Array = (1 - target) + factor * (0.5 * (1 + leaves.tanh(0.5 * logits)) - 1)
    return np.asanyarray(result * _spread(gradient, logits.size, reduction))


def _weighted_bce_target(
    gradient: Array, _: None, logits: Array, __: None, *, pos_weight: Array, reduction: str = "mean"
) -> Array:
    result: Array = (pos_weight.astype(logits.dtype, copy=False) - 1) * softplus.forward(-logits, 1.0) - logits
    return np.asanyarray(result * _spread(gradient, logits.size, reduction))


weighted_bce_with_logits = Primitive(
    "weighted_bce_with_logits",
    _weighted_bce,
    (_weighted_bce_logits, _weighted_bce_target),
    reads=((0, 1), (0,)),
    is_opaque=True,
)


def _rows(x: Array) -> Array:
    """View or copy `x` (batch, classes, ...) as (samples, classes)."""
    return x if x.ndim == 2 else np.moveaxis(np.atleast_2d(x), 1, -1).reshape(-1, _class_count(x.shape))


def _unrow(rows: Array, shape: Shape) -> Array:
    """Turn (samples, classes) back into `shape` (batch, classes, ...)."""
    if len(shape) <= 2:
        return rows.reshape(shape)
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def _class_count(shape: Shape) -> int:
    return shape[min(1, len(shape) - 1)]


def _classes(shape: Shape, target: Array) -> Array:
    """Return the flat class indices; raise ValueError unless they fit scores of `shape`."""
    if not shape:
        raise ValueError("a loss got a number, expected scores of shape (batch, classes)")
    expected = shape[: len(shape) > 1] + shape[2:]
    if target.shape != expected or target.dtype.kind not in "iu":
        raise ValueError(
            f"a loss got targets of shape {target.shape!r} and type {target.dtype}, expected integers of shape "
            f"{expected!r} for scores of shape {shape!r}: pass class indices, not one-hot rows"
        )
    flat, classes = target.reshape(-1).astype(np.int64, copy=False), _class_count(shape)
    # As an unsigned number a negative index is huge: one pass checks both ends.
    if flat.size and np.maximum.reduce(flat.view(np.uint64)) >= classes:
        wrong = int(flat[(flat < 0) | (flat >= classes)][0])
        raise ValueError(f"a loss got target {wrong!r}, expected a class from 0 to {classes - 1} ({classes} classes)")
    return flat


def _check_same(prediction: Array, target: Array, name: str) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"{name} got a prediction of shape {prediction.shape!r} and a target of shape {target.shape!r}, "
            "expected the same shape: reshape one of them"
        )


def _reduced(losses: Array, shape: Shape, reduction: str) -> Array:
    if reduction == "none":
        return losses.reshape(shape)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    total = np.asanyarray(leaves.total(losses, axis=None), losses.dtype)
    if reduction == "sum":
        return total
    return np.asanyarray(total / losses.size) if losses.size else np.full_like(total, np.nan)


def _spread(gradient: Array, count: int, reduction: str) -> Array:
    """Return what each of `count` losses gets of the result's gradient."""
    return np.asanyarray(gradient / max(1, count)) if reduction == "mean" else gradient
