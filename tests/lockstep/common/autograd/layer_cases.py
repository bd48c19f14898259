"""The gradient checks of convolution, pooling, normalisation, dropout, embedding, softmax and the losses."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lockstep.common.autograd.primitives import (
    convolution,
    elementwise,
    losses,
    normalization,
    pooling,
    recurrent,
    shape,
    softmax,
)
from lockstep.common.autograd.primitives.primitive import Array, Sink
from lockstep.common.numerics.operands import GATES
from tests.lockstep.common.autograd.cases import Call, Case
from tests.lockstep.common.autograd.strategies import anything, arrays, distinct, positive, shapes

_small = st.integers(1, 3)


@st.composite
def _convolved(draw: st.DrawFn, axes: int) -> Call:
    groups, batch = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 2)] * axes)
    stride, dilation = draw(each), draw(each)
    padding = draw(st.tuples(*[st.integers(0, 2)] * axes))
    kernel = draw(st.tuples(*[_small] * axes))
    image = tuple(1 + (k - 1) * d + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True))
    bias = draw(st.none() | arrays((out,)))
    arguments = [draw(arrays((batch, channels, *image))), draw(arrays((out, channels // groups, *kernel))), bias]
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return arguments, {name: each if axes == 2 else each[0] for name, each in options.items()} | {"groups": groups}


@st.composite
def _pooled(draw: st.DrawFn, /, axes: int, *, has_gaps: bool = False, **options: Any) -> Call:
    kernel = draw(st.tuples(*[_small] * axes))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    stride = draw(st.none() | st.tuples(*[_small] * axes))
    dilation = draw(st.integers(1, 2)) if has_gaps else 1
    image = tuple(dilation * (size - 1) + 1 + draw(st.integers(0, 4)) for size in kernel)
    x = draw(arrays((draw(st.integers(0, 3)), draw(_small), *image), distinct))
    found = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": (dilation,) * axes}
    options = {"ceil_mode": draw(st.booleans()), **options}
    return [x], {name: value if axes == 2 or value is None else value[0] for name, value in found.items()} | options


@st.composite
def _adaptive(draw: st.DrawFn, axes: int) -> Call:
    x = draw(arrays((draw(st.integers(0, 3)), draw(_small), *draw(st.tuples(*[st.integers(1, 5)] * axes)))))
    sizes = draw(st.tuples(*[_small] * axes))
    return [x], {"output_size": sizes if axes == 2 else sizes[0]}


@st.composite
def _sequences(draw: st.DrawFn) -> Call:
    """Return sequences, states and weights of each kind of step; relu has a kink."""
    kind = draw(st.sampled_from(["lstm", "gru", "tanh"]))
    steps, batch, features, hidden = (draw(_small) for _ in range(4))
    rows = GATES[kind] * hidden
    state = draw(st.none() | arrays((batch, hidden)))
    cell = draw(st.none() | arrays((batch, hidden))) if kind == "lstm" else None
    weights = [draw(arrays((rows, features))), draw(arrays((rows, hidden)))]
    biases = [draw(arrays((rows,))), draw(arrays((rows,)))] if draw(st.booleans()) else [None, None]
    lengths = draw(st.none() | st.tuples(*[st.integers(1, steps)] * batch))
    options = {"kind": kind, "is_reversed": draw(st.booleans()), "lengths": lengths}
    return [draw(arrays((steps, batch, features))), state, cell, *weights, *biases], options


@st.composite
def _affine(draw: st.DrawFn, sizes: tuple[int, ...]) -> list[Array | None]:
    return [draw(st.none() | arrays(sizes)), draw(st.none() | arrays(sizes))]


@st.composite
def _batch_norm(draw: st.DrawFn, inference: bool) -> Call:
    channels = draw(_small)
    x = draw(arrays((draw(st.integers(1, 4)), channels, *draw(shapes(max_dims=2, min_side=1, max_side=3))), distinct))
    if not inference:
        return [x, *draw(_affine((channels,))), None], {}
    return [x, *draw(_affine((channels,)))], {
        "mean": draw(arrays((channels,))),
        "var": draw(arrays((channels,), positive)),
    }


@st.composite
def _observed(draw: st.DrawFn) -> Call:
    x = draw(arrays((draw(st.integers(1, 4)), *draw(shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)))))
    return [x], {"sink": Sink()}


@st.composite
def _layer_norm(draw: st.DrawFn) -> Call:
    x = draw(arrays(draw(shapes(min_dims=1, min_side=1)), distinct))
    axes = draw(st.integers(1, x.ndim))
    return [x, *draw(_affine(x.shape[x.ndim - axes :]))], {"axes": axes}


class _SameNumbers:
    """In place of a generator: each call draws the same, so that the dropped elements stay the same."""

    def random(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.random.default_rng(0).random(shape, dtype)


@st.composite
def _dropped(draw: st.DrawFn) -> Call:
    return [draw(arrays(draw(shapes())))], {"p": draw(st.sampled_from([0.0, 0.3, 1.0])), "rng": _SameNumbers()}


@st.composite
def _embedded(draw: st.DrawFn) -> Call:
    indices = draw(
        st.sampled_from([np.array(1), np.array([2, 0, 2]), np.array([[1, 1], [3, 1]]), np.zeros((0, 2), int)])
    )
    return [indices, draw(arrays((4, draw(st.integers(0, 3)))))], {}


@st.composite
def _along_axis(draw: st.DrawFn) -> Call:
    x = draw(arrays(draw(shapes(min_dims=1, min_side=1))))
    return [x], {"axis": draw(st.integers(-x.ndim, x.ndim - 1))}


_reductions = st.sampled_from(["mean", "sum", "none"])


@st.composite
def _classified(draw: st.DrawFn, smoothing: bool) -> Call:
    classes = draw(st.integers(1, 4))
    samples = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]))
    logits = draw(arrays((*samples[:1], classes, *samples[1:])))
    target = np.random.default_rng(draw(st.integers(0, 99))).integers(0, classes, samples)
    options = {"label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]))} if smoothing else {}
    return [logits, np.asarray(target)], {"reduction": draw(_reductions), **options}


@st.composite
def _compared(draw: st.DrawFn) -> Call:
    sizes = draw(shapes(min_side=1))
    return [draw(arrays(sizes, anything)), draw(arrays(sizes, positive))], {"reduction": draw(_reductions)}


@st.composite
def _weighted(draw: st.DrawFn, smoothing: bool) -> Call:
    (logits, target), options = draw(_classified(smoothing))
    classes = logits.shape[min(1, logits.ndim - 1)]
    ignored = draw(st.sampled_from([None, 0]))
    if ignored is not None and (target == ignored).all():
        ignored = None  # a mean over nothing is not a number
    weight = draw(arrays((classes,), positive))
    return [logits, target], {**options, "ignore_index": ignored, "weight": weight}


def _kinkless(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.choice(np.array([-2.5, -0.5, 0.5, 2.5]), shape)


@st.composite
def _apart(draw: st.DrawFn) -> Call:
    """Differences that are not near 0, where |x| has no derivative, and not near 1, where smooth L1 has no second."""
    (prediction, _), options = draw(_compared())
    return [prediction, np.asarray(prediction - draw(arrays(prediction.shape, _kinkless)))], options


@st.composite
def _positive(draw: st.DrawFn) -> Call:
    (prediction, target), options = draw(_compared())
    return [prediction, target], {**options, "pos_weight": draw(arrays(prediction.shape[-1:], positive))}


LAYER_CASES = [
    Case(convolution.conv1d, _convolved(1)),
    Case(convolution.conv2d, _convolved(2)),
    Case(pooling.max_pool1d, _pooled(1, has_gaps=True)),
    Case(pooling.max_pool2d, _pooled(2, has_gaps=True)),
    *(Case(pooling.avg_pool1d, _pooled(1, count_include_pad=each)) for each in (True, False)),
    *(Case(pooling.avg_pool2d, _pooled(2, count_include_pad=each)) for each in (True, False)),
    Case(pooling.avg_pool2d, _pooled(2, divisor_override=3)),
    Case(pooling.adaptive_avg_pool1d, _adaptive(1)),
    Case(pooling.adaptive_avg_pool2d, _adaptive(2)),
    Case(normalization.batch_norm, _batch_norm(inference=False)),
    Case(normalization.batch_moments, _observed()),
    Case(normalization.batch_norm_inference, _batch_norm(inference=True)),
    Case(normalization.layer_norm, _layer_norm()),
    Case(elementwise.dropout, _dropped()),
    Case(shape.embedding, _embedded()),
    Case(recurrent.recurrent, _sequences()),
    Case(softmax.softmax, _along_axis()),
    Case(softmax.log_softmax, _along_axis()),
    Case(losses.cross_entropy, _classified(smoothing=True)),
    Case(losses.nll, _classified(smoothing=False)),
    Case(losses.weighted_cross_entropy, _weighted(smoothing=True)),
    Case(losses.weighted_nll, _weighted(smoothing=False)),
    Case(losses.mse, _compared()),
    Case(losses.l1, _apart()),
    Case(losses.smooth_l1, _apart()),
    Case(losses.weighted_bce_with_logits, _positive()),
    Case(losses.bce_with_logits, _compared()),
]
