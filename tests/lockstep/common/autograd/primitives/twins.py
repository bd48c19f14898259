"""Slow, obviously right twins of the primitives for nets: loops over definitions."""

import itertools
import math

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array

Two = tuple[int, int]


def conv2d(x: Array, weight: Array, bias: Array | None, stride: Two, padding: Two, dilation: Two, groups: int) -> Array:
    """Correlate, one output at a time."""
    images, _, height, width = x.shape
    outputs, depth, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    oh = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    result = np.zeros((images, outputs, oh, ow), x.dtype)
    for n, o, i, j in itertools.product(range(images), range(outputs), range(oh), range(ow)):
        first = o // (outputs // groups) * depth
        for c, y, z in itertools.product(range(depth), range(kh), range(kw)):
            row, column = i * stride[0] + y * dilation[0], j * stride[1] + z * dilation[1]
            result[n, o, i, j] += weight[o, c, y, z] * padded[n, first + c, row, column]
        if bias is not None:
            result[n, o, i, j] += bias[o]
    return result


def pool_windows(height: int, width: int, kernel: Two, stride: Two, padding: Two) -> dict[Two, list[Two]]:
    """Return for each output position the elements in its window, in row-major order."""
    oh, ow = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip((height, width), kernel, stride, padding, strict=True))
    return {
        (i, j): [
            (y, x)
            for y in range(i * stride[0] - padding[0], i * stride[0] - padding[0] + kernel[0])
            for x in range(j * stride[1] - padding[1], j * stride[1] - padding[1] + kernel[1])
            if 0 <= y < height and 0 <= x < width
        ]
        for i in range(oh)
        for j in range(ow)
    }


def max_pool2d(x: Array, gradient: Array | None, kernel: Two, stride: Two, padding: Two) -> tuple[Array, Array]:
    """Return the maxima, and the gradient of `x`, which goes to the first of the largest elements (ones by default)."""
    windows = pool_windows(x.shape[2], x.shape[3], kernel, stride, padding)
    oh, ow = (1 + last for last in max(windows))
    result, taken = np.zeros((*x.shape[:2], oh, ow), x.dtype), np.zeros_like(x)
    for n, c in np.ndindex(x.shape[:2]):
        for (i, j), elements in windows.items():
            values = [float(x[n, c, y, z]) for y, z in elements]
            first = values.index(max(values))
            result[n, c, i, j] = values[first]
            taken[(n, c, *elements[first])] += 1 if gradient is None else gradient[n, c, i, j]
    return result, taken


def avg_pool2d(x: Array, kernel: Two, stride: Two, padding: Two, count_include_pad: bool) -> Array:
    """Average, one window at a time."""
    windows = pool_windows(x.shape[2], x.shape[3], kernel, stride, padding)
    oh, ow = (1 + last for last in max(windows))
    result = np.zeros((*x.shape[:2], oh, ow), x.dtype)
    for (i, j), elements in windows.items():
        total = sum(x[:, :, y, z] for y, z in elements)
        result[:, :, i, j] = total / (math.prod(kernel) if count_include_pad else len(elements))
    return result


def adaptive_avg_pool2d(x: Array, outputs: Two) -> Array:
    """Average over [floor(k n / o), ceil((k + 1) n / o)) along each axis."""
    result = np.zeros((*x.shape[:2], *outputs), x.dtype)
    for i, j in np.ndindex(outputs):
        spans = [
            slice(math.floor(k * n / o), math.ceil((k + 1) * n / o))
            for k, n, o in zip((i, j), x.shape[2:], outputs, strict=True)
        ]
        result[:, :, i, j] = x[:, :, spans[0], spans[1]].mean(axis=(2, 3))
    return result


def softmax(row: list[float]) -> list[float]:
    """Exponentiate and divide by the sum."""
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def cross_entropy(row: list[float], target: int, smoothing: float) -> float:
    """Sum -q log p over the classes, q the smoothed distribution of the target."""
    wanted = [smoothing / len(row) + (1 - smoothing) * (k == target) for k in range(len(row))]
    return -math.fsum(q * math.log(p) for q, p in zip(wanted, softmax(row), strict=True) if q)
