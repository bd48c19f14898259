"""Products, sums and convolutions by the kernels have the bits of the contract, whatever their shapes and layouts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.numerics import leaves
from lockstep.common.numerics.operands import Window, Windows
from tests.lockstep.common.numerics import reference
from tests.lockstep.common.numerics.reference import Floats, Pair


def _drawn(*shape: int, seed: int = 0) -> Floats:
    """Return numbers of many sizes, so that another order of a sum shows."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-8, 9, shape))).astype(np.float32)


def _same(found: Floats, expected: Floats) -> bool:
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()


def _in_layout(x: Floats, layout: str) -> Floats:
    """Return the same matrix with its rows, its columns, or neither next to one another in memory."""
    if layout == "columns":
        return np.asfortranarray(x)
    if layout == "rows":
        return x
    wide = np.empty((2 * x.shape[0], 3 * x.shape[1]), np.float32)
    wide[::2, ::3] = x
    return wide[::2, ::3]


_layouts = st.sampled_from(["rows", "columns", "apart"])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 60), _layouts, _layouts, _layouts)
def test_a_product_has_the_bits_of_the_contract(m: int, k: int, n: int, left: str, right: str, of: str) -> None:
    a, b = _drawn(m, k), _drawn(k, n, seed=1)
    out = _in_layout(np.empty((m, n), np.float32), of)
    leaves.product(_in_layout(a, left), _in_layout(b, right), out=out)
    assert _same(np.ascontiguousarray(out), reference.product(a, b))


@pytest.mark.parametrize("terms", [255, 256, 257, 511, 512, 513, 2048, 2049, 4100])
def test_chains_of_a_product_end_after_256_terms(terms: int) -> None:
    a, b = _drawn(9, terms), _drawn(terms, 50, seed=1)
    expected = reference.product(a, b)
    assert _same(leaves.product(a, b), expected)
    assert _same(leaves.product(np.asfortranarray(a), np.asfortranarray(b)), expected)


@pytest.mark.parametrize("rows", [1, 2, 7, 31])
def test_rows_at_once_do_not_change_a_product(rows: int) -> None:
    a, b = _drawn(64, 300), _drawn(300, 77, seed=1)
    blocks = [leaves.product(a[first : first + rows], b) for first in range(0, 64, rows)]
    assert _same(np.concatenate(blocks), leaves.product(a, b))


def test_a_product_without_terms_is_zero() -> None:
    assert _same(leaves.product(_drawn(3, 0), _drawn(0, 5)), np.zeros((3, 5), np.float32))


@settings(deadline=None)
@given(st.integers(1, 20), st.sampled_from([0, 1, 30, 300, 2100]), st.integers(1, 40), _layouts, st.booleans())
def test_a_bias_is_added_to_the_rows_of_a_finished_product(m: int, k: int, n: int, of: str, is_apart: bool) -> None:
    a, b, bias = _drawn(m, k), _drawn(k, n, seed=1), _drawn(m, seed=2)
    out = _in_layout(np.empty((m, n), np.float32), of)
    leaves.matrix_product(a, b, np.repeat(bias, 2)[::2] if is_apart else bias, out=out)
    assert _same(np.ascontiguousarray(out), reference.product(a, b) + bias[:, None])


def test_a_product_may_be_written_over_its_bias() -> None:
    a, b, memory = _drawn(3, 4), _drawn(4, 1, seed=1), _drawn(3, seed=2)
    expected = reference.product(a, b) + memory[:, None]
    leaves.matrix_product(a, b, memory, out=memory[:, None])
    assert _same(memory[:, None], expected)


def test_a_product_may_be_written_over_an_operand() -> None:
    a = _drawn(16, 16)
    expected = reference.product(a, a.T)
    leaves.product(a, a.T, out=a)
    assert _same(a, expected)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 5, 4), (3, 4, 6)),
        ((3, 5, 4), (4, 6)),
        ((5, 4), (3, 4, 6)),
        ((2, 3, 5, 4), (3, 4, 6)),
        ((20, 2100), (7, 2100, 3)),
    ],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_stacks_are_multiplied_matrix_by_matrix(left: tuple[int, ...], right: tuple[int, ...], is_turned: bool) -> None:
    a, b = _drawn(*left), _drawn(*right, seed=1)
    if is_turned:
        b = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
    found = leaves.product(a, b)
    lefts = np.broadcast_to(a, (*found.shape[:-2], *left[-2:]))
    rights = np.broadcast_to(b, (*found.shape[:-2], *right[-2:]))
    for place in np.ndindex(found.shape[:-2]):
        assert _same(found[place], reference.product(lefts[place], rights[place]))


