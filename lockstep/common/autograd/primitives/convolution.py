"""Convolutions (cross-correlations, as in PyTorch) over (batch, channels, height, width) or (batch, channels, length).

Any memory layout is accepted; results and gradients have the batch innermost.
"""

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive, contiguous, empty, zeros
from lockstep.common.autograd.primitives.windows import (
    Pair,
    batch_first,
    batch_innermost,
    check_images,
    over_signals,
    pair,
    windows_over,
)
from lockstep.common.numerics.leaves import convolution, convolution_to_input, convolution_to_kernels, total
from lockstep.common.numerics.operands import Windows


class _Seen(msgspec.Struct, frozen=True):
    """Values that the backward pass needs: the padded input, the shape of the weight, and the windows."""

    padded: Array  # (in, height, width, batch)
    kernels: tuple[int, ...]  # the shape of the weight
    options: tuple[Windows, int]  # those of the leaves: the windows, and the number of groups


def _conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Array, _Seen]:
    """Correlate `x` (batch, in, height, width) with `weight` (out, in/groups, kh, kw), plus `bias` (out,).

    Returns (batch, out, oh, ow). Raises ValueError if the shapes do not fit together.
    """
    check_images(x, "conv2d")
    _check_weight(x, weight, bias, groups)
    along = (pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    windows = windows_over("a convolution", x.shape[2:], weight.shape[2:], *along)
    padded = _padded(x, windows, np.result_type(x, weight))
    seen = _Seen(padded, weight.shape, (windows, groups))
    result = empty((len(weight), *(each.count for each in windows), padded.shape[3]), padded)
    biases = () if bias is None else (bias,)
    convolution(padded, contiguous(weight, padded.dtype), *biases, out=result, options=seen.options)
    return batch_first(result), seen


def _conv2d_x(gradient: Array, seen: _Seen, x: Array | None, weight: Array, *_: object, **__: object) -> Array:
    sizes = (each.size for each in seen.options[0])
    result = empty((len(seen.padded), *sizes, seen.padded.shape[3]), gradient)
    kernels = contiguous(weight, gradient.dtype)
    return batch_first(convolution_to_input(batch_innermost(gradient), kernels, out=result, options=seen.options))


def _conv2d_weight(gradient: Array, seen: _Seen, *_: object, out: Array | None = None, **__: object) -> Array:
    result = empty(seen.kernels, gradient) if out is None else out
    return convolution_to_kernels(batch_innermost(gradient), seen.padded, out=result, options=seen.options)


def _conv2d_bias(gradient: Array, *_: object, out: Array | None = None, **__: object) -> Array:
    return total(batch_innermost(gradient), axis=(1, 2, 3), out=out)


# The weight's derivative counts as reading `x`: without padding or another layout, the padded input is a view of it.
conv2d = Primitive(
    "conv2d", _conv2d, (_conv2d_x, _conv2d_weight, _conv2d_bias), keeps=True, reads=((1,), (0,), ()), writes=(1, 2)
)


def _check_kernel(weight: Array, bias: Array | None = None) -> None:
    if weight.ndim != 3:
        raise ValueError(f"conv1d got a weight of shape {weight.shape!r}, expected (out, in/groups, kernel)")


conv1d = over_signals("conv1d", conv2d, _check_kernel)


def _padded(x: Array, windows: Windows, dtype: np.dtype[np.generic]) -> Array:
    """Return `x` with zeros around it, as (channels, height, width, batch); a view if nothing has to be copied."""
    if not any(each.padding for each in windows):
        return batch_innermost(x).astype(dtype, copy=False)
    batch, channels = x.shape[:2]
    padded = zeros((channels, *(each.padded for each in windows), batch), x, dtype)
    np.copyto(padded[:, *(each.inside for each in windows)], x.transpose(1, 2, 3, 0))
    return padded


def _check_weight(x: Array, weight: Array, bias: Array | None, groups: int) -> None:
    if weight.ndim != 4:
        raise ValueError(f"conv2d got a weight of shape {weight.shape!r}, expected (out, in/groups, kh, kw)")
    outputs, depth = weight.shape[:2]
    if groups < 1 or outputs % groups:
        raise ValueError(f"a convolution has {outputs} outputs in {groups!r} groups, expected groups to divide them")
    if depth == 0 or x.shape[1] != depth * groups:
        raise ValueError(
            f"a convolution got an input of {x.shape[1]} channels (shape {x.shape!r}), but its weight of shape "
            f"{weight.shape!r} in {groups} groups expects {depth * groups}: change in_channels or the input"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a convolution got a bias of shape {bias.shape!r}, expected {(outputs,)!r}: one an output")
