"""Dropout: zero each element with a given probability and scale the others up, so that the mean stays."""

import numpy as np

from common.autograd.primitives.primitive import Array, Primitive


def _dropout(x: Array, *, p: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return `x` times a mask of 0, with probability `p`, and 1 / (1 - p) (Srivastava et al. 2014, inverted), and it.

    The numbers are drawn in logical order, one a sample after the other: neither the memory layout nor a cut of the
    batch into blocks changes which elements are dropped.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout has p {p!r}, expected a probability from 0 to 1")
    kept = rng.random(x.shape, dtype=np.float32) >= p
    mask = np.multiply(kept, 1.0 / (1.0 - p) if p < 1.0 else 0.0, out=np.empty_like(x))
    return x * mask, mask


dropout = Primitive("dropout", _dropout, (lambda g, mask, _, **__: g * mask,), keeps=True, reads=((),))
