"""Figures of classes from counts, where they are undefined too, and their form in a terminal."""

import numpy as np
import pytest

from lockstep.results.evaluation.figures import (
    MOST_SHOWN,
    class_figures,
    class_lines,
    confusion_of,
    matrix_lines,
    target_figures,
    target_lines,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 2], dtype=np.int64)
TAKEN = np.array([0, 0, 0, 1, 1, 0, 1], dtype=np.int64)


def test_counts_are_by_class_and_by_what_it_is_taken_for() -> None:
    counts = confusion_of(LABELS, TAKEN, 4)
    assert counts.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_precision_recall_and_f1() -> None:
    first, second, *_ = class_figures(confusion_of(LABELS, TAKEN, 4))
    assert (first.samples, first.precision, first.recall, first.f1) == (4, 0.75, 0.75, 0.75)
    assert (first.mistaken_for, first.mistakes) == (1, 1)
    assert (second.samples, second.recall) == (2, 0.5)
    assert second.precision == pytest.approx(1 / 3)
    assert second.f1 == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))


def test_what_would_divide_by_zero_is_none() -> None:
    _, _, never_taken, absent = class_figures(confusion_of(LABELS, TAKEN, 4))
    assert (never_taken.precision, never_taken.recall, never_taken.f1) == (None, 0.0, 0.0)
    assert (absent.samples, absent.precision, absent.recall, absent.f1, absent.mistaken_for) == (
        0,
        None,
        None,
        None,
        None,
    )


def test_lines_fit_80_columns_and_a_large_matrix_is_left_out() -> None:
    many = np.full((MOST_SHOWN, MOST_SHOWN), 9999)
    lines = [*class_lines(class_figures(many)), *matrix_lines(many)]
    assert max(map(len, lines)) <= 80
    assert matrix_lines(np.ones((MOST_SHOWN + 1, MOST_SHOWN + 1), np.int64)) == []
    assert class_lines(class_figures(confusion_of(LABELS, TAKEN, 4)))[3].split() == [
        "2",
        "1",
        "-",
        "0.00%",
        "0.00%",
        "1,",
        "1",
        "time",
    ]


def test_each_target_has_figures_of_its_own() -> None:
    targets = np.array([[0, 7], [2, 7], [4, 7], [6, 7]], np.float32)
    outputs = targets + np.array([[1, 0], [-1, 0], [3, 0], [1, 2]], np.float32)
    first, second = target_figures(outputs, targets)
    assert (first.mse, first.mae) == (3.0, 1.5)
    assert first.r2 == pytest.approx(1 - 3 / 5)
    assert (second.mse, second.mae, second.r2) == (1.0, 0.5, None)
    head, *lines = target_lines([first, second])
    assert [line.split() for line in lines] == [["0", "3", "1.7321", "1.5", "0.4000"], ["1", "1", "1", "0.5", "-"]]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_figures_are_weighted_as_samples_are() -> None:
    targets = np.array([[0, 7], [2, 3], [4, 7], [6, 9]], np.float32)
    outputs = targets + np.array([[1, 0], [-1, 0], [3, 0], [1, 2]], np.float32)
    weights = np.array([0.0, 1.0, 2.5, 0.5], np.float32)
    for figures in target_figures(outputs, targets, weights):
        target = targets[:, figures.target].astype(float)
        errors = outputs[:, figures.target] - target
        mean = (weights * target).sum() / 4.0
        assert figures.mse == pytest.approx((weights * errors**2).sum() / 4.0)
        assert figures.mae == pytest.approx((weights * np.abs(errors)).sum() / 4.0)
        assert figures.r2 == pytest.approx(1 - (weights * errors**2).sum() / (weights * (target - mean) ** 2).sum())
    # Samples that all count for nothing have no weighted mean.
    assert target_figures(outputs, targets, np.zeros(4, np.float32)) == target_figures(outputs, targets)
