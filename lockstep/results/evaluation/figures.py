"""The figures of an evaluation: a classifier's confusion matrix, and errors by class or by target. Pure."""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.columns import Column
from lockstep.common.files.sanitize import cut, one_line

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]

#: Most classes whose confusion matrix fits a terminal of 80 columns.
MOST_SHOWN = 12

#: Most characters of the name of a class or a target in a line.
MOST_NAME = 20


class ClassFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one class; None if they would divide by 0."""

    label: int
    #: Test samples of this class.
    samples: int
    #: The share of samples predicted as this class that belong to it, and of its samples that are predicted as it.
    precision: float | None
    recall: float | None
    #: The harmonic mean of both.
    f1: float | None
    #: The class that its samples are most often mistaken for, and their number; None if all are right.
    mistaken_for: int | None
    mistakes: int


def confusion_of(labels: Integers, predicted: Integers, classes: int) -> Integers:
    """Count samples by their class and their predicted class, both (n,) in [0, classes).

    Returns the confusion matrix, (classes, classes): row i, column j is the number of samples of class i predicted as
    class j.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_figures(confusion: Integers) -> list[ClassFigures]:
    """Return the figures of each class, in order."""
    return [_figures_of(confusion, label) for label in range(len(confusion))]


def _figures_of(confusion: Integers, label: int) -> ClassFigures:
    right = int(confusion[label, label])
    samples, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
    others = confusion[label].copy()
    others[label] = 0
    worst = int(others.argmax())
    return ClassFigures(
        label=label,
        samples=samples,
        precision=_share(right, predicted),
        recall=_share(right, samples),
        f1=_share(2 * right, samples + predicted),
        mistaken_for=worst if others[worst] else None,
        mistakes=int(others[worst]),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class LabelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one of several labels; None if they would divide by 0."""

    label: int
    #: Test samples that have it.
    samples: int
    #: The share of samples for which it is predicted rightly, whether they have it or not.
    accuracy: float
    #: As of `ClassFigures`.
    precision: float | None
    recall: float | None
    f1: float | None


def label_figures(outputs: Floats, targets: Floats) -> list[LabelFigures]:
    """Return the figures of each label, in order; both arrays are (n, labels), and outputs above 0 predict a label."""
    predicted, held = outputs > 0.0, targets > 0.5
    figures = []
    for label, (guesses, truths) in enumerate(zip(predicted.T, held.T, strict=True)):
        right, samples, claimed = (int(np.count_nonzero(each)) for each in (guesses & truths, truths, guesses))
        figures.append(
            LabelFigures(
                label=label,
                samples=samples,
                accuracy=float(np.mean(guesses == truths)),
                precision=_share(right, claimed),
                recall=_share(right, samples),
                f1=_share(2 * right, samples + claimed),
            )
        )
    return figures


def label_lines(figures: list[LabelFigures]) -> list[str]:
    """Return one line per label."""
    head = ("label", "samples", "accuracy", "precision", " recall", "     F1")
    rows = (
        [str(one.label), f"{one.samples:,}", *_percents(one.accuracy, one.precision, one.recall, one.f1)]
        for one in figures
    )
    return _aligned(head, rows)


def _percents(*shares: float | None) -> list[str]:
    return ["-" if value is None else f"{value:>7.2%}" for value in shares]


class TargetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one of the numbers of a sample."""

    target: int
    #: Means of the squared and of the absolute error, over the weights of samples if they have some.
    mse: float
    mae: float
    #: The share of the variance that is explained, at most 1; None if the target is constant.
    r2: float | None
    #: The number's name in the table that it is from; empty without a name.
    name: str = ""


def target_figures(outputs: Floats, targets: Floats, weights: Floats | None = None) -> list[TargetFigures]:
    """Return the figures of each target, in order; both arrays are (n, targets).

    With the weights of samples, (n,), all means are weighted, also that of the targets, unless all weights are 0.
    """
    errors = outputs.astype(np.float64) - targets
    weighed = None if weights is None or not weights.any() else weights.astype(np.float64)
    centred = targets - np.average(targets.astype(np.float64), axis=0, weights=weighed)
    squares, sizes, variances = (
        np.average(each, axis=0, weights=weighed).tolist()
        for each in (np.square(errors), np.abs(errors), np.square(centred))
    )
    return [
        TargetFigures(target=number, mse=mse, mae=mae, r2=1.0 - mse / variance if variance else None)
        for number, (mse, mae, variance) in enumerate(zip(squares, sizes, variances, strict=True))
    ]


def in_units(figures: list[TargetFigures], columns: Sequence[Column]) -> list[TargetFigures]:
    """Return the figures in the units of data whose columns were scaled, and under their names.

    One column may stand for all of them.
    """
    each = columns if len(columns) == len(figures) else [*columns] * len(figures)
    return [
        replace(one, mse=one.mse * column.std**2, mae=one.mae * column.std, name=column.name)
        for one, column in zip(figures, each, strict=True)
    ]


def shown_names(names: Sequence[str], classes: int) -> list[str]:
    """Return what each class is called on the screen: its name, as far as there is room, or its number."""
    return [cut(one_line(name), MOST_NAME) for name in names] if names else [str(label) for label in range(classes)]


def class_lines(figures: list[ClassFigures], names: Sequence[str] = ()) -> list[str]:
    """Return one line per class."""
    shown = shown_names(names, len(figures))
    head = ("class", "samples", "precision", " recall", "     F1", "most often mistaken for")
    return _aligned(head, (_cells(one, shown) for one in figures))


def _cells(one: ClassFigures, shown: Sequence[str]) -> list[str]:
    shares = ("-" if value is None else f"{value:.2%}" for value in (one.precision, one.recall, one.f1))
    mistaken = (
        "-"
        if one.mistaken_for is None
        else f"{shown[one.mistaken_for]}, {one.mistakes} time{'s' * (one.mistakes != 1)}"
    )
    return [shown[one.label], f"{one.samples:,}", *shares, mistaken]


def target_lines(figures: list[TargetFigures]) -> list[str]:
    """Return one line per target."""
    head = ("target", "mean squared error", "root of it", "mean absolute error", "     R²")
    rows = (
        (
            cut(one_line(one.name), MOST_NAME) or str(one.target),
            f"{one.mse:.5g}",
            f"{one.mse**0.5:.5g}",
            f"{one.mae:.5g}",
            f"{'-' if one.r2 is None else f'{one.r2:.4f}':>7}",
        )
        for one in figures
    )
    return _aligned(head, rows)


def _aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines with all columns but the last one set flush right."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
    return ["  ".join([*map(str.rjust, cells, widths), cells[-1]]) for cells in table]


def matrix_lines(confusion: Integers, names: Sequence[str] = ()) -> list[str]:
    """Return the matrix, one line per class, or none if it would not fit."""
    classes = len(confusion)
    if classes > MOST_SHOWN:
        return []
    width = max(5, len(str(int(confusion.max()))) + 1)
    # There is no room for names over the columns: a column is the class of the row with its number.
    shown = [f"{label} {name}" for label, name in enumerate(shown_names(names, classes))] if names else []
    first = max(9, *map(len, shown)) if shown else 9
    head = f"{'predicted':<{first}}" + "".join(f"{label:>{width}}" for label in range(classes))
    rows = (
        (f"{shown[label]:<{first}}" if shown else f"class {label:>3}")
        + "".join(f"{count or '.':>{width}}" for count in row.tolist())
        for label, row in enumerate(confusion)
    )
    return [head, *rows]
