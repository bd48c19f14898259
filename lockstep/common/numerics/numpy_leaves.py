"""The leaves by NumPy: native numerics, whose bits depend on its version, its BLAS and the processor."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from lockstep.common.numerics.operands import Mean, Windows, taps
from lockstep.common.numerics.sums import first_not_finite, over_tree

Array = NDArray[Any]
Instruction = Callable[..., Any]

#: The columns of one block. More than the second-level cache holds: a product of fewer columns costs more than is
#: lost there (cnn at 32 images: 12.5, 12.1, 12.0, 11.7, 11.8, 12.3 ms a step with 256 KiB, 512 KiB, ... 8 MiB).
BLOCK_BYTES = 1 << 21

#: Ranges of rows of windows, of windows in a row, and of images.
Block = tuple[slice, slice, slice]


def _sigmoid(x: Array, out: Array) -> None:
    """Write `1 / (1 + exp(-x))`, by the exponential of a number that is never positive: small results stay exact."""
    decay = np.exp(-np.abs(x))
    np.divide(np.maximum(decay, x >= 0), 1 + decay, out=out)


@functools.cache
def _coefficients(dtype: np.dtype[np.floating]) -> tuple[float, Array]:
    """Return the bound beyond which erf rounds to 1, and the Chebyshev series of `erf(sqrt(t)) / sqrt(t)`.

    That function of `t = x**2` is entire, so the series converges faster than any power; leaving out the odd
    factor x keeps the relative accuracy near 0. The values come from the C library.
    """
    bound, degree = (4.0, 24) if dtype == np.float32 else (6.0, 56)

    roots = bound * np.sqrt((chebyshev.chebpts1(degree + 1) + 1) / 2)
    values = [math.erf(root) / root for root in roots.tolist()]
    series = chebyshev.chebfit(chebyshev.chebpts1(degree + 1), values, degree)
    return bound, series.astype(dtype)


def _erf(x: Array, out: Array) -> None:
    """Write the error function, which NumPy lacks, to some units of rounding."""
    bound, series = _coefficients(out.dtype)
    inside = np.clip(x, -bound, bound)
    np.multiply(inside, chebyshev.chebval(inside * inside * (2 / bound**2) - 1, series), out=out)


def _relu_gradient(gradient: Array, result: Array, out: Array) -> None:
    """Write the gradient where the result is positive, and 0 elsewhere.

    The product of the bits, as integers, and 0 or 1 also drops infinities and NaN, and takes a fifteenth of the time of
    `np.where`, which mispredicts a branch an element (128 x 512 float32 and a random mask: 14 against 212 us).
    """
    bits = np.dtype(f"i{gradient.itemsize}")
    np.multiply(gradient.view(bits), result > 0, out=out.view(bits))


def _product(left: Array, right: Array, *rest: Array) -> None:
    """Multiply, and add a bias (m,) to each row, if there is one."""
    *biases, out = rest
    np.matmul(left, right, out=out)
    for bias in biases:
        np.add(out, bias[:, np.newaxis], out=out)


def _product_sum(lefts: Array, rights: Array, out: Array, adds: bool) -> None:
    """Write the sum over the tree of products of (count, m, k) and (count, k, n), or add it to the values there."""
    total = over_tree(
        len(lefts),
        lambda place: np.asarray(np.matmul(lefts[place], rights[place])),
        lambda left, right: np.add(left, right, out=left),
    )
    np.add(out, total, out=out) if adds else np.copyto(out, total)


def _windows(x: Array, windows: Windows, groups: int) -> Array:
    """View padded images (G·C, height, width, N) as their windows (G, C, kh, kw, oh, ow, N), without a copy."""
    rows, columns = windows
    depth = len(x) // groups
    of_channel, of_row, of_column, of_image = x.strides
    within = (rows.dilation * of_row, columns.dilation * of_column)
    between = (rows.stride * of_row, columns.stride * of_column)
    return as_strided(
        x,
        (groups, depth, rows.kernel, columns.kernel, rows.count, columns.count, x.shape[3]),
        (depth * of_channel, of_channel, *within, *between, of_image),
    )


def _convolution(x: Array, kernels: Array, *rest: Any) -> None:
    """Multiply kernels (G·O, C, kh, kw) with each window, and add a bias (G·O,), if there is one."""
    *biases, out, windows, groups = rest
    matrices, result = _by_group(kernels, groups), _by_group(out, groups)
    for block, columns in _gathered(_windows(x, windows, groups)):
        part = result[(..., *block)]
        np.copyto(part, np.matmul(matrices.reshape(*matrices.shape[:2], -1), columns).reshape(part.shape))
    for bias in biases:
        np.add(out, bias[:, np.newaxis, np.newaxis, np.newaxis], out=out)


def _convolution_to_kernels(gradient: Array, x: Array, out: Array, windows: Windows, groups: int) -> None:
    """Add what each window adds to the gradient of the kernels, from that of the result (G·O, oh, ow, N)."""
    gradients = _by_group(gradient, groups)
    total = np.zeros((groups, len(out) // groups, math.prod(out.shape[1:])), out.dtype)
    for block, columns in _gathered(_windows(x, windows, groups)):
        part = gradients[(..., *block)]
        total += np.matmul(part.reshape(*part.shape[:2], -1), columns.transpose(0, 2, 1))
    np.copyto(out, total.reshape(out.shape))


def _convolution_to_input(gradient: Array, kernels: Array, out: Array, windows: Windows, groups: int) -> None:
    """Add to each element what the windows that see it get."""
    padded = np.zeros((len(out), *(each.padded for each in windows), out.shape[3]), out.dtype)
    viewed, gradients = _windows(padded, windows, groups), _by_group(gradient, groups)
    matrices = _by_group(kernels, groups)
    transposed = matrices.reshape(*matrices.shape[:2], -1).transpose(0, 2, 1)
    for block in _blocks(viewed.shape, viewed.itemsize):
        target, part = viewed[(..., *block)], gradients[(..., *block)]
        columns = np.matmul(transposed, part.reshape(*part.shape[:2], -1)).reshape(target.shape)
        # At one offset no two windows meet, so each of these additions writes an element once.
        for y in range(target.shape[2]):
            for column in range(target.shape[3]):
                target[:, :, y, column] += columns[:, :, y, column]
    np.copyto(out, padded[:, *(each.inside for each in windows)])


def _by_group(x: Array, groups: int) -> Array:
    return x.reshape(groups, len(x) // groups, *x.shape[1:], copy=False)


def _gathered(windows: Array) -> Iterator[tuple[Block, Array]]:
    """Yield blocks with their columns (G, K, P)."""
    for block in _blocks(windows.shape, windows.itemsize):
        source = windows[(..., *block)]
        yield block, source.reshape(len(windows), math.prod(source.shape[1:4]), -1)


@lru_cache(maxsize=1024)
def _blocks(shape: tuple[int, ...], itemsize: int) -> tuple[Block, ...]:
    """Cut (oh, ow, N) into near-equal blocks: rows of windows, else a part of a row, else images of one window."""
    *_, rows, columns, images = shape
    limit = max(1, BLOCK_BYTES // max(1, math.prod(shape[:4]) * itemsize))
    row_parts = _parts(rows, limit // max(1, columns * images))
    column_parts = _parts(columns, limit // max(1, images))
    image_parts = _parts(images, limit)
    return tuple((r, c, i) for r in row_parts for c in column_parts for i in image_parts)


def _parts(size: int, limit: int) -> list[slice]:
    """Cut [0, size) into the fewest parts of at most max(1, limit), as equal as can be."""
    parts = -(-size // max(1, limit))
    return [slice(k * size // parts, (k + 1) * size // parts) for k in range(parts)]


def _max_pool(x: Array, out: Array, windows: Windows) -> None:
    out.fill(-np.inf if out.dtype.kind == "f" else np.iinfo(out.dtype).min)
    for elements, seen in taps(*windows):
        np.maximum(out[seen], x[elements], out=out[seen])


def _max_pool_gradient(gradient: Array, x: Array, pooled: Array, out: Array, windows: Windows) -> None:
    """Add to each element what it takes of its windows; what it does not take is left for those after it.

    As integers: a product with a mask then selects bits, also those of infinities, and the exclusive or of the rest
    before and after is the part that was taken. A window's NaN is its largest, and its first element takes all.
    """
    bits = np.dtype(f"i{gradient.itemsize}")
    rest = gradient.copy("C").view(bits)
    out.fill(0)
    for elements, seen in taps(*windows):
        left = np.multiply(rest[seen], np.less(x[elements], pooled[seen]))
        out[elements] += np.bitwise_xor(rest[seen], left).view(gradient.dtype)
        rest[seen] = left


def _powers(scores: Array) -> tuple[Array, Array, Array]:
    """Return (classes, samples) scores less the largest of each sample, their exponentials, and the sums of those."""
    with np.errstate(invalid="ignore", over="ignore"):  # a difference below all floats is -inf, and its exponential 0
        shifted = np.subtract(scores, np.maximum.reduce(scores, axis=0), order="C")
    powers = np.exp(shifted)
    return shifted, powers, np.add.reduce(powers, axis=0)


def _cross_entropy(scores: Array, targets: Array, out: Array, smoothing: float) -> None:
    """Write -log softmax(scores)[target], softmax and logarithm fused."""
    shifted, _, total = _powers(scores)
    at_target = shifted[targets, np.arange(targets.size)]
    if smoothing:
        everywhere = np.add.reduce(shifted, axis=0) * (smoothing / len(scores))
        at_target = (1.0 - smoothing) * at_target + everywhere
    np.subtract(np.log(total), at_target, out=out)


def _cross_entropy_gradient(scores: Array, targets: Array, gradient: Array, out: Array, smoothing: float) -> None:
    _, powers, total = _powers(scores)
    powers /= total
    if smoothing:
        powers -= smoothing / len(scores)
    powers[targets, np.arange(targets.size)] -= out.dtype.type(1.0 - smoothing)
    np.multiply(powers, gradient, out=out)


def _recurrent(
    x: Array, to_input: Array, input_bias: Array | None, state_bias: Array | None, lengths: Array | None, *kept: Any
) -> None:
    """Make the steps of a recurrent layer: see `leaves.recurrent`."""
    to_state, gates, curves, cells, states, kind, is_reversed = kept
    np.matmul(x, to_input.T, out=gates)
    if input_bias is not None:
        gates += input_bias
    for step in range(len(x))[:: -1 if is_reversed else 1]:
        before, after = step + is_reversed, step + 1 - is_reversed
        products = states[before] @ to_state.T
        if state_bias is not None:
            products += state_bias
        if kind == "lstm":
            _lstm(gates[step], products, cells[before], cells[after], curves[step], states[after])
        elif kind == "gru":
            _gru(gates[step], products, states[before], curves[step], states[after])
        else:
            gates[step] += products
            (np.tanh if kind == "tanh" else partial(np.maximum, 0))(gates[step], out=states[after])
        if lengths is not None:
            ended = lengths <= step
            for held in (states, cells)[: 1 + (kind == "lstm")]:
                held[after][ended] = held[before][ended]


def _recurrent_gradient(
    x: Array,
    to_input: Array | None,
    of_result: Array,
    of_states: Array,
    of_gates: Array,
    *rest: Any,
) -> None:
    """Make the steps back: see `leaves.recurrent`."""
    of_x, of_to_input, of_to_state, of_biases, *kept = rest
    of_products = np.empty_like(of_gates) if kept[-2] == "gru" else of_gates
    _back_through_steps(of_result, *of_states, of_gates, of_products, *kept)
    *_, states, _, is_reversed = kept
    before = states[1:] if is_reversed else states[:-1]
    by_row, by_row_of_products = (each.reshape(-1, each.shape[-1]) for each in (of_gates, of_products))
    if of_x is not None and to_input is not None:
        np.matmul(of_gates, to_input, out=of_x)
    np.matmul(by_row.T, x.reshape(len(by_row), -1), out=of_to_input)
    np.matmul(by_row_of_products.T, before.reshape(len(by_row), -1), out=of_to_state)
    np.add.reduce(by_row, axis=0, out=of_biases[0])
    np.add.reduce(by_row_of_products, axis=0, out=of_biases[1])


def _back_through_steps(
    of_result: Array,
    of_state: Array,
    of_cell: Array,
    of_gates: Array,
    of_products: Array,
    lengths: Array | None,
    *kept: Any,
) -> None:
    to_state, gates, curves, cells, states, kind, is_reversed = kept
    direct = np.zeros_like(of_state)
    for step in range(len(of_result))[:: 1 if is_reversed else -1]:
        before, after = step + is_reversed, step + 1 - is_reversed
        of_state += direct
        ended = np.zeros(len(of_state), np.bool_) if lengths is None else lengths <= step
        held = of_state[ended], of_cell[ended]
        of_state += of_result[step]
        if kind == "lstm":
            _lstm_gradient(gates[step], curves[step], cells[before], of_state, of_cell, of_gates[step])
        elif kind == "gru":
            gradients = (of_state, direct, of_gates[step], of_products[step])
            _gru_gradient(gates[step], curves[step], states[before], *gradients)
        elif kind == "tanh":
            np.multiply(of_state, 1 - states[after] ** 2, out=of_gates[step])
        else:
            _relu_gradient(of_state, states[after], of_gates[step])
        of_gates[step][ended] = of_products[step][ended] = direct[ended] = 0
        np.matmul(of_products[step], to_state, out=of_state)
        of_state[ended], of_cell[ended] = held
    of_state += direct


def _lstm(gates: Array, products: Array, before: Array, cell: Array, curve: Array, state: Array) -> None:
    """Make a step of an LSTM; `gates` (batch, 4 · hidden) come as products with the input."""
    gates += products
    takes, keeps, candidate, shows = np.split(gates, 4, axis=1)
    for gate in (takes, keeps, shows):
        _sigmoid(gate, gate)
    np.tanh(candidate, out=candidate)
    np.multiply(takes, candidate, out=curve)
    np.multiply(keeps, before, out=cell)
    cell += curve
    np.tanh(cell, out=curve)
    np.multiply(shows, curve, out=state)


def _lstm_gradient(gates: Array, curve: Array, before: Array, of_state: Array, of_cell: Array, of_gates: Array) -> None:
    """Write the gradient of the products, and that of the cell before over the cell's."""
    takes, keeps, candidate, shows = np.split(gates, 4, axis=1)
    of_takes, of_keeps, of_candidate, of_shows = np.split(of_gates, 4, axis=1)
    shown = of_state * shows
    of_cell += shown
    shown *= curve
    shown *= curve
    of_cell -= shown
    np.multiply(of_state, curve, out=of_shows)
    np.multiply(of_cell, candidate, out=of_takes)
    np.multiply(of_cell, before, out=of_keeps)
    np.multiply(of_cell, takes, out=of_candidate)
    of_cell *= keeps
    for gate, of_gate in ((takes, of_takes), (keeps, of_keeps), (shows, of_shows)):
        of_gate *= gate
        of_gate *= 1 - gate
    of_candidate *= 1 - candidate * candidate


