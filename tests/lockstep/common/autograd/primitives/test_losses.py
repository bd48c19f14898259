"""Losses: equal to their formulas, with right derivatives, and strict about targets."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.autograd.primitives.losses import bce_with_logits, cross_entropy, mse, nll
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.softmax import log_softmax
from tests.lockstep.common.autograd.primitives import twins
from tests.lockstep.common.autograd.primitives.calls import gradients_of, result_of

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


@st.composite
def classifications(draw: st.DrawFn) -> tuple[Array, Array]:
    """Draw scores (batch, classes, ...) or (classes,) and class indices that fit."""
    classes, rest = draw(st.integers(1, 5)), draw(st.lists(st.integers(1, 3), max_size=2))
    batch = draw(st.integers(1, 4))
    is_single = draw(st.booleans()) and not rest
    shape = (classes,) if is_single else (batch, classes, *rest)
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    return 4 * rng.standard_normal(shape), rng.integers(0, classes, () if is_single else (batch, *rest)).astype(dtype)


def _reduce(losses: Array, reduction: str) -> Array:
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](losses)  # type: ignore[operator, no-any-return]


@given(classifications(), st.sampled_from([0.0, 0.1, 1.0]), REDUCTIONS)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_cross_entropy(case: tuple[Array, Array], smoothing: float, reduction: str) -> None:
    logits, target = case
    rows = np.moveaxis(np.atleast_2d(logits), 1, -1).reshape(target.size, -1).tolist()
    flat = [twins.cross_entropy(row, k, smoothing) for row, k in zip(rows, target.reshape(-1).tolist(), strict=True)]
    result = result_of(cross_entropy, logits, target, label_smoothing=smoothing, reduction=reduction)
    expected = _reduce(np.array(flat).reshape(target.shape), reduction)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@given(classifications(), REDUCTIONS)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_nll_of_log_softmax_is_cross_entropy(case: tuple[Array, Array], reduction: str) -> None:
    logits, target = case
    log_probabilities = result_of(log_softmax, logits, axis=min(1, logits.ndim - 1))
    result = result_of(nll, log_probabilities, target, reduction=reduction)
    expected = result_of(cross_entropy, logits, target, reduction=reduction)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse(reduction: str) -> None:
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((2, 3, 4, 2))
    result = result_of(mse, prediction, target, reduction=reduction)
    np.testing.assert_allclose(result, _reduce((prediction - target) ** 2, reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_with_logits(reduction: str) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((3, 4)), rng.random((3, 4))
    losses = [
        [-t * log(1 / (1 + np.exp(-x))) - (1 - t) * log(1 - 1 / (1 + np.exp(-x))) for x, t in zip(xs, ts, strict=True)]
        for xs, ts in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    result = result_of(bce_with_logits, logits, target, reduction=reduction)
    np.testing.assert_allclose(result, _reduce(np.array(losses), reduction), rtol=1e-10)


def test_scores_far_apart_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30], [-1e30, 1e30]], np.float32)
    np.testing.assert_array_equal(
        result_of(cross_entropy, logits, np.array([0, 0]), reduction="none"), np.array([0, 2e30], np.float32)
    )
    np.testing.assert_array_equal(
        result_of(bce_with_logits, np.array([-1e4, 1e4]), np.array([1.0, 1.0]), reduction="none"), [1e4, 0.0]
    )


def test_bce_keeps_small_losses() -> None:
    """A sure and right answer at x = 40 costs exp(-40), which 1 - σ(x) would round to 0."""
    result = result_of(bce_with_logits, np.array([40.0]), np.array([1.0]))
    np.testing.assert_allclose(result, np.exp(-40.0), rtol=1e-12)


@pytest.mark.parametrize("wrong", [-1, 3, -100])
@pytest.mark.parametrize("primitive", [cross_entropy, nll], ids=lambda each: each.name)
def test_target_out_of_range_is_named(primitive: Primitive, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"target {wrong}, expected a class from 0 to 2 \(3 classes\)"):
        primitive.forward(np.zeros((2, 3)), np.array([0, wrong]))


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), np.int64)),
        (np.zeros((2, 3)), np.zeros(3, np.int64)),
        (np.zeros((2, 3)), np.zeros(2)),
        (np.zeros((2, 3, 4)), np.zeros(2, np.int64)),
        (np.zeros(3), np.zeros(1, np.int64)),
    ],
)
@pytest.mark.parametrize("primitive", [cross_entropy, nll], ids=lambda each: each.name)
def test_target_of_another_shape_or_type_is_refused(primitive: Primitive, scores: Array, target: Array) -> None:
    with pytest.raises(ValueError, match="expected integers of shape"):
        primitive.forward(scores, target)


def test_other_misuse_is_refused() -> None:
    scores, target = np.zeros((2, 3)), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5, expected a number from 0 to 1"):
        cross_entropy.forward(scores, target, label_smoothing=1.5)
    with pytest.raises(ValueError, match="reduction is 'max', expected 'mean', 'sum' or 'none'"):
        cross_entropy.forward(scores, target, reduction="max")
    with pytest.raises(ValueError, match=r"mse got a prediction of shape \(2, 3\) and a target of shape \(2,\)"):
        mse.forward(scores, target)
    with pytest.raises(ValueError, match="bce_with_logits got a prediction"):
        bce_with_logits.forward(scores, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a loss got a number"):
        nll.forward(np.zeros(()), np.array(0))


@pytest.mark.parametrize("primitive", [cross_entropy, nll], ids=lambda each: each.name)
def test_an_empty_batch_sums_to_zero_and_has_no_mean(primitive: Primitive) -> None:
    scores, target = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert result_of(primitive, scores, target, reduction="sum") == 0
    assert np.isnan(result_of(primitive, scores, target, reduction="mean"))
    gradient, _ = gradients_of(primitive, np.ones((), np.float32), scores, target)
    assert gradient is not None
    assert gradient.shape == (0, 3)