def test_vectors_are_multiplied_as_matrices() -> None:
    x, a = _drawn(300), _drawn(300, 7, seed=1)
    assert _same(leaves.product(x, a), reference.product(x[None], a)[0])
    assert _same(leaves.product(a.T, x), reference.product(a.T, x[:, None])[:, 0])
    assert _same(leaves.product(x, x), reference.product(x[None], x[:, None])[0, 0])


def _tree(parts: list[Floats]) -> Floats:
    """Return the sum over the tree: of the largest power of two that is less than all, and of the rest."""
    if len(parts) == 1:
        return parts[0]
    half = 1 << (len(parts) - 1).bit_length() - 1
    return np.add(_tree(parts[:half]), _tree(parts[half:]))


@pytest.mark.parametrize(("count", "terms"), [(1, 260), (2, 250), (3, 260), (5, 260), (5, 2100), (8, 260)])
@pytest.mark.parametrize("adds", [False, True])
def test_products_of_micro_batches_are_added_over_the_tree(count: int, terms: int, adds: bool) -> None:
    a, b = _drawn(count, 13, terms), _drawn(count, terms, 53, seed=1)
    before = _drawn(13, 53, seed=2)
    found = before.copy()
    leaves.product_sum(a, b, out=found, options=(adds,))
    products = _tree([reference.product(*pair) for pair in zip(a, b, strict=True)])
    assert _same(found, before + products if adds else products)


@settings(deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.data())
def test_a_sum_has_the_bits_of_the_contract(shape: list[int], data: st.DataObject) -> None:
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    order = data.draw(st.permutations(range(len(shape))))
    x = _drawn(*(shape[axis] for axis in order)).transpose(np.argsort(order))
    expected = reference.total(x, axes)
    assert _same(np.asarray(leaves.total(x, axes)), np.asarray(expected))
    kept = leaves.total(x, axes, keepdims=True)
    assert kept.shape == tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    assert kept.tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("terms", [0, 1, 15, 16, 17, 31, 32, 33, 1000])
@pytest.mark.parametrize("inner", [1, 5, 16, 33])
def test_a_sum_of_any_length_is_added_in_lanes(terms: int, inner: int) -> None:
    x = _drawn(3, terms, inner)
    assert _same(leaves.total(x, 1), reference.total(x, [1]))


def _beside(x: Floats, byte: int) -> Floats:
    """Return the same vector with a byte before, and between, its elements."""
    records = np.zeros(len(x), [("before", f"V{byte}"), ("value", np.float32)])
    records["value"] = x
    return records["value"]


@pytest.mark.parametrize("byte", [1, 2, 4])
def test_floats_between_other_bytes_are_read_where_they_are(byte: int) -> None:
    x = _drawn(40)
    apart = _beside(x, byte)
    assert _same(np.asarray(leaves.total(apart)), np.asarray(reference.total(x, [0])))
    assert _same(leaves.exp(apart), reference.exp(x))
    assert _same(leaves.product(apart[None], apart[:, None]), reference.product(x[None], x[:, None]))
    leaves.exp(x, out=apart)
    assert _same(apart.copy(), reference.exp(x))


def test_an_axis_that_is_not_there_is_an_error() -> None:
    with pytest.raises(np.exceptions.AxisError):
        leaves.total(_drawn(2, 3), 2)


def test_the_sum_of_negative_zeros_is_positive() -> None:
    assert not np.signbit(leaves.total(np.full(40, -0.0, np.float32)))


@dataclass(frozen=True)
class _Case:
    """A convolution: images (G·C, height, width, N), kernels (G·O, C, kh, kw)."""

    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    channels: int = 2
    outputs: int = 3
    images: int = 5
    groups: int = 1
    #: Of the size, what is left out of the gradient to the input at each side.
    padding: Pair = (0, 0)

    @property
    def options(self) -> tuple[Windows, int]:
        along = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (
            Window(size - 2 * padding, kernel, step, padding, reach) for size, kernel, step, padding, reach in along
        )
        return (rows, columns), self.groups

    def x(self) -> Floats:
        return _drawn(self.groups * self.channels, *self.size, self.images)

    def kernels(self) -> Floats:
        return _drawn(self.groups * self.outputs, self.channels, *self.kernel, seed=1)

    def gradient(self) -> Floats:
        sizes = zip(self.size, self.kernel, self.stride, self.dilation, strict=True)
        windows = [(size - reach * (kernel - 1) - 1) // step + 1 for size, kernel, step, reach in sizes]
        return _drawn(self.groups * self.outputs, *windows, self.images, seed=2)


_cases = st.builds(
    _Case,
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 5),
    images=st.sampled_from([1, 2, 5, 8, 17]),
    groups=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)