def _gru(gates: Array, products: Array, before: Array, curve: Array, state: Array) -> None:
    """Make a step of a GRU; `gates` (batch, 3 · hidden) come as products with the input."""
    resets, keeps, candidate = np.split(gates, 3, axis=1)
    hidden = candidate.shape[1]
    both, curve[:] = gates[:, : 2 * hidden], products[:, 2 * hidden :]
    both += products[:, : 2 * hidden]
    _sigmoid(both, both)
    candidate += curve * resets
    np.tanh(candidate, out=candidate)
    np.subtract(before, candidate, out=state)
    state *= keeps
    state += candidate


def _gru_gradient(
    gates: Array,
    curve: Array,
    before: Array,
    of_state: Array,
    direct: Array,
    of_gates: Array,
    of_products: Array,
) -> None:
    """Write the gradients of gates and products, and to `direct` what the state before gets without a product."""
    resets, keeps, candidate = np.split(gates, 3, axis=1)
    of_resets, of_keeps, of_candidate = np.split(of_gates, 3, axis=1)
    np.subtract(before, candidate, out=of_keeps)
    of_keeps *= of_state
    np.multiply(of_state, keeps, out=direct)
    np.subtract(of_state, direct, out=of_candidate)
    of_candidate *= 1 - candidate * candidate
    np.multiply(of_candidate, curve, out=of_resets)
    for gate, of_gate in ((resets, of_resets), (keeps, of_keeps)):
        of_gate *= gate
        of_gate *= 1 - gate
    np.copyto(of_products, of_gates)
    np.split(of_products, 3, axis=1)[2][...] *= resets


