"""A second implementation of portable numerics, slow, from the page of the contract: the oracle of the kernels.

It is written from docs/reference/numerics.md, whose coefficients and test vectors it reads. It may use of NumPy what
IEEE 754 fixes: + - * / and sqrt of float32 and float64, comparisons, conversions, bits.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.architecture.source import ROOT

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Whole = NDArray[np.int32]

PAGE = ROOT / "docs" / "reference" / "numerics.md"
CHAIN, LANES = 256, 16
NOT_A_NUMBER = np.uint32(0x7FC00000).view(np.float32)
_f = np.float32
_SHIFT, _LN2, _LN2_REST = (_f(float.fromhex(text)) for text in ("0x1.8p+23", "0x1.62e4p-1", "0x1.7f7d1cp-20"))


@cache
def coefficients(name: str) -> tuple[float, ...]:
    """Return a list of coefficients of the page, from the lowest power on."""
    found = re.search(rf"^\| `{name}` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, name
    return tuple(map(float.fromhex, found[1].split(", ")))


def vectors(name: str) -> list[tuple[Floats, ...]]:
    """Return the operands and the result of each test vector of a function."""
    found = re.search(rf"^\| `{name}` \| (.*→.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, name
    return [
        tuple(np.array([int(word, 16)], np.uint32).view(np.float32) for word in re.findall(r"[0-9a-f]{8}", vector))
        for vector in found[1].split("; ")
    ]


def fma(a: Floats, b: Floats, c: Floats | np.float32) -> Floats:
    """Return a * b + c, rounded once.

    The product of two float32 has at most 48 bits and an exponent far within that of float64, in which it is exact.
    The sum in float64 is rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is 1. With
    53 bits, at least two more than the 24 of a float32, rounding that once more gives the nearest float32 of the exact
    sum, since an odd last bit is never half-way, nor on the wrong side of it (Boldo and Melquiond, "Emulation of FMA
    and correctly rounded sums", IEEE Trans. Computers 57, 2008). The error of a sum is exact by Knuth's TwoSum.
    """
    with np.errstate(all="ignore"):
        product, addend = np.float64(a) * np.float64(b), np.float64(c)
        total = np.asarray(product + addend)
        part = total - product
        error = np.asarray((product - (total - part)) + (addend - part))
        words = total.view(np.int64)
        is_even = np.isfinite(total) & (error != 0.0) & (words & 1 == 0)
        # The next number away from zero has the next word, whatever the sign.
        odd = np.where(is_even, words + np.where((error > 0.0) == (total > 0.0), 1, -1), words)
        return np.asarray(odd.view(np.float64), np.float32)


# --- products, convolutions, sums -------------------------------------------------------------------------------------

Term = tuple[Floats, Floats]


def sum_of_chains(terms: Iterable[Term], shape: tuple[int, ...]) -> Floats:
    """Return the sums of chains of arrays of terms, one for each element of `shape`."""
    all_terms = list(terms)
    total: Floats | None = None
    for first in range(0, len(all_terms), CHAIN):
        chain = np.zeros(shape, np.float32)
        for a, b in all_terms[first : first + CHAIN]:
            chain = fma(a, b, chain)
        total = chain if total is None else total + chain
    return np.zeros(shape, np.float32) if total is None else total


def halves(lanes: Floats) -> Floats:
    """Return the sum of lanes (16, ...)."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return np.asarray(lanes[0])


def product(a: Floats, b: Floats) -> Floats:
    """Return the product of matrices (m, k) and (k, n)."""
    return sum_of_chains(((a[:, t, None], b[t]) for t in range(a.shape[1])), (a.shape[0], b.shape[1]))


def total(x: Floats, axes: Sequence[int]) -> Floats:
    """Return the sums over `axes`."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    terms = x.transpose(*sorted(axes), *kept).reshape(-1, *(x.shape[axis] for axis in kept))
    lanes = np.zeros((LANES, *terms.shape[1:]), np.float32)
    for i, term in enumerate(terms):
        lanes[i % LANES] = lanes[i % LANES] + term
    return halves(lanes)


Pair = tuple[int, int]


def _grouped(array: Floats, groups: int) -> list[Floats]:
    return np.split(array, groups)


def convolution(x: Floats, w: Floats, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1) -> Floats:
    """Return y (outputs, rows, columns, images) of padded images and kernels."""
    results = [
        _convolution(*part, stride, dilation) for part in zip(_grouped(x, groups), _grouped(w, groups), strict=True)
    ]
    return np.concatenate(results)


def _sizes(x_shape: Sequence[int], w: Floats, stride: Pair, dilation: Pair) -> Pair:
    rows, columns = (
        (x_shape[1 + axis] - dilation[axis] * (w.shape[2 + axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1)
    )
    return rows, columns


def _seen(x: Floats, p: int, q: int, rows: int, columns: int, stride: Pair, dilation: Pair) -> Floats:
    """Return what element (p, q) of each window sees: (channels, rows, columns, images)."""
    top, left = p * dilation[0], q * dilation[1]
    return x[:, top : top + rows * stride[0] : stride[0], left : left + columns * stride[1] : stride[1]][
        :, :rows, :columns
    ]


def _convolution(x: Floats, w: Floats, stride: Pair, dilation: Pair) -> Floats:
    rows, columns = _sizes(x.shape, w, stride, dilation)
    terms = (
        (w[:, c, p, q][:, None, None, None], _seen(x, p, q, rows, columns, stride, dilation)[c])
        for c in range(w.shape[1])
        for p in range(w.shape[2])
        for q in range(w.shape[3])
    )
    return sum_of_chains(terms, (len(w), rows, columns, x.shape[3]))


def gradient_to_input(
    g: Floats, w: Floats, size: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1
) -> Floats:
    """Return the gradient (channels, *size, images) to the padded images."""
    parts = zip(_grouped(g, groups), _grouped(w, groups), strict=True)
    return np.concatenate([_gradient_to_input(*part, size, stride, dilation) for part in parts])


def _gradient_to_input(g: Floats, w: Floats, size: Pair, stride: Pair, dilation: Pair) -> Floats:
    result = np.zeros((w.shape[1], *size, g.shape[3]), np.float32)
    nothing = np.zeros(g.shape[3], np.float32)
    for h, u in np.ndindex(size):
        terms = []
        for p in range(w.shape[2]):
            r, rest = divmod(h - p * dilation[0], stride[0])
            if rest or not 0 <= r < g.shape[1]:
                continue
            for o in range(len(w)):
                for q in range(w.shape[3]):
                    v, rest = divmod(u - q * dilation[1], stride[1])
                    if not rest:
                        terms.append((w[o, :, p, q, None], g[o, r, v] if 0 <= v < g.shape[2] else nothing))
        result[:, h, u] = sum_of_chains(terms, (w.shape[1], g.shape[3]))
    return result


def gradient_to_kernels(
    g: Floats, x: Floats, kernel: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1
) -> Floats:
    """Return the gradient (outputs, channels of a group, *kernel) to the kernels."""
    parts = zip(_grouped(g, groups), _grouped(x, groups), strict=True)
    return np.concatenate([_gradient_to_kernels(*part, kernel, stride, dilation) for part in parts])


def _gradient_to_kernels(g: Floats, x: Floats, kernel: Pair, stride: Pair, dilation: Pair) -> Floats:
    outputs, rows, columns, images = g.shape
    lanes = np.zeros((LANES, outputs, len(x), *kernel), np.float32)
    seen = np.stack([_seen(x, p, q, rows, columns, stride, dilation) for p, q in np.ndindex(kernel)], axis=-1).reshape(
        len(x), rows, columns, images, *kernel
    )
    for r in range(rows):
        for j in range(columns * images):
            v, n = divmod(j, images)
            gradients = g[:, r, v, n][:, None, None, None]
            lanes[j % LANES] = fma(gradients, seen[:, r, v, n], lanes[j % LANES])
    return halves(lanes)


# --- elements, pools, rows -------------------------------------------------------------------------------------------


def relu(x: Floats) -> Floats:
    """Return what is positive or not a number, +0 for the rest."""
    return np.where((x > 0) | np.isnan(x), x, _f(0))


def relu_gradient(g: Floats, y: Floats) -> Floats:
    """Return the gradient where the result `y` is positive, +0 elsewhere."""
    return np.where(y > 0, g, _f(0))


def _places(first: int, kernel: int, size: int) -> range:
    return range(max(first, 0), min(first + kernel, size))


def _pool_windows(x: Floats, kernel: Pair, stride: Pair, padding: Pair, counts: Pair) -> list[tuple[Pair, list[Pair]]]:
    """Return the row and column of each window, and the elements of the image in it, all in row-major order."""
    sizes = x.shape[1:3]
    found = []
    for r, v in np.ndindex(*counts):
        rows, columns = (_places(at * stride[k] - padding[k], kernel[k], sizes[k]) for k, at in enumerate((r, v)))
        found.append(((r, v), [(h, u) for h in rows for u in columns]))
    return found


def max_pool(x: Floats, kernel: Pair, stride: Pair, padding: Pair, counts: Pair) -> Floats:
    """Return the largest element of each window (channels, rows, columns, images)."""
    y = np.empty((len(x), *counts, x.shape[3]), np.float32)
    for (r, v), ((h, u), *others) in _pool_windows(x, kernel, stride, padding, counts):
        largest = x[:, h, u]
        for h, u in others:
            largest = np.where((largest < x[:, h, u]) | np.isnan(x[:, h, u]), x[:, h, u], largest)
        y[:, r, v] = largest
    return y


def max_pool_gradient(
    g: Floats, x: Floats, y: Floats, kernel: Pair, stride: Pair, padding: Pair, counts: Pair
) -> Floats:
    """Return the gradient of the images from that of the windows' largest elements `y`."""
    result = np.zeros_like(x)
    for (r, v), elements in _pool_windows(x, kernel, stride, padding, counts):
        is_given = np.zeros(g[:, r, v].shape, np.bool_)
        for h, u in elements:
            takes = ~is_given & ~(x[:, h, u] < y[:, r, v])
            result[:, h, u] = np.where(takes, result[:, h, u] + g[:, r, v], result[:, h, u])
            is_given |= takes
    return result


def add_rows(g: Floats, indices: Sequence[int], rows: Floats) -> Floats:
    """Return the rows after each row of `g` was added to the one that its index names, in order."""
    result = rows.copy()
    for each, index in zip(g, indices, strict=True):
        result[index] = result[index] + each
    return result


def follow_momentum(
    w: Floats, g: Floats, v: Floats | None, momentum: float, rate: float, decay: float, is_nesterov: bool
) -> tuple[Floats, Floats | None]:
    """Return the weights and the velocity after a step."""
    m, lr, d = map(_f, (momentum, rate, decay))
    g = g + d * w if d else g
    if v is not None:
        v = m * v + g
        g = g + m * v if is_nesterov else v
    return w - lr * g, v


# --- functions --------------------------------------------------------------------------------------------------------


def _defined(function: Callable[[Floats], Floats]) -> Callable[[Any], Floats]:
    """Let a function of an array give one and the same NaN, without warnings."""

    def defined(x: Any) -> Floats:
        given = np.asarray(x, np.float32)
        with np.errstate(all="ignore"):
            # What a sequence makes of NaN does not matter.
            result = function(np.where(np.isnan(given), _f(1.0), given))
        return np.where(np.isnan(given) | np.isnan(result), NOT_A_NUMBER, result)

    return defined


def _all(value: float | np.float32) -> Floats:
    return np.array(value, np.float32)


def _polynomial(name: str, x: Floats) -> Floats:
    *lower, highest = coefficients(name)
    p = np.full_like(x, highest)
    for c in reversed(lower):
        p = fma(p, x, _f(c))
    return p


def _two_to(n: Whole) -> Floats:
    """Return 2**n, for n from -149 to 127."""
    return np.asarray(np.ldexp(np.float64(1.0), n), np.float32)


def _reduced(x: Floats) -> tuple[Floats, Whole]:
    n = fma(x, _all(float.fromhex("0x1.715476p+0")), _SHIFT) - _SHIFT
    return fma(n, _all(-_LN2_REST), fma(n, _all(-_LN2), x)), n.astype(np.int32)


def _near(r: Floats) -> Floats:
    return fma(r * r, _polynomial("EXP", r), r)


@_defined
def exp(x: Floats) -> Floats:
    r, n = _reduced(np.where(x < -104, _f(-104), np.where(x > 89, _f(89), x)))
    half = n // 2
    return (_near(r) + _f(1)) * _two_to(half) * _two_to(n - half)


def _parts(x: Floats) -> tuple[Floats, Whole]:
    mantissa, n = np.frexp(np.where((x > 0) & np.isfinite(x), x, _f(1)))
    is_small = mantissa < _f(float.fromhex("0x1.6a09e6p-1"))
    return np.where(is_small, mantissa * _f(2), mantissa) - _f(1), (n - is_small).astype(np.int32)


def _log_of_parts(f: Floats, n: Whole) -> Floats:
    square, twos = f * f, n.astype(np.float32)
    y = (square * f) * _polynomial("LOG", f)
    y = fma(twos, _all(_LN2_REST), y)
    y = fma(square, _all(-0.5), y)
    return fma(twos, _all(_LN2), f + y)


def _log_of_any(u: Floats, y: Floats) -> Floats:
    y = np.where(u == 0, _f(-np.inf), np.where(u == np.inf, _f(np.inf), y))
    return np.where(u < 0, NOT_A_NUMBER, y)


@_defined
def log(x: Floats) -> Floats:
    is_tiny = x < _f(2.0**-126)
    f, n = _parts(np.where(is_tiny, x * _f(2.0**23), x))
    return _log_of_any(x, _log_of_parts(f, np.where(is_tiny, n - 23, n).astype(np.int32)))


@_defined
def log1p(x: Floats) -> Floats:
    u = x + _f(1)
    f, n = _parts(u)
    scale = _two_to(-n)
    f = np.where(x < _f(2.0**24), fma(x, scale, scale - _f(1)), f)
    return _log_of_any(u, np.copysign(_log_of_parts(f, n), x))


@_defined
def tanh(x: Floats) -> Floats:
    a = np.minimum(np.abs(x), _f(10))
    z = a * a
    small = fma(_polynomial("TANH", z) * z, a, a)
    r, n = _reduced(a + a)
    large = _f(1) - _f(2) / ((_near(r) + _f(1)) * _two_to(n) + _f(1))
    y = np.where(a < _f(float.fromhex("0x1.19999ap-1")), small, large)
    return np.copysign(y, x)


@_defined
def sigmoid(x: Floats) -> Floats:
    e = exp(-np.abs(x))
    y: Floats = np.where(x < 0, e, _f(1)) / (_f(1) + e)
    return y


@_defined
def erf(x: Floats) -> Floats:
    a = np.minimum(np.abs(x), _f(4))
    r, n = _reduced(_polynomial("ERF_FAR", a))
    near, far = fma(_polynomial("ERF_NEAR", a * a), a, a), _f(1) - (_near(r) + _f(1)) * _two_to(n)
    return np.copysign(np.where(a < 1, near, far), x)


def _polynomial64(name: str, x: Doubles) -> Doubles:
    *lower, highest = coefficients(name)
    p = np.full_like(x, highest)
    for c in reversed(lower):
        p = p * x + c
    return p


def _log2(x: Doubles) -> Doubles:
    mantissa, n = np.frexp(x)
    is_small = mantissa < float.fromhex("0x1.6a09e667f3bcdp-1")
    m = np.where(is_small, mantissa * 2.0, mantissa)
    s = (m - 1.0) / (m + 1.0)
    result: Doubles = s * _polynomial64("LOG2", s * s) + (n - is_small)
    return result


def _exp2(x: Doubles) -> Doubles:
    shift = float.fromhex("0x1.8p+52")
    n = (x + shift) - shift
    r = x - n
    result: Doubles = (_polynomial64("EXP2", r) * r + 1.0) * np.ldexp(1.0, n.astype(np.int32))
    return result


def _power(x: np.float32, y: np.float32) -> np.float32:
    if y == 0 or x == 1:
        return _f(1)
    if y in (0.5, 1, 2, -1):
        return np.sqrt(x) if y == 0.5 else x if y == 1 else x * x if y == 2 else _f(1) / x
    if np.isnan(x) or np.isnan(y):
        return NOT_A_NUMBER
    # Whole numbers from 2**24 on are even, and so is infinity.
    is_whole = bool(np.isinf(y)) or float(y).is_integer()
    is_negated = bool(np.signbit(x)) and abs(y) < 2**24 and is_whole and int(y) % 2 == 1
    size = np.abs(x)
    if size == 0 or np.isinf(size):
        result = _f(0) if (size == 0) == (y > 0) else _f(np.inf)
    elif x < 0 and not is_whole:
        return NOT_A_NUMBER
    elif size == 1:
        result = _f(1)
    else:
        exponent = np.clip(np.float64(y) * _log2(np.array([size], np.float64)), -200.0, 200.0)
        result = _exp2(exponent).astype(np.float32)[0]
    return -result if is_negated else result


def power(x: Any, y: Any) -> Floats:
    """Return x**y, element by element."""
    left, right = np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(y, np.float32))
    with np.errstate(all="ignore"):
        results = [_power(*pair) for pair in zip(left.ravel(), right.ravel(), strict=True)]
    result = np.array(results, np.float32).reshape(left.shape)
    return np.where(np.isnan(result), NOT_A_NUMBER, result)