#: Windows that leave rows and columns over, chains of more than 256 terms, more rows of lanes than one.
_SHAPES = [
    _Case((5, 5), (5, 5)),
    _Case((9, 8), (3, 3), stride=(2, 3)),
    _Case((9, 9), (2, 3), dilation=(3, 2), stride=(2, 2)),
    _Case((6, 6), (3, 3), channels=32, outputs=30, images=3),
    _Case((8, 7), (1, 1), stride=(3, 2), images=33),
    _Case((4, 20), (1, 5), channels=1, outputs=9, images=1, groups=3),
    _Case((5, 6), (3, 4), stride=(1 << 40, 1 << 62), dilation=(2, 1), padding=(1, 2)),
]


def _check_forward(case: _Case) -> None:
    x, kernels, out = case.x(), case.kernels(), np.empty_like(case.gradient())
    expected = reference.convolution(x, kernels, case.stride, case.dilation, case.groups)
    leaves.convolution(x, kernels, out=out, options=case.options)
    assert _same(out, expected)
    bias = _drawn(len(kernels), seed=3)
    leaves.convolution(x, kernels, bias, out=out, options=case.options)
    assert _same(out, expected + bias[:, None, None, None])


def _check_to_input(case: _Case) -> None:
    gradient, kernels = case.gradient(), case.kernels()
    expected = reference.gradient_to_input(gradient, kernels, case.size, case.stride, case.dilation, case.groups)
    (above, beside), (height, width) = case.padding, case.size
    unpadded = np.ascontiguousarray(expected[:, above : height - above, beside : width - beside])
    out = np.full_like(unpadded, 7.0)
    leaves.convolution_to_input(gradient, kernels, out=out, options=case.options)
    assert _same(out, unpadded)


def _check_to_kernels(case: _Case) -> None:
    gradient, x, out = case.gradient(), case.x(), np.full_like(case.kernels(), 7.0)
    leaves.convolution_to_kernels(gradient, x, out=out, options=case.options)
    expected = reference.gradient_to_kernels(gradient, x, case.kernel, case.stride, case.dilation, case.groups)
    assert _same(out, expected)


_checks = pytest.mark.parametrize("check", [_check_forward, _check_to_input, _check_to_kernels])


@_checks
@pytest.mark.parametrize("case", _SHAPES, ids=lambda case: f"{case.size}-{case.kernel}-{case.stride}-{case.dilation}")
def test_a_convolution_has_the_bits_of_the_contract(case: _Case, check: Callable[[_Case], None]) -> None:
    check(case)


@_checks
@settings(deadline=None, max_examples=25)
@given(case=_cases)
def test_any_convolution_has_the_bits_of_the_contract(check: Callable[[_Case], None], case: _Case) -> None:
    check(case)


def test_operands_of_a_convolution_may_lie_anywhere() -> None:
    case = _Case((7, 7), (3, 3))
    x = np.ascontiguousarray(case.x().transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    out = np.empty_like(np.empty(case.gradient().shape[::-1], np.float32).T)
    leaves.convolution(x, np.asfortranarray(case.kernels()), out=out, options=case.options)
    assert _same(np.ascontiguousarray(out), reference.convolution(case.x(), case.kernels()))


@pytest.mark.parametrize(
    ("columns", "groups"),
    [
        (Window(7, 3, 0), 1),
        (Window(7, 3, 1, dilation=0), 1),
        (Window(7, 3, 1), 0),
        (Window(7, 3, 1), -1),
        (Window(7, 3, 1, -1), 1),
        (Window(7, 3, 1, 1 << 40), 1),
        (Window(7, 0, 1), 1),
        (Window(7, 2, 1), 1),
        (Window(8, 3, 1), 1),
        (Window(7, 3, 1, is_ceil=True), 1),
        (Window(7, 3, 2), 1),
    ],
)
def test_windows_that_cannot_be_are_refused(columns: Window, groups: int) -> None:
    case = _Case((7, 7), (3, 3))
    with pytest.raises(ValueError, match=r"convolution_to_input got arrays of shapes .*: expected shapes that fit"):
        leaves.convolution_to_input(
            case.gradient(), case.kernels(), out=case.x(), options=((Window(7, 3, 1), columns), groups)
        )
    with pytest.raises(ValueError, match=r"convolution_to_input got arrays of shapes .*: expected shapes that fit"):
        leaves.convolution_to_input(
            case.gradient(),
            case.kernels()[..., : columns.kernel],
            out=case.x(),
            options=((Window(7, 3, 1), columns), groups),
        )
