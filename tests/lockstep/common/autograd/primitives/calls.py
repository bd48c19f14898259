"""Runs a primitive for tests, and takes its gradients as the graph would."""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive


def result_of(primitive: Primitive, *arrays: Array, **options: Any) -> Array:
    """Return the result alone."""
    returned = primitive.forward(*arrays, **options)
    result: Array = returned[0] if primitive.keeps else returned
    return result


def gradients_of(primitive: Primitive, gradient: Array, *arrays: Array, **options: Any) -> list[Array | None]:
    """Return one gradient per argument; each derivative gets only what the primitive declares that it reads."""
    assert isinstance(primitive.derivatives, tuple)
    returned = primitive.forward(*arrays, **options)
    saved = returned[1] if primitive.keeps else returned
    found: list[Array | None] = []
    for index, derivative in enumerate(primitive.derivatives[: len(arrays)]):
        if derivative is None:
            found.append(None)
            continue
        reads = (*range(len(arrays)), RESULT) if primitive.reads is None else primitive.reads[index]
        held = [array if k in reads else None for k, array in enumerate(arrays)]
        kept = saved if primitive.keeps or RESULT in reads else None
        found.append(derivative(gradient, kept, *held, **options))
    return found


def layouts(x: Array) -> list[Array]:
    """Return arrays equal to `x` in other layouts: Fortran's, batch innermost, a strided and a reversed view."""
    batch_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return [np.asfortranarray(x), batch_last, wide[..., ::2], x[::-1].copy()[::-1]]