def normal(u: float) -> float:
    """Return the normal number that a uniform one becomes."""
    q = np.array([u - 0.5])

    def ratio(name: str, r: Doubles) -> Doubles:
        return _polynomial64(name, r) / _polynomial64(f"{name}_UNDER", r)

    if abs(q[0]) <= 0.425:
        return float((q * ratio("CENTRE", 0.180625 - q * q))[0])
    tail = np.array([min(u, 1.0 - u) or 2.0**-54])
    r = np.sqrt(float.fromhex("-0x1.62e42fefa39efp-1") * _log2(tail))
    z = float((ratio("SIDE", r - 1.6) if r[0] <= 5.0 else ratio("END", r - 5.0))[0])
    return -z if q[0] < 0 else z


# --- softmax, losses, normalization: along the last axis -------------------------------------------------------------


def _sum(x: Floats) -> Floats:
    return total(x, [x.ndim - 1])[..., None]


def _shifted(x: Floats) -> Floats:
    return np.asarray(x - np.max(x, axis=-1, keepdims=True))


def softmax(x: Floats) -> Floats:
    e = exp(_shifted(x))
    return e / _sum(e)


def softmax_gradient(g: Floats, y: Floats) -> Floats:
    p = g * y
    return p - y * _sum(p)


def log_softmax(x: Floats) -> Floats:
    z = _shifted(x)
    return z - log(_sum(exp(z)))


