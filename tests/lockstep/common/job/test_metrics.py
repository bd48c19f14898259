"""Metrics: equal to scikit-learn's over all rows, whatever these were cut into; and what they refuse."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset
from lockstep.common.data.records import as_records, labels_with
from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LOSSES, LossKind, has_accuracy, kind_of
from lockstep.common.job.metrics import (
    METRICS,
    ComparedRows,
    Metrics,
    Score,
    is_named,
    metric_name,
    metric_of,
    score_metric,
    score_of,
)
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import OwnCode
from lockstep.common.job.tally import Tally

RNG = np.random.default_rng(8)
#: Ties among outputs, classes that are never predicted, and one that is no target.
LOGITS = RNG.integers(0, 3, (60, 6)).astype(np.float32)
CLASSES = RNG.integers(0, 5, 60)
HOLDS = RNG.integers(0, 2, (60, 4))
NUMBERS = RNG.normal(size=(60, 3)).astype(np.float32)


def scored(objective: Objective, outputs: NDArray[Any], labels: NDArray[Any], parts: int = 7) -> Score:
    """Return the score of rows that were cut into parts, whose losses are 0."""
    guess = None
    if objective.metrics.needs_guess:
        guess = objective.guess(Dataset(np.zeros((len(labels), 1), np.float32), labels, 0))
    tally = Tally()
    for rows in np.array_split(np.arange(len(labels)), parts):
        tally += objective.tally(0.0, outputs[rows], objective.targets(labels[rows]))
    return score_of(objective.metrics, tally, guess)


def named(loss: str, *metrics: str, **values: Any) -> Objective:
    return Objective(Job(loss=loss, metrics=metrics, **values))


def test_classes_are_counted_as_scikit_learn_does() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted = LOGITS.argmax(axis=1)
    found = scored(named("cross-entropy", "f1", "iou", "top1", "top6"), LOGITS, CLASSES)
    assert found.accuracy == sklearn.accuracy_score(CLASSES, predicted)
    assert found.others["f1"] == pytest.approx(sklearn.f1_score(CLASSES, predicted, average="macro"), rel=1e-12)
    assert found.others["iou"] == pytest.approx(sklearn.jaccard_score(CLASSES, predicted, average="macro"), rel=1e-12)
    assert (found.others["top1"], found.others["top6"]) == (found.accuracy, 1.0)


def test_of_equal_outputs_the_first_are_the_best() -> None:
    found = scored(named("cross-entropy", "top2"), np.zeros((4, 3), np.float32), np.array([0, 1, 2, 2]), parts=1)
    assert found.others == {"top2": 0.5}


def test_each_number_of_best_outputs_is_counted() -> None:
    names = [f"top{best}" for best in range(1, 7)]
    found = scored(named("nll", *names), np.zeros((12, 12), np.float32), np.arange(12))
    assert found.others == {name: best / 12 for best, name in enumerate(names, 1)}


def test_several_labels_are_counted_as_scikit_learn_does() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    outputs = RNG.normal(size=HOLDS.shape).astype(np.float32)
    found = scored(named("bce", "f1", "iou"), outputs, HOLDS)
    assert found.accuracy == ((outputs > 0) == HOLDS).mean()
    assert found.others["f1"] == pytest.approx(sklearn.f1_score(HOLDS, outputs > 0, average="macro"), rel=1e-12)
    assert found.others["iou"] == pytest.approx(sklearn.jaccard_score(HOLDS, outputs > 0, average="macro"), rel=1e-12)


@pytest.mark.parametrize("loss", ["l1", "mine.py:loss"])
@pytest.mark.parametrize("weights", [None, RNG.random(60).astype(np.float32)])
def test_errors_of_numbers_are_those_of_scikit_learn(loss: str, weights: NDArray[Any] | None) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    outputs = NUMBERS + RNG.normal(size=NUMBERS.shape).astype(np.float32)
    objective, given = named(loss, "mae", "rmse", "r2"), {"sample_weight": weights}
    labels = labels_with({"": NUMBERS}, weights)
    found = scored(objective, outputs, labels)
    assert found.others["mae"] == pytest.approx(sklearn.mean_absolute_error(NUMBERS, outputs, **given), rel=1e-6)
    error = sklearn.mean_squared_error(NUMBERS, outputs, **given) ** 0.5
    assert found.others["rmse"] == pytest.approx(error, rel=1e-6)
    if weights is None:
        expected = sklearn.r2_score(NUMBERS, outputs, multioutput="variance_weighted")
        assert found.r2 == pytest.approx(expected, abs=1e-6)


def test_a_label_that_is_ignored_is_in_no_metric() -> None:
    labels = np.where(np.arange(60) % 3 == 0, 255, CLASSES)
    kept = labels != 255
    some = scored(named("cross-entropy", "f1", "top2", ignore_index=255), LOGITS, labels)
    assert some == scored(named("cross-entropy", "f1", "top2"), LOGITS[kept], CLASSES[kept])


def test_each_pixel_is_a_row() -> None:
    maps = LOGITS.reshape(3, 4, 5, 6).transpose(0, 3, 1, 2)
    objective = named("cross-entropy", "iou")
    assert scored(objective, maps, CLASSES.reshape(3, 4, 5), 3) == scored(objective, LOGITS, CLASSES)


def test_perplexity_follows_from_the_loss() -> None:
    metrics = Metrics.of("nll", ["perplexity"])
    assert score_of(metrics, Tally(6.0, 3)).others == {"perplexity": pytest.approx(np.exp(2.0))}
    assert np.isfinite(score_of(metrics, Tally(1e6, 1)).others["perplexity"])


@pytest.mark.parametrize("name", METRICS)
def test_over_nothing_each_has_a_figure(name: str) -> None:
    loss = "l1" if name in ("mae", "rmse", "r2") else "cross-entropy"
    assert np.isfinite(list(Metrics.of(loss, [name]).figures((), 0.0).values())).all()


def test_with_a_loss_of_ones_own_targets_are_judged_as_they_look() -> None:
    for outputs, labels, loss in ((LOGITS, CLASSES, "cross-entropy"), (RNG.normal(size=HOLDS.shape), HOLDS, "bce")):
        found = scored(named("mine.py:loss", "accuracy", "f1"), outputs, labels)
        assert found == scored(named(loss, "f1"), outputs, labels)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "text"),
    [
        ("accuracy", LOGITS, NUMBERS[:, 0], "the targets are of dtype 'float32'"),
        ("accuracy", LOGITS, CLASSES + 2, "the targets are 6 for 6 outputs"),
        ("mae", LOGITS, NUMBERS, r"the targets are \(3,\), not \(6,\) as outputs"),
        ("f1", LOGITS, as_records({"a": CLASSES, "b": CLASSES}), "the targets are several arrays: expected what a"),
    ],
)
def test_targets_that_a_metric_cannot_read_are_named(
    metric: str, outputs: NDArray[Any], labels: NDArray[Any], text: str
) -> None:
    objective = named("mine.py:loss", metric)
    with pytest.raises(ModelError, match=f"metrics has '{metric}' with loss = 'mine.py:loss', and {text}"):
        objective.tally(0.0, outputs, objective.targets(labels))


def test_a_metric_by_class_has_a_limit() -> None:
    objective = named("cross-entropy", "f1")
    with pytest.raises(ModelError, match=r"metrics has 'f1' with 4097 classes: expected at most 4096, .* use accuracy"):
        objective.tally(0.0, np.zeros((1, 4097), np.float32), np.zeros(1, np.int64))


def test_a_metric_of_ones_own_gets_rows_and_returns_a_sum_and_a_count() -> None:
    def spread(outputs: Any, targets: Any) -> Any:
        assert (outputs.shape, targets.shape) == ((len(targets), 6), (len(outputs),))
        return outputs.max(axis=1).sum(), len(targets)

    objective = Objective(Job(metrics=("mine.py:spread",), ignore_index=255), OwnCode(metrics={"spread": spread}))
    labels = np.where(np.arange(60) % 3 == 0, 255, CLASSES).reshape(15, 4)
    found = scored(objective, LOGITS.reshape(15, 4, 6), labels)
    assert found.others == {"spread": pytest.approx(LOGITS[labels.reshape(-1) != 255].max(axis=1).mean())}


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ((np.nan, 1), "the metric odd returned nan and 1.0: expected two finite numbers"),
        ((1.0, -1), "the metric odd returned 1.0 and -1.0: expected two finite numbers"),
        (3.0, "the metric odd raised TypeError: .*: expected a function of outputs and targets, both NumPy arrays"),
    ],
)
def test_a_metric_of_ones_own_that_returns_something_else_is_named(returned: Any, text: str) -> None:
    objective = Objective(Job(metrics=("mine.py:odd",)), OwnCode(metrics={"odd": lambda outputs, targets: returned}))
    with pytest.raises(ModelError, match=text):
        objective.tally(0.0, LOGITS, CLASSES)


@pytest.mark.parametrize(
    ("value", "loss", "width", "is_higher_better"),
    [
        *(("accuracy", "cross-entropy", 2, True), ("top5", "cross-entropy", 2, True), ("top9999", "nll", 2, True)),
        *(("f1", "bce", 3, True), ("iou", "nll", 3, True), ("perplexity", "nll", 0, False)),
        *(("mae", "l1", 2, False), ("rmse", "l1", 2, False), ("r2", "l1", 2, True), ("r2", "mse", 0, True)),
        *(("mine.py:top5", "mse", 2, None), ("mine.py:f1", "nll", 2, None)),
        # Names of functions, since they are none of the library.
        *(("top0", "nll", 2, None), ("top10000", "nll", 2, None), ("top05", "nll", 2, None)),
    ],
)
def test_a_metric_by_its_name(value: str, loss: str, width: int, is_higher_better: bool | None) -> None:
    metric = metric_of(value, loss)
    assert (metric.width, metric.is_higher_better) == (width, is_higher_better)
    assert is_named(value) is (is_higher_better is not None)
    assert metric_name(value) == value.removeprefix("mine.py:")
    assert (loss in LOSSES and LOSSES[loss] in metric.kinds) or is_higher_better is None


@pytest.mark.parametrize(
    ("loss", "unasked"),
    [
        *(("cross-entropy", "accuracy"), ("nll", "accuracy"), ("bce", "accuracy"), ("mse", "r2"), ("l1", "")),
        *(("smooth-l1", ""), ("mine.py:loss", "")),
    ],
)
def test_what_a_loss_has_unasked_is_the_first_and_there_once(loss: str, unasked: str) -> None:
    names = [unasked] if unasked else []
    assert score_metric(loss) == unasked
    assert has_accuracy(loss) is (unasked == "accuracy")
    assert (kind_of(loss) is LossKind.OWN) is (loss not in LOSSES)
    assert list(Metrics.of(loss, ()).by_name) == names
    asked = ["mine.py:b", *names, "mine.py:a", "mine.py:b"]
    assert list(Metrics.of(loss, asked).by_name) == [*names, "b", "a"]


@pytest.mark.parametrize(
    ("loss", "values", "size", "is_whole", "needs_guess"),
    [
        ("nll", ["f1", "top2", "iou"], 2 + 21 + 2 + 21, True, False),
        ("nll", ["perplexity"], 2, True, False),
        ("nll", ["mine.py:a"], 4, False, False),
        ("mse", [], 0, True, True),
        ("l1", ["r2", "mae"], 4, False, True),
    ],
)
def test_sums_of_several_metrics(loss: str, values: list[str], size: int, is_whole: bool, needs_guess: bool) -> None:
    metrics = Metrics.of(loss, values)
    assert metrics.size(7) == size
    assert (metrics.is_whole, metrics.needs_guess) == (is_whole, needs_guess)


def test_figures_are_taken_of_each_ones_own_sums() -> None:
    metrics = Metrics.of("nll", ["f1", "top2", "iou", "mine.py:a"])
    # Of two classes: found rightly, predicted, targets.
    by_class = [1, 2, 3, 4, 1, 4]
    assert metrics.figures([1, 4, *by_class, 3, 4, *by_class, 5, 10], 0.0) == {
        "accuracy": 0.25,
        "f1": pytest.approx((2 * 1 / 4 + 2 * 2 / 8) / 2),
        "top2": 0.75,
        "iou": pytest.approx((1 / 3 + 2 / 6) / 2),
        "a": 0.5,
    }
    # A class that is nowhere counts for nothing.
    assert Metrics.of("nll", ["f1"]).figures([0, 0, 1, 0, 2, 0, 2, 0], 0.0)["f1"] == 0.5


def test_figures_of_numbers_and_of_losses() -> None:
    metrics = Metrics.of("l1", ["mae", "rmse", "r2"])
    assert metrics.figures([6, 4, 9, 4, 6, 4], 9.0, 6.0) == {"mae": 1.5, "rmse": 1.5, "r2": 0.75}
    assert metrics.figures([6, 4, 9, 4, 6, 4], 9.0, 0.0)["r2"] == 0.0
    assert Metrics.of("mse", ()).figures((), 1.5, 6.0) == {"r2": 0.75}
    perplexity = Metrics.of("nll", ["perplexity"])
    for loss, expected in ((0.5, np.exp(0.5)), (699.0, np.exp(699.0)), (701.0, np.exp(700.0))):
        assert perplexity.figures((), loss)["perplexity"] == pytest.approx(expected)


def test_sums_of_numbers_are_weighted() -> None:
    rows = ComparedRows(
        np.array([[1, 2], [3, 5]], np.float32), np.array([[0, 0], [1, 1]], np.float32), LossKind.NUMBERS
    )
    weighted = rows._replace(weights=np.array([1.0, 0.5], np.float32))
    for name, plain, weighed in (("mae", (9, 4), (6, 3)), ("rmse", (25, 4), (15, 3))):
        sums = METRICS[name].sums
        assert sums is not None
        assert tuple(sums(rows)) == plain
        assert tuple(sums(weighted)) == weighed


def test_labels_hold_from_a_half_on_and_outputs_above_0() -> None:
    rows = ComparedRows(np.array([[0.0, 0.1, -0.1]]), np.array([[0.5, 0.5001, 0.4]]), LossKind.LABELS)
    counts = METRICS["f1"].sums
    right = METRICS["accuracy"].sums
    assert counts is not None
    assert right is not None
    assert tuple(right(rows)) == (3, 3)
    assert tuple(counts(rows)) == (0, 1, 0, 0, 1, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("tally", "guess", "score", "told"),
    [
        (Tally(2.0, 4, metrics=(3, 4)), None, Score(0.75, None), "accuracy 75.00%"),
        (Tally(2.0, 4), 2.0, Score(None, 0.75), "R² 0.7500"),
        (Tally(20.0, 4), 2.0, Score(None, -1.5), "R² -1.5000"),
        (Tally(20.0, 4), 0.0, Score(None, 0.0), "R² -"),
    ],
)
def test_classes_have_accuracy_and_numbers_r2(tally: Tally, guess: float | None, score: Score, told: str) -> None:
    found = score_of(Metrics.of("cross-entropy" if guess is None else "mse", ()), tally, guess)
    assert (found.accuracy, found.r2, dict(found.others)) == (score.accuracy, score.r2, {})
    assert f"{found.name} {found.text()}" == told


def test_without_accuracy_and_r2_there_is_no_first_number() -> None:
    score = Score(None, None, {"f1": 0.5})
    assert (score.name, score.text()) == ("", "")
    assert score.named("test_") == {"test_f1": 0.5}
