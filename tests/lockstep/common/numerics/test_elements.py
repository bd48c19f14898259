"""What one pass over elements, windows or rows does by the kernels has the bits of the contract."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.numerics import leaves
from lockstep.common.numerics.kernel_leaves import KERNELS
from lockstep.common.numerics.numpy_leaves import NUMPY
from lockstep.common.numerics.operands import Mean, Window, Windows
from tests.lockstep.common.numerics import reference
from tests.lockstep.common.numerics.reference import Floats

_NAN = np.uint32(0xFFC12345).view(np.float32)
#: Few values, so that many are alike; with both zeros, the ends of what is finite, infinities and a NaN.
_VALUES = np.array([0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, -1e-45, 3.4e38, np.inf, -np.inf, _NAN], np.float32)


def _special(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).choice(_VALUES, shape)


def _usual(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _same(found: Floats, expected: Floats) -> bool:
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 16, 33, 1000])
def test_the_rectifier_and_its_gradient_have_the_bits_of_the_contract(length: int) -> None:
    x, gradient = _special(length), _special(length, seed=1)
    assert _same(leaves.relu(x), reference.relu(x))
    assert _same(leaves.relu_gradient(gradient, x), reference.relu_gradient(gradient, x))


def test_the_rectifier_keeps_no_negative_zero_and_every_nan() -> None:
    x = np.array([-0.0, _NAN], np.float32)
    assert leaves.relu(x).view(np.uint32).tolist() == [0, 0xFFC12345]
    assert leaves.relu_gradient(np.array([-1.0, -1.0], np.float32), x).view(np.uint32).tolist() == [0, 0]


@st.composite
def _pools(draw: st.DrawFn) -> tuple[tuple[int, ...], Windows]:
    """Draw a shape of images, and windows that all see some of it: overlapping, apart, or next to one another."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    # Without a window that lies on the padding alone.
    stride = (draw(st.integers(1, kernel[0] + 1)), draw(st.integers(1, kernel[1] + 1)))
    padding = (draw(st.integers(0, (kernel[0] - 1) // 2)), draw(st.integers(0, (kernel[1] - 1) // 2)))
    size = [draw(st.integers(max(1, reach - 2 * border), 9)) for reach, border in zip(kernel, padding, strict=True)]
    is_ceil = draw(st.booleans())
    rows, columns = (Window(*each, is_ceil=is_ceil) for each in zip(size, kernel, stride, padding, strict=True))
    return (draw(st.integers(1, 2)), *size, draw(st.sampled_from([1, 3, 8, 17]))), (rows, columns)


def _options(windows: Windows) -> list[tuple[int, int]]:
    """Return kernel, stride, padding and numbers of windows as the reference takes them."""
    rows, columns = ((each.kernel, each.stride, each.padding, each.count) for each in windows)
    return list(zip(rows, columns, strict=True))


@settings(deadline=None, max_examples=60)
@given(_pools(), st.booleans())
def test_a_pool_has_the_bits_of_the_contract(pool: tuple[tuple[int, ...], Windows], is_special: bool) -> None:
    shape, windows = pool
    x = _special(*shape) if is_special else np.round(_usual(*shape))
    expected = reference.max_pool(x, *_options(windows))
    pooled = np.full_like(expected, 7.0)
    assert _same(leaves.max_pool(x, out=pooled, options=(windows,)), expected)
    gradient, result = _usual(*pooled.shape, seed=1), np.full_like(x, 7.0)
    leaves.max_pool_gradient(gradient, x, pooled, out=result, options=(windows,))
    assert _same(result, reference.max_pool_gradient(gradient, x, pooled, *_options(windows)))


def _row_of(*values: float) -> Floats:
    return np.array(values, np.float32).reshape(1, 1, -1, 1)


_NEXT = Window(1, 1, 1), Window(2, 2, 2)


@pytest.mark.parametrize(
    ("values", "largest", "takes"),
    [
        ((3.0, 3.0), 3.0, (1.0, 0.0)),
        ((-0.0, 0.0), -0.0, (1.0, 0.0)),
        ((-np.inf, -np.inf), -np.inf, (1.0, 0.0)),
        ((1.0, np.nan), np.nan, (1.0, 0.0)),
        ((-2.0, -1.0), -1.0, (0.0, 1.0)),
    ],
)
def test_the_first_of_the_largest_takes_the_gradient(
    values: tuple[float, ...], largest: float, takes: tuple[float, ...]
) -> None:
    x, pooled, result = _row_of(*values), _row_of(0.0), _row_of(7.0, 7.0)
    leaves.max_pool(x, out=pooled, options=(_NEXT,))
    leaves.max_pool_gradient(_row_of(1.0), x, pooled, out=result, options=(_NEXT,))
    assert _same(pooled, _row_of(largest))
    assert _same(result, _row_of(*takes))


def test_a_pool_may_be_written_over_what_it_reads() -> None:
    x, windows = _usual(2, 4, 4, 3), (Window(4, 1, 1), Window(4, 1, 1))
    gradient = _usual(2, 4, 4, 3, seed=1)
    expected = reference.max_pool_gradient(gradient, x, x.copy(), *_options(windows))
    leaves.max_pool_gradient(gradient, x, x.copy(), out=gradient, options=(windows,))
    assert _same(gradient, expected)


@pytest.mark.parametrize(
    "windows",
    [
        (Window(4, 2, 1, 2), Window(4, 2, 1)),
        (Window(4, 2, 0), Window(4, 2, 1)),
        (Window(4, 5, 1), Window(4, 2, 1)),
        (Window(4, 2, 1), Window(4, 2, 1, -1)),
        (Window(5, 3, 1), Window(4, 2, 1)),
    ],
)
def test_windows_that_see_nothing_are_refused(windows: Windows) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        leaves.max_pool(_usual(1, 4, 4, 1), out=np.empty((1, 3, 3, 1), np.float32), options=(windows,))


#: Lengths, distances of two values, decays, and divisors of the mean with its scale.
UPDATES = list(
    product([0, 1, 8, 33, 100], [1, 2], [0.0, 0.01, 1e-50], [(1.0, None), (32.0, 0.3), (33.0, None), (0.0, 0.5)])
)


@pytest.mark.parametrize(("momentum", "is_nesterov"), [(None, False), (0.9, False), (0.9, True), (0.0, False)], ids=str)
def test_an_update_by_momentum_has_the_bits_of_the_contract(momentum: float | None, is_nesterov: bool) -> None:
    for length, step, decay, (divisor, scale) in UPDATES:
        check_update(length, momentum, is_nesterov, decay, step, divisor, scale)


def check_update(
    length: int, momentum: float | None, is_nesterov: bool, decay: float, step: int, divisor: float, scale: float | None
) -> None:
    weights, velocity, *terms = (_usual(length * step, seed=seed)[::step] for seed in range(4))
    terms[0][::3] = -0.0
    mean = terms[0] + terms[1]
    mean = mean / np.float32(divisor) if divisor else np.zeros_like(mean)
    if scale is not None:
        mean *= np.float32(scale)
    old = None if momentum is None else velocity
    expected = reference.follow_momentum(weights, mean, old, momentum or 0.0, 0.1, decay, is_nesterov)
    out, new = np.empty(length, np.float32), None if old is None else np.empty(length, np.float32)
    update = leaves.bind_momentum(
        weights, (old, new), out, momentum=momentum or 0.0, weight_decay=decay, is_nesterov=is_nesterov
    )
    assert update(Mean(terms, divisor, scale), 0.1)
    assert _same(out, expected[0])
    assert new is None or _same(new, np.asarray(expected[1]))


@pytest.mark.parametrize(("momentum", "is_nesterov"), [(None, False), (0.9, False), (0.9, True)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(("divisor", "scale"), [(32.0, None), (33.0, 0.3)])
def test_an_update_by_numpy_has_the_bits_of_the_kernel(
    momentum: float | None, is_nesterov: bool, decay: float, divisor: float, scale: float | None
) -> None:
    weights, velocity, *terms = (_usual(1000, seed=seed) for seed in range(4))
    found = []
    for leaves_of in (NUMPY, KERNELS):
        out, new = np.empty(1000, np.float32), None if momentum is None else np.empty(1000, np.float32)
        old = None if momentum is None else velocity
        update = leaves_of["momentum"](weights, old, out, new, momentum or 0.0, decay, is_nesterov)
        assert update(Mean([each.copy() for each in terms], divisor, scale), 0.1)
        found.append((out.tobytes(), b"" if new is None else new.tobytes()))
    assert found[0] == found[1]


def test_a_velocity_may_be_replaced_in_place() -> None:
    weights, gradient, velocity = (_usual(20, seed=seed) for seed in range(3))
    expected = reference.follow_momentum(weights, gradient, velocity, 0.9, 0.1, 0.0, True)
    out = np.empty_like(weights)
    update = leaves.bind_momentum(weights, (velocity, velocity), out, momentum=0.9, weight_decay=0.0, is_nesterov=True)
    assert update(Mean([gradient]), 0.1)
    assert _same(out, expected[0])
    assert _same(velocity, np.asarray(expected[1]))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("place", [0, 17, 36])
def test_an_update_tells_whether_all_weights_are_finite(value: float, place: int) -> None:
    weights = np.ones(37, np.float32)
    update = leaves.bind_momentum(
        weights, (None, None), np.empty_like(weights), momentum=0.0, weight_decay=0.0, is_nesterov=False
    )
    gradient = np.zeros(37, np.float32)
    gradient[place] = value
    assert update(Mean([gradient]), 0.1) is (value == 3e38)


def test_terms_of_another_length_are_refused() -> None:
    weights, out = np.ones(5, np.float32), np.empty(5, np.float32)
    update = leaves.bind_momentum(weights, (None, None), out, momentum=0.0, weight_decay=0.0, is_nesterov=False)
    with pytest.raises(ValueError, match="expected shapes that fit together"):
        update(Mean([np.ones(5, np.float32), np.ones(4, np.float32)]), 0.1)


@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (5, 10), (16, 3), (33, 40)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_cross_entropy_has_the_bits_of_the_contract(
    samples: int, classes: int, smoothing: float, is_turned: bool
) -> None:
    logits = _usual(samples, classes)
    logits[:, classes // 2] *= 50
    scores = logits.T if is_turned else np.ascontiguousarray(logits.T)
    targets = np.random.default_rng(classes).integers(0, classes, samples)
    loss, expected = reference.mean_cross_entropy(logits, targets.tolist(), smoothing)
    losses = leaves.cross_entropy(scores, targets, options=(smoothing,))
    assert _same(leaves.mean(losses), np.asarray(loss))
    of_each = np.full(samples, np.float32(1) / np.float32(samples))
    for gradient in (of_each, np.broadcast_to(of_each[:1], samples), np.repeat(of_each, 2)[::2]):
        found = leaves.cross_entropy_gradient(scores, targets, gradient, options=(smoothing,))
        assert _same(found.T.copy(), expected)


def test_a_class_that_is_none_of_the_scores_has_no_finite_loss_and_touches_no_memory() -> None:
    scores, targets, gradient = _usual(3, 4), np.array([-1, 3, 1 << 40, 2]), np.ones(4, np.float32)
    losses = leaves.cross_entropy(scores, targets, options=(0.0,))
    assert np.isnan(losses).tolist() == [True, True, True, False]
    found = leaves.cross_entropy_gradient(scores, targets, gradient, options=(0.0,))
    np.testing.assert_allclose(found.sum(axis=0), [1, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "targets"), [((3, 4), np.zeros(5, np.int64)), ((0, 4), np.zeros(4, np.int64)), ((12,), np.zeros(4, int))]
)
def test_scores_and_targets_that_do_not_fit_are_refused(scores: tuple[int, ...], targets: leaves.Array) -> None:
    with pytest.raises((ValueError, IndexError)):
        leaves.cross_entropy(_usual(*scores), targets, out=np.empty(4, np.float32), options=(0.0,))


@pytest.mark.parametrize("width", [1, 33])
@pytest.mark.parametrize("indices", [[], [2], [0, 1, 2, 3, 4], [1, 1, 4, 1, 0, 4, 1]])
@pytest.mark.parametrize("is_flat", [True, False])
def test_rows_are_added_in_the_order_of_their_use(width: int, indices: list[int], is_flat: bool) -> None:
    gradient = _usual(len(indices), width) * np.exp2(np.arange(len(indices), dtype=np.float32))[:, None]
    rows = _usual(5, width, seed=1)
    expected = reference.add_rows(gradient, indices, rows)
    out = rows.copy() if is_flat else np.repeat(rows, 2, axis=1)[:, ::2]
    leaves.add_rows(gradient, np.array(indices, np.int64), out=out)
    assert _same(out.copy(), expected)


@pytest.mark.parametrize("wrong", [-1, 5, 1 << 62])
def test_an_index_that_is_not_a_row_is_refused(wrong: int) -> None:
    rows = np.zeros((5, 3), np.float32)
    with pytest.raises(IndexError, match="expected indices from 0 to the last row"):
        leaves.add_rows(np.ones((2, 3), np.float32), np.array([1, wrong]), out=rows)
    assert not rows.any()


def _doubles(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(list(shape)).standard_normal(shape)


def _convolved(x: leaves.Array, kernels: leaves.Array) -> leaves.Array:
    return leaves.convolution(x, kernels, out=np.empty((1, 2, 2, 1)), options=((Window(2, 1, 1),) * 2, 1))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: leaves.exp(_doubles(9)), lambda: np.exp(_doubles(9))),
        (lambda: leaves.relu(_doubles(9)), lambda: np.maximum(_doubles(9), 0)),
        (lambda: leaves.total(_doubles(99)), lambda: np.add.reduce(_doubles(99))),
        (lambda: leaves.product(_doubles(4, 5), _doubles(5, 6)), lambda: np.matmul(_doubles(4, 5), _doubles(5, 6))),
        (lambda: leaves.product(_doubles(4, 5), _usual(5, 6)), lambda: np.matmul(_doubles(4, 5), _usual(5, 6))),
        (lambda: _convolved(_doubles(1, 2, 2, 1), np.full((1, 1, 1, 1), 3.0)), lambda: 3.0 * _doubles(1, 2, 2, 1)),
    ],
)
def test_numpy_computes_what_is_not_float32(
    found: Callable[[], leaves.Array], expected: Callable[[], leaves.Array]
) -> None:
    assert found().dtype == np.float64
    assert found().tobytes() == expected().tobytes()