def log_softmax_gradient(g: Floats, y: Floats) -> Floats:
    return g - exp(y) * _sum(g)


def mean_cross_entropy(x: Floats, targets: Sequence[int], smoothing: float) -> tuple[Floats, Floats]:
    """Return the mean of the losses of (samples, classes), and the gradient of the logits."""
    z, rows, count = _shifted(x), np.arange(len(x)), _f(len(x))
    e = exp(z)
    s, t = _sum(e), z[rows, targets]
    p = e / s
    if smoothing:
        t = _f(1.0 - smoothing) * t + _sum(z)[:, 0] * _f(smoothing / x.shape[1])
        p = p - _f(smoothing / x.shape[1])
    p[rows, targets] = p[rows, targets] - _f(1.0 - smoothing)
    losses = log(s)[:, 0] - t
    return total(losses, [0]) / count, p * (_f(1) / count)


def standardized(x: Floats, eps: float) -> tuple[Floats, Floats]:
    """Return rows of mean 0 and variance 1, and the deviations (rows, 1) that they had."""
    n = _f(x.shape[1])
    d = x - _sum(x) / n
    deviation = np.sqrt(_sum(d * d) / n + _f(eps))
    return d / deviation, deviation


def standardized_gradient(g: Floats, y: Floats, deviation: Floats) -> Floats:
    n = _f(y.shape[1])
    r = y * (-_sum(g * y) / n)
    r = r + g
    r = r - _sum(g) / n
    return np.asarray(r / deviation)