def _momentum(
    weights: Array, old: Array | None, out: Array, new: Array | None, momentum: float, decay: float, is_nesterov: bool
) -> Callable[[Mean, float], bool]:
    """Bind an update to its vectors: a function of the mean, whose memory it overwrites, and of the rate."""

    def update(mean: Mean, rate: float) -> bool:
        gradient = mean.compute()
        if out.dtype.type(decay):
            np.multiply(weights, decay, out=out)
            gradient += out
        direction = gradient
        if old is not None and new is not None:
            np.multiply(old, momentum, out=new)
            np.add(new, gradient, out=new)
            direction = new
            if is_nesterov:
                np.multiply(new, momentum, out=out)
                gradient += out
                direction = gradient
        # Not by way of `out`, which is in no cache yet.
        np.multiply(direction, float(rate), out=gradient)
        np.subtract(weights, gradient, out=out)
        return first_not_finite(out) is None

    return update


def _sum(x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> Instruction:
    return partial(np.add.reduce, x, axis=axes, out=out, keepdims=keepdims)


def _calls(function: Callable[..., Any]) -> Callable[..., Instruction]:
    """Return what binds a function whose last array is the one that it fills."""
    return lambda *operands: partial(function, *operands)


#: For each leaf, what binds its operands: arrays, the result, options.
NUMPY: Mapping[str, Callable[..., Instruction]] = {
    "exp": _calls(np.exp),
    "log": _calls(np.log),
    "log1p": _calls(np.log1p),
    "tanh": _calls(np.tanh),
    "sigmoid": _calls(_sigmoid),
    "erf": _calls(_erf),
    "power": _calls(np.power),
    "relu": _calls(lambda x, out: np.maximum(x, 0, out=out)),
    "relu_gradient": _calls(_relu_gradient),
    "product": _calls(_product),
    "product_sum": _calls(_product_sum),
    "sum": _sum,
    "convolution": _calls(_convolution),
    "convolution_to_input": _calls(_convolution_to_input),
    "convolution_to_kernels": _calls(_convolution_to_kernels),
    "max_pool": _calls(_max_pool),
    "max_pool_gradient": _calls(_max_pool_gradient),
    "momentum": _momentum,
    "cross_entropy": _calls(_cross_entropy),
    "cross_entropy_gradient": _calls(_cross_entropy_gradient),
    "recurrent": _calls(_recurrent),
    "recurrent_gradient": _calls(_recurrent_gradient),
    "add_rows": lambda gradient, indices, out: partial(np.add.at, out, indices, gradient),
}
