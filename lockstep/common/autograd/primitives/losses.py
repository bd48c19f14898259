"""Losses over a batch: a number with reduction "mean" or "sum", one loss a sample with "none".

Class indices are integers of shape (batch,) for logits (batch, classes), or (batch, ...) for (batch, classes,
...); a single sample is () for (classes,), as in PyTorch.
"""

from functools import lru_cache

import numpy as np

from lockstep.common.autograd.primitives.activation import log1p
from lockstep.common.autograd.primitives.memory import copied
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.softmax import shifted

Shape = tuple[int, ...]


def _cross_entropy(
    logits: Array, target: Array, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array, Shape]]:
    """Return the mean of -log softmax(logits)[target] over the samples; softmax and logarithm fused.

    With smoothing ε, the target's distribution is (1 - ε) at the class and ε / classes everywhere (Szegedy et al.
    2016, section 7; PyTorch's formula). Raises ValueError for a target outside [0, classes).
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing!r}, expected a number from 0 to 1")
    index = _classes(logits.shape, target)
    # Classes first: the reductions over a few classes then run along many samples, at a third of the time.
    scores = shifted(copied(_rows(logits).T), axis=0)
    places = index * index.size  # where in `scores` the target's is
    places += _counting(index.size)
    at_target = np.take(scores, places)
    if label_smoothing:
        everywhere = np.add.reduce(scores, axis=0) * (label_smoothing / scores.shape[0])
        at_target = (1.0 - label_smoothing) * at_target + everywhere
    probabilities = np.exp(scores, out=scores)
    total = np.add.reduce(probabilities, axis=0)
    probabilities /= total
    losses = np.log(total, out=total)
    losses -= at_target
    return _reduced(losses, target.shape, reduction), (probabilities, places, logits.shape)


def _cross_entropy_logits(
    gradient: Array,
    saved: tuple[Array, Array, Shape],
    *_: None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
    probabilities, places, shape = saved
    result = probabilities - label_smoothing / probabilities.shape[0] if label_smoothing else copied(probabilities)
    np.subtract.at(result.reshape(-1), places, _number(1.0 - label_smoothing, result.dtype))
    result *= _spread(gradient, places.size, reduction).reshape(-1)
    return _unrow(result.T, shape)


cross_entropy = Primitive("cross_entropy", _cross_entropy, (_cross_entropy_logits, None), keeps=True, reads=((), ()))


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


def _mse(prediction: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean of (prediction - target)² over all elements."""
    _check_same(prediction, target, "mse")
    difference = prediction - target
    return _reduced(np.square(difference), difference.shape, reduction), difference


def _mse_prediction(gradient: Array, difference: Array, *_: None, reduction: str = "mean") -> Array:
    result: Array = difference * (2 * _spread(gradient, difference.size, reduction))
    return result


mse = Primitive(
    "mse",
    _mse,
    (_mse_prediction, lambda g, difference, *_, reduction="mean": -_mse_prediction(g, difference, reduction=reduction)),
    keeps=True,
    reads=((), ()),
)


def _bce_with_logits(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Return the mean of -(t log σ(x) + (1 - t) log(1 - σ(x))).

    As max(x, 0) - x t + log(1 + exp(-|x|)), which does not overflow.
    """
    _check_same(logits, target, "bce_with_logits")
    losses = np.maximum(logits, 0) - logits * target + log1p(np.exp(-np.abs(logits)))
    return _reduced(losses, losses.shape, reduction)


def _bce_with_logits_logits(
    gradient: Array, _: None, logits: Array, target: Array, *, reduction: str = "mean"
) -> Array:
    # σ(x) = (1 + tanh(x / 2)) / 2 holds for every x without a case and without an overflow.
    result: Array = 0.5 * (1 + np.tanh(0.5 * logits)) - target
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


@lru_cache(maxsize=8)
def _number(value: float, dtype: np.dtype[np.generic]) -> Array:
    """Return a number as an array, to be read only: `ufunc.at` would compute with a plain one in float64."""
    number = np.array(value, dtype)
    number.flags.writeable = False
    return number


@lru_cache(maxsize=8)
def _counting(count: int) -> Array:
    """Return 0, 1, ..., count - 1, to be read only."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


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
    total = np.asanyarray(np.add.reduce(losses, axis=None), losses.dtype)
    if reduction == "sum":
        return total
    return np.asanyarray(total / losses.size) if losses.size else np.full_like(total, np.nan)


def _spread(gradient: Array, count: int, reduction: str) -> Array:
    """Return what each of `count` losses gets of the result's gradient."""
    return np.asanyarray(gradient / max(1, count)) if reduction == "mean" else gradient
