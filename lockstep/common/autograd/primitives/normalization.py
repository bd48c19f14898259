"""Batch and layer normalisation: rows brought to mean 0 and variance 1, then scaled and shifted.

Both work on rows of a matrix: a row is a channel over the whole batch, or the features of one sample.
"""

from math import prod

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive, Sink, contiguous, copied
from lockstep.common.numerics import leaves

Shape = tuple[int, ...]


class _Standardised(msgspec.Struct, frozen=True):
    """Values that the backward passes need."""

    rows: Array  # (rows, elements), mean 0 and variance 1
    deviation: Array  # (rows, 1), the square root of the variance plus eps
    shape: Shape  # of the input


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Return the mean and the variance (biased: divided by the count) of each channel of (batch, channels, ...)."""
    rows = _by_channel(x, "batch_statistics")
    if rows.shape[1] == 0:
        raise ValueError(f"batch_statistics got no samples (shape {x.shape!r}), expected at least one: skip this batch")
    mean, variance = _moments(rows)
    return mean.reshape(-1), variance.reshape(-1)


def _batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    moments: Array | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, _Standardised]:
    """Return (x - mean) / sqrt(var + eps) · weight + bias over the batch's own statistics (Ioffe & Szegedy 2015).

    `x` (batch, channels, ...), `weight` and `bias` (channels,). A caller that has the statistics, as `batch_moments`
    gives them, passes them, so that they are not computed twice; the gradient accounts for their dependence on `x`
    anyway.
    """
    mean, var = batch_statistics(x) if moments is None else (moments[0], moments[1])
    return _normalised_channels(x, weight, bias, (mean, var), eps)


def _batch_norm_x(
    gradient: Array, saved: _Standardised, x: None, weight: Array | None = None, *_: None, **__: object
) -> Array:
    upstream = _by_channel(gradient, "batch_norm")
    if weight is not None:
        upstream = upstream * weight[:, None]
    return _from_channels(_through_standardising(upstream, saved), saved.shape)


def _batch_norm_weight(
    gradient: Array, saved: _Standardised, *_: object, out: Array | None = None, **__: object
) -> Array:
    return _row_sums(_by_channel(gradient, "batch_norm") * saved.rows, out)


def _batch_norm_bias(gradient: Array, *_: object, out: Array | None = None, **__: object) -> Array:
    return _row_sums(_by_channel(gradient, "batch_norm"), out)


batch_norm = Primitive(
    "batch_norm",
    _batch_norm,
    (_batch_norm_x, _batch_norm_weight, _batch_norm_bias, None),
    keeps=True,
    reads=((1,), (), (), ()),
    writes=(1, 2),
)


def _batch_moments(x: Array, *, sink: Sink) -> Array:
    """Return mean and variance of each channel of (batch, channels, ...), as (2, channels); the sink gets them too."""
    mean, var = batch_statistics(x)
    sink.observe(mean, var, x.shape)
    return np.stack((mean, var))


def _batch_moments_x(gradient: Array, moments: Array, x: Array, **_: object) -> Array:
    rows = _by_channel(x, "batch_moments")
    result = (gradient[0, :, None] + 2 * gradient[1, :, None] * (rows - moments[0, :, None])) / rows.shape[1]
    return _from_channels(result, x.shape)


# In `batch_norm` no gradient goes through them.
batch_moments = Primitive("batch_moments", _batch_moments, (_batch_moments_x,), reads=((0, RESULT),), is_opaque=True)


def _batch_norm_inference(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, mean: Array, var: Array, eps: float = 1e-5
) -> tuple[Array, _Standardised]:
    """Return the same with given statistics (channels,), which are constants: they do not depend on `x`."""
    return _normalised_channels(x, weight, bias, (mean, var), eps)


def _batch_norm_inference_x(
    gradient: Array, saved: _Standardised, x: None, weight: Array | None = None, *_: None, **__: object
) -> Array:
    scale = 1 / saved.deviation if weight is None else weight[:, None] / saved.deviation
    return _from_channels(_by_channel(gradient, "batch_norm") * scale, saved.shape)


batch_norm_inference = Primitive(
    "batch_norm_inference",
    _batch_norm_inference,
    (_batch_norm_inference_x, _batch_norm_weight, _batch_norm_bias),
    keeps=True,
    reads=((1,), (), ()),
    writes=(1, 2),
    is_opaque=True,
)


def _layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Array, _Standardised]:
    """Bring each sample, over its last `axes` axes, to mean 0 and variance 1 (Ba et al. 2016); then · weight + bias.

    `weight` and `bias` have the shape of those axes.
    """
    if not 1 <= axes <= x.ndim:
        raise ValueError(f"layer_norm got axes {axes!r} for an input of shape {x.shape!r}, expected 1 to {x.ndim}")
    features = x.shape[x.ndim - axes :]
    for each in (weight, bias):
        if each is not None and each.shape != features:
            raise ValueError(
                f"layer_norm got a weight or bias of shape {each.shape!r}, expected {features!r}: "
                f"the last {axes} axes of the input (shape {x.shape!r})"
            )
    rows = x.reshape(-1, prod(features))
    saved = _standardise(rows, *_moments(rows), eps, x.shape)
    # A new array in any case: a change of the result in place must not reach the saved one.
    result = copied(saved.rows) if weight is None else saved.rows * weight.reshape(-1)
    if bias is not None:
        result = np.add(result, bias.reshape(-1), out=result)
    return result.reshape(x.shape), saved


def _layer_norm_x(
    gradient: Array, saved: _Standardised, x: None, weight: Array | None = None, *_: None, **__: object
) -> Array:
    upstream = gradient.reshape(saved.rows.shape)
    if weight is not None:
        upstream = upstream * weight.reshape(-1)
    return _through_standardising(upstream, saved).reshape(saved.shape)


def _layer_norm_weight(
    gradient: Array, saved: _Standardised, *_: object, axes: int = 1, out: Array | None = None, **__: object
) -> Array:
    product = gradient.reshape(saved.rows.shape) * saved.rows
    result: Array = leaves.total(product.reshape(-1, *saved.shape[-axes:]), axis=0, out=out)
    return result


def _layer_norm_bias(
    gradient: Array, saved: _Standardised, *_: object, axes: int = 1, out: Array | None = None, **__: object
) -> Array:
    result: Array = leaves.total(gradient.reshape(-1, *saved.shape[-axes:]), axis=0, out=out)
    return result


layer_norm = Primitive(
    "layer_norm",
    _layer_norm,
    (_layer_norm_x, _layer_norm_weight, _layer_norm_bias),
    keeps=True,
    reads=((1,), (), ()),
    writes=(1, 2),
)


def _normalised_channels(
    x: Array, weight: Array | None, bias: Array | None, statistics: tuple[Array, Array], eps: float
) -> tuple[Array, _Standardised]:
    rows = _by_channel(x, "batch_norm")
    for each in (weight, bias, *statistics):
        if each is not None and each.shape != (len(rows),):
            raise ValueError(
                f"batch_norm got a weight, bias or statistic of shape {each.shape!r}, expected {(len(rows),)!r}: "
                f"one for each channel of the input (shape {x.shape!r})"
            )
    mean, variance = (each[:, None].astype(x.dtype, copy=False) for each in statistics)
    saved = _standardise(rows, mean, variance, eps, x.shape)
    # A new array in any case: a change of the result in place must not reach the saved one.
    result = copied(saved.rows) if weight is None else saved.rows * weight[:, None]
    if bias is not None:
        result = np.add(result, bias[:, None], out=result)
    return _from_channels(result, x.shape), saved


def _standardise(rows: Array, mean: Array, variance: Array, eps: float, shape: Shape) -> _Standardised:
    deviation = np.sqrt(variance + eps)
    standardised = rows - mean
    standardised /= deviation
    return _Standardised(standardised, deviation, shape)


def _through_standardising(gradient: Array, saved: _Standardised) -> Array:
    """Return the gradient of the rows before they were standardised by their own mean and variance.

    Of y = (x - μ) / σ it is (g - mean(g) - y · mean(g y)) / σ: what would shift or scale a row is projected away.
    """
    count = max(1, gradient.shape[1])
    result: Array = saved.rows * (-leaves.total(gradient * saved.rows, axis=1, keepdims=True) / count)
    result += gradient
    result -= leaves.total(gradient, axis=1, keepdims=True) / count
    result /= saved.deviation
    return result


def _moments(rows: Array) -> tuple[Array, Array]:
    """Return the mean and the biased variance (rows, 1), in two passes: the difference of squares would cancel."""
    mean: Array = leaves.total(rows, axis=1, keepdims=True) / rows.shape[1]
    variance: Array = leaves.total(np.square(rows - mean), axis=1, keepdims=True) / rows.shape[1]
    return mean, variance


def _row_sums(rows: Array, out: Array | None) -> Array:
    result: Array = leaves.total(rows, axis=1, out=out)
    return result


def _by_channel(x: Array, name: str) -> Array:
    """Return (batch, channels, ...) as contiguous (channels, elements), batch innermost: a view where memory is so."""
    if x.ndim < 2:
        raise ValueError(f"{name} got an input of shape {x.shape!r}, expected (batch, channels, ...)")
    return contiguous(np.moveaxis(x, 0, -1)).reshape(x.shape[1], -1)


def _from_channels(rows: Array, shape: Shape) -> Array:
    """View (channels, elements) as `shape` (batch, channels, ...) again."""
    return np.moveaxis(rows.reshape(*shape[1:], shape[0]), -1, 0)
