"""Arrays of many shapes, values and memory layouts for gradient checks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lockstep.common.autograd.primitives.primitive import Array

Shape = tuple[int, ...]


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> st.SearchStrategy[Shape]:
    """Shapes with empty and size-1 axes among them."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def broadcastable(count: int, min_side: int = 0) -> st.SearchStrategy[tuple[Shape, ...]]:
    """`count` shapes that broadcast together."""
    found = hnp.mutually_broadcastable_shapes(num_shapes=count, min_dims=0, max_dims=3, min_side=min_side, max_side=4)
    return found.map(lambda each: each.input_shapes)


def anything(rng: np.random.Generator, shape: Shape) -> Array:
    """Values of both signs."""
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: Shape) -> Array:
    """Values of at least 0.3: for logarithms and denominators."""
    return 0.3 + np.abs(rng.standard_normal(shape))


def not_zero(rng: np.random.Generator, shape: Shape) -> Array:
    """Values of both signs, at least 0.3 from 0: for functions with a kink or a pole there."""
    values = rng.standard_normal(shape)
    return np.asarray(values + np.copysign(0.3, values))


def distinct(rng: np.random.Generator, shape: Shape) -> Array:
    """Values with gaps of 0.25: for functions that compare elements of one array."""
    size = int(np.prod(shape))
    return 0.25 * (rng.permutation(size) - size / 2).astype(np.float64).reshape(shape)


def whole(rng: np.random.Generator, shape: Shape) -> Array:
    """Whole numbers, never equal to one of `halves`: for functions that compare two arrays."""
    return np.asarray(rng.integers(-3, 4, shape), np.float64)


def halves(rng: np.random.Generator, shape: Shape) -> Array:
    """Whole numbers and a half."""
    return np.asarray(rng.integers(-3, 4, shape) + 0.5, np.float64)


def _strided(values: Array) -> Array:
    """Every second element of a larger array, along the last axis."""
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), np.nan)
    wide[..., ::2] = values
    return wide[..., ::2]


#: Each returns the same values in other memory; all but the first take arrays of at least one axis.
_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda values: values,
    "fortran": np.asfortranarray,
    "batch innermost": lambda values: np.moveaxis(np.array(np.moveaxis(values, 0, -1), order="C"), -1, 0),
    "strided": _strided,
    "reversed": lambda values: np.flip(np.array(np.flip(values))),
    "read-only": lambda values: np.broadcast_to(values, values.shape),
}


@st.composite
def arrays(draw: st.DrawFn, shape: Shape, values: Callable[[np.random.Generator, Shape], Array] = anything) -> Array:
    """A float64 array of the shape in some layout."""
    array = np.asarray(values(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), shape))
    layout = draw(st.sampled_from(sorted(_LAYOUTS))) if shape else "contiguous"
    return _LAYOUTS[layout](array)


def axes_of(shape: Shape) -> st.SearchStrategy[Any]:
    """None, one axis (counted from either end), or a tuple of axes."""
    if not shape:
        return st.none()
    some = st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1).map(tuple)
    return st.none() | st.integers(-len(shape), len(shape) - 1) | some