def lstm(p: Floats, q: Floats, before: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the gates (4 · hidden, batch), the cell, its tanh and the state, (hidden, batch)."""
    i, f, g, o = (p + q).reshape(4, *before.shape)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * before + i * g
    return np.concatenate([i, f, g, o]), c, tanh(c), o * tanh(c)


def lstm_gradient(
    gates: Floats, curve: Floats, before: Floats, product: Floats, of_result: Floats, of_cell: Floats
) -> tuple[Floats, Floats]:
    """Return the gradient of the cell before, and of the gates' products."""
    i, f, g, o = gates.reshape(4, *before.shape)
    s = product + of_result
    w = of_cell + s * o - s * o * curve * curve
    of_gates = (w * g * i * (1 - i), w * before * f * (1 - f), w * i * (1 - g * g), s * curve * o * (1 - o))
    return w * f, np.concatenate(of_gates)


def gru(p: Floats, q: Floats, before: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the gates (3 · hidden, batch), the candidate's product and the state, (hidden, batch)."""
    (p_r, p_z, p_n), (q_r, q_z, q_n) = p.reshape(3, *before.shape), q.reshape(3, *before.shape)
    r, z = sigmoid(p_r + q_r), sigmoid(p_z + q_z)
    n = tanh(p_n * r + q_n)
    return np.concatenate([r, z, n]), p_n, (before - n) * z + n


def gru_gradient(
    gates: Floats, curve: Floats, before: Floats, product: Floats, of_result: Floats, direct: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the direct gradient of the state before, and those of the gates and of the products."""
    r, z, n = gates.reshape(3, *before.shape)
    s = product + direct + of_result
    m = (s - s * z) * (1 - n * n)
    both = m * curve * r * (1 - r), (before - n) * s * z * (1 - z)
    return s * z, np.concatenate([*both, m]), np.concatenate([*both, m * r])


class Layer(NamedTuple):
    """A recurrent layer: a kind, weights, biases and sequences, as PyTorch has them."""

    kind: str
    x: Floats  # (steps, batch, features)
    #: Before the first step, (batch, hidden).
    state: Floats
    cell: Floats
    to_input: Floats
    to_state: Floats
    input_bias: Floats
    state_bias: Floats
    is_reversed: bool
    #: Of each sequence, the number of its steps.
    lengths: Sequence[int]

    @property
    def order(self) -> list[tuple[int, Floats]]:
        """The number of each step, and the sequences that have not ended before it."""
        steps = range(len(self.x))[:: -1 if self.is_reversed else 1]
        return [(step, np.asarray([step < length for length in self.lengths])) for step in steps]


#: Of each step: gates (gates · hidden, batch), curve, cell, state; then cell and state before it, (hidden, batch).
Steps = dict[int, tuple[Floats, ...]]


def recurrent(layer: Layer) -> tuple[Floats, Steps]:
    """Return the states after each step, the last ones, and of an LSTM the last cells; and all of each step."""
    h, c, made = layer.state.T, layer.cell.T, Steps()
    bias = layer.input_bias if layer.kind == "gru" else layer.input_bias + layer.state_bias
    result = np.zeros((len(layer.x), *layer.state.shape), np.float32)
    for step, runs in layer.order:
        p, q = product(layer.to_state, h), product(layer.to_input, layer.x[step].T) + bias[:, None]
        gates, curve, cell = p, h, c
        if layer.kind == "lstm":
            gates, cell, curve, state = lstm(p, q, c)
        elif layer.kind == "gru":
            gates, curve, state = gru(p + layer.state_bias[:, None], q, h)
        else:
            state = (tanh if layer.kind == "tanh" else relu)(p + q)
        made[step] = gates, curve, cell, state, c, h
        h, c = np.where(runs, state, h), np.where(runs, cell, c)
        result[step] = np.where(runs, state, np.float32(0)).T
    return np.concatenate([result, [h.T], *([[c.T]] if layer.kind == "lstm" else [])]), made


def recurrent_gradient(layer: Layer, made: Steps, g: Floats) -> dict[str, Floats]:
    """Return the gradients of all that a layer has, from that of its result."""
    steps, (batch, hidden) = len(layer.x), layer.state.shape
    u, d = g[steps].T, np.zeros((hidden, batch), np.float32)
    w = g[-1].T if layer.kind == "lstm" else d
    of_gates, of_products = np.zeros((2, steps, len(layer.to_state), batch), np.float32)
    for step, runs in layer.order[::-1]:
        gates, curve, _, state, cell_before, before = made[step]
        if layer.kind == "lstm":
            of_cell, of_gate = lstm_gradient(gates, curve, cell_before, u, g[step].T, w)
            w, of_product = np.where(runs, of_cell, w), of_gate
        elif layer.kind == "gru":
            direct, of_gate, of_product = gru_gradient(gates, curve, before, u, g[step].T, d)
        else:
            s = u + g[step].T
            of_gate = of_product = s * (1 - state * state) if layer.kind == "tanh" else relu_gradient(s, state)
        of_gates[step], of_products[step] = (np.where(runs, each, np.float32(0)) for each in (of_gate, of_product))
        u = np.where(runs, product(layer.to_state.T, of_products[step]), u + d if layer.kind == "gru" else u)
        d = np.where(runs, direct, np.float32(0)) if layer.kind == "gru" else d
    order = [step for step, _ in layer.order]
    rows, rows_of_products = (np.concatenate(list(each), 1) for each in (of_gates, of_products[order]))
    before = np.concatenate([made[step][5].T for step in order])
    return {
        "x": np.stack([product(each.T, layer.to_input) for each in of_gates]),
        "state": (u + d if layer.kind == "gru" else u).T,
        "cell": w.T,
        "to_input": product(rows, np.concatenate(layer.x)),
        "to_state": product(rows_of_products, before),
        "input_bias": total(rows, [1]),
        "state_bias": total(rows_of_products, [1]),
    }
