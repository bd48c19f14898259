"""The gradient checks, one or more for each primitive: arguments and options to draw. Add new primitives here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lockstep.common.autograd.primitives import elementwise, linear_algebra, reduction, shape
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from tests.lockstep.common.autograd.strategies import (
    Shape,
    anything,
    arrays,
    axes_of,
    broadcastable,
    distinct,
    halves,
    not_zero,
    positive,
    shapes,
    whole,
)

#: Arguments, and options by name.
Call = tuple[list[Any], dict[str, Any]]
Values = Callable[[np.random.Generator, Shape], Array]


@dataclass(frozen=True)
class Case:
    """A primitive and the calls of it whose gradients are checked."""

    primitive: Primitive
    calls: st.SearchStrategy[Call]


@st.composite
def _elementwise(draw: st.DrawFn, /, *values: Values, **options: Any) -> Call:
    """As many operands, of shapes that broadcast, as there are kinds of values."""
    found = draw(broadcastable(len(values)))
    return [draw(arrays(each, kind)) for each, kind in zip(found, values, strict=True)], options


@st.composite
def _by_number(draw: st.DrawFn, values: Values, numbers: st.SearchStrategy[Any]) -> Call:
    """An array and a Python number."""
    return [draw(arrays(draw(shapes()), values)), draw(numbers)], {}


@st.composite
def _where(draw: st.DrawFn) -> Call:
    conditions, x, y = draw(broadcastable(3))
    return [draw(arrays(conditions)) > 0, draw(arrays(x)), draw(arrays(y))], {}


@st.composite
def _bounded(draw: st.DrawFn) -> Call:
    low, high = draw(st.sampled_from([(-1.0, 1.0), (None, 0.0), (0.0, None), (None, None), (-2, 2)]))
    return [draw(arrays(draw(shapes()), halves))], {"low": low, "high": high}


@st.composite
def _reduced(draw: st.DrawFn, /, values: Values, min_side: int = 0, **options: Any) -> Call:
    x = draw(arrays(draw(shapes(min_side=min_side)), values))
    return [x], {"axis": draw(axes_of(x.shape)), "keepdims": draw(st.booleans()), **options}


@st.composite
def _of_shape(
    draw: st.DrawFn, options: Callable[[Shape], st.SearchStrategy[dict[str, Any]]], min_dims: int = 0
) -> Call:
    """One array, and options that depend on its shape."""
    x = draw(arrays(draw(shapes(min_dims=min_dims))))
    return [x], draw(options(x.shape))


def _fixed(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(options)


def _axis(sizes: Shape) -> st.SearchStrategy[int]:
    return st.integers(-len(sizes), len(sizes) - 1)


def _ones(sizes: Shape) -> st.SearchStrategy[Any]:
    found = tuple(axis for axis, size in enumerate(sizes) if size == 1)
    return st.sampled_from([None, found, *found])


def _reshaped(sizes: Shape) -> st.SearchStrategy[Any]:
    count = int(np.prod(sizes))
    return st.sampled_from([sizes, (count,), (1, count), (*reversed(sizes),), *([(-1,), (-1, 1)] if count else [])])


def _indices(sizes: Shape) -> st.SearchStrategy[Any]:
    """Slices, integers, masks, repeated integers, and mixtures of them, for two axes of sizes 3 and 4."""
    assert sizes == (3, 4)
    mask = np.arange(12).reshape(sizes) % 3 == 0
    repeated = np.array([[2, 0], [0, 0]])
    return st.sampled_from(
        [
            1,
            -1,
            (2, 3),
            ...,
            None,
            slice(None, None, -1),
            (slice(1), slice(None, None, 2)),
            slice(3, 3),
            (..., None, 0),
            mask,
            mask[:, 0],
            repeated,
            [0, 2, 0],
            (slice(None), repeated),
            (repeated, np.array([1, 1])),
            (np.array([0, 0, 0]), slice(1, 3)),
            np.zeros(0, np.int64),
        ]
    )


@st.composite
def _taken(draw: st.DrawFn) -> Call:
    return [draw(arrays((3, 4)))], {"index": draw(_indices((3, 4)))}


@st.composite
def _put(draw: st.DrawFn) -> Call:
    index = draw(_indices((3, 4)))
    sizes = np.zeros((3, 4))[index].shape
    values = draw(st.sampled_from([sizes, (), tuple(1 for _ in sizes)]))
    return [draw(arrays((3, 4))), draw(arrays(values))], {"index": index}


@st.composite
def _joined(draw: st.DrawFn, new_axis: bool) -> Call:
    sizes = draw(shapes(min_dims=0 if new_axis else 1))
    axis = draw(st.integers(-len(sizes) - new_axis, len(sizes) - 1 + new_axis))
    parts = [list(sizes) for _ in range(draw(st.integers(1, 3)))]
    if not new_axis:
        for part in parts:
            part[axis] = draw(st.integers(0, 3))
    return [draw(arrays(tuple(part))) for part in parts], {"axis": axis}


@st.composite
def _matmul(draw: st.DrawFn) -> Call:
    rows, inner, columns = (draw(st.integers(0, 4)) for _ in range(3))
    left, right = draw(broadcastable(2))
    x = draw(st.sampled_from([(inner,), (*left, rows, inner)]))
    y = draw(st.sampled_from([(inner,), (*right, inner, columns)]))
    return [draw(arrays(x)), draw(arrays(y))], {}


@st.composite
def _linear(draw: st.DrawFn) -> Call:
    features, out = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    lead = draw(st.sampled_from([(), (1,), (3,), (0,), (2, 3)]))
    bias = draw(st.none() | arrays((out,)))
    return [draw(arrays((*lead, features))), draw(arrays((out, features))), bias], {}


_pad = st.integers(0, 2)

CASES = [
    *(Case(each, _elementwise(anything, anything)) for each in (elementwise.add, elementwise.subtract)),
    Case(elementwise.multiply, _elementwise(anything, anything)),
    Case(elementwise.multiply, _by_number(anything, st.sampled_from([0, 2, -0.5]))),
    Case(elementwise.divide, _elementwise(anything, not_zero)),
    Case(elementwise.divide, _by_number(not_zero, st.sampled_from([3, -0.5])).map(lambda call: (call[0][::-1], {}))),
    Case(elementwise.power, _elementwise(positive, anything)),
    Case(elementwise.power, _by_number(not_zero, st.sampled_from([0, 1, 2, 3, -1, -2]))),
    Case(elementwise.power, _by_number(positive, st.sampled_from([0.5, -0.5, 1.7]))),
    Case(elementwise.power, _by_number(anything, st.just(2.5)).map(lambda call: (call[0][::-1], {}))),
    Case(elementwise.negate, _elementwise(anything)),
    Case(elementwise.absolute, _elementwise(not_zero)),
    *(Case(each, _elementwise(whole, halves)) for each in (elementwise.maximum, elementwise.minimum)),
    Case(elementwise.where, _where()),
    Case(elementwise.clip, _bounded()),
    *(Case(each, _elementwise(anything)) for each in (elementwise.exp, elementwise.tanh, elementwise.sigmoid)),
    *(Case(each, _elementwise(positive)) for each in (elementwise.log, elementwise.sqrt)),
    Case(elementwise.relu, _elementwise(not_zero)),
    *(Case(elementwise.leaky_relu, _elementwise(not_zero, negative_slope=each)) for each in (0.01, 0.0, 1.5, -1.0)),
    *(Case(elementwise.softplus, _elementwise(anything, beta=each)) for each in (1.0, 3.0)),
    *(Case(each, _elementwise(anything)) for each in (elementwise.gelu, elementwise.gelu_tanh)),
    Case(reduction.reduce_sum, _reduced(anything)),
    Case(reduction.reduce_mean, _reduced(anything, min_side=1)),
    *(Case(each, _reduced(distinct, min_side=1)) for each in (reduction.reduce_max, reduction.reduce_min)),
    Case(reduction.variance, _reduced(anything, min_side=1, correction=0)),
    Case(reduction.variance, _reduced(anything, min_side=2, correction=1).filter(lambda call: call[0][0].ndim > 0)),
    Case(shape.reshape, _of_shape(lambda sizes: _fixed(shape=_reshaped(sizes)))),
    Case(shape.squeeze, _of_shape(lambda sizes: _fixed(axis=_ones(sizes)))),
    Case(shape.unsqueeze, _of_shape(lambda sizes: _fixed(axis=st.integers(-len(sizes) - 1, len(sizes))))),
    Case(shape.permute, _of_shape(lambda sizes: _fixed(axes=st.permutations(range(len(sizes))).map(tuple)))),
    Case(shape.transpose, _of_shape(lambda sizes: _fixed(first=_axis(sizes), second=_axis(sizes)), min_dims=1)),
    Case(shape.broadcast_to, _of_shape(lambda sizes: _fixed(shape=st.sampled_from([sizes, (2, *sizes)])))),
    Case(
        shape.pad,
        _of_shape(lambda sizes: _fixed(widths=st.tuples(*[st.tuples(_pad, _pad) for _ in sizes]), value=st.just(1.5))),
    ),
    Case(shape.concatenate, _joined(new_axis=False)),
    Case(shape.stack, _joined(new_axis=True)),
    Case(shape.take, _taken()),
    Case(shape.put, _put()),
    Case(linear_algebra.matmul, _matmul()),
    Case(linear_algebra.linear, _linear()),
]
