"""How the tests of primitives run one, take its gradients as the graph would, and compare them with differences."""

from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive


def result_of(primitive: Primitive, *arrays: Array, **options: Any) -> Array:
    """Return the result alone."""
    returned = primitive.forward(*arrays, **options)
    result: Array = returned[0] if primitive.keeps else returned
    return result


def gradients_of(primitive: Primitive, gradient: Array, *arrays: Array, **options: Any) -> list[Array | None]:
    """Return one gradient an argument, each derivative getting only what the primitive declares that it reads.

    Where the primitive declares that a derivative writes, it must fill and return what it is given, with the same bits.
    """
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
        if index in primitive.writes:
            out = np.full(arrays[index].shape, np.nan, gradient.dtype)
            assert np.shares_memory(derivative(gradient, kept, *held, **options, out=out), out)
            np.testing.assert_array_equal(out, found[-1])
    return found


def check_derivatives(primitive: Primitive, *arrays: Array, step: float = 1e-5, **options: Any) -> None:
    """Raise AssertionError unless each gradient, along a random direction, equals the central difference in float64."""
    rng = np.random.default_rng(len(arrays))
    upstream = rng.standard_normal(result_of(primitive, *arrays, **options).shape)
    for index, gradient in enumerate(gradients_of(primitive, upstream, *arrays, **options)):
        if gradient is None:
            continue
        assert gradient.shape == arrays[index].shape
        assert gradient.dtype == arrays[index].dtype
        direction = rng.standard_normal(gradient.shape)
        ends = []
        for sign in (1, -1):
            moved = [array + sign * step * direction if k == index else array for k, array in enumerate(arrays)]
            ends.append(result_of(primitive, *moved, **options))
        # Differences of results before their sum: the sum would round away what is asked for.
        difference = float(np.sum((ends[0] - ends[1]) * upstream)) / (2 * step)
        expected = float(np.sum(gradient * direction))
        scale = float(np.sum(np.abs(gradient * direction))) + 1.0
        message = f"{primitive.name}, argument {index}: difference {difference}, derivative {expected}"
        assert abs(difference - expected) <= 1e-6 * scale, message


def layouts(x: Array) -> list[Array]:
    """Return arrays equal to `x` in other layouts: Fortran's, batch innermost, a strided and a reversed view."""
    batch_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return [np.asfortranarray(x), batch_last, wide[..., ::2], x[::-1].copy()[::-1]]
