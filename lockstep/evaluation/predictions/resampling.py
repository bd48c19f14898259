"""Brings an image to another size, smoothly in both directions. Pure."""

import numpy as np

from common.autograd.primitives.primitive import Array


def resized(image: Array, height: int, width: int) -> Array:
    """Return a float image (h, w) or (c, h, w) in another size, by a triangle filter as wide as a pixel of the result.

    Turkowski, "Filters for common resampling tasks", Graphics Gems, 1990: nothing between the pixels is skipped when it
    becomes smaller, and it is interpolated linearly when it becomes larger.
    """
    rows, columns = _weights(image.shape[-2], height), _weights(image.shape[-1], width)
    return np.asarray(rows @ image @ columns.T)


def _weights(size: int, wanted: int) -> Array:
    """Return how much each of `size` pixels counts for each of `wanted` ones: (wanted, size), rows add up to 1."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - centres[:, np.newaxis]) / max(1.0, scale)
    weights = np.maximum(0.0, 1.0 - distance)
    # At the edges a part of the triangle lies outside.
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
