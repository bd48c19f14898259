"""The confusion matrix of a classifier, and precision, recall and F1 of each class. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.files.sanitize import cut, one_line

Integers = NDArray[np.int64]


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


@dataclass(frozen=True)
class Confusion:
    """Counts, (classes, classes): row i, column j is the number of samples of class i predicted as class j."""

    counts: Integers

    @classmethod
    def of(cls, labels: Integers, predicted: Integers, classes: int) -> "Confusion":
        """Count samples by their class and their predicted class, both (n,) in [0, classes)."""
        return cls(np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes))

    def figures(self) -> list[ClassFigures]:
        """Return the figures of each class, in order."""
        return [self._figures(label) for label in range(len(self.counts))]

    def _figures(self, label: int) -> ClassFigures:
        right = int(self.counts[label, label])
        samples, predicted = int(self.counts[label].sum()), int(self.counts[:, label].sum())
        others = self.counts[label].copy()
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


#: Most classes whose confusion matrix fits a terminal of 80 columns.
MOST_SHOWN = 12


#: Most characters of a class's name in a line.
MOST_NAME = 20


def shown_names(names: Sequence[str], classes: int) -> list[str]:
    """Return what each class is called on the screen: its name, as far as there is room, or its number."""
    return [cut(one_line(name), MOST_NAME) for name in names] if names else [str(label) for label in range(classes)]


def figures_lines(figures: list[ClassFigures], names: Sequence[str] = ()) -> list[str]:
    """Return one line per class."""
    shown = shown_names(names, len(figures))
    width = max(5, *map(len, shown))
    head = f"{'class':>{width}}  samples  precision   recall       F1  most often mistaken for"
    return [head, *(_line(one, shown, width) for one in figures)]


def _line(one: ClassFigures, shown: Sequence[str], width: int) -> str:
    shares = "  ".join(f"{value:>7.2%}" if value is not None else f"{'-':>7}" for value in (one.recall, one.f1))
    precision = f"{one.precision:.2%}" if one.precision is not None else "-"
    mistaken = f"{shown[one.mistaken_for]}, {one.mistakes} times" if one.mistaken_for is not None else "-"
    return f"{shown[one.label]:>{width}}  {one.samples:>7,}  {precision:>9}  {shares}  {mistaken}"


def matrix_lines(confusion: Confusion, names: Sequence[str] = ()) -> list[str]:
    """Return the matrix, one line per class, or none if it would not fit."""
    classes = len(confusion.counts)
    if classes > MOST_SHOWN:
        return []
    width = max(5, len(str(int(confusion.counts.max()))) + 1)
    # There is no room for names over the columns: a column is the class of the row with its number.
    shown = [f"{label} {name}" for label, name in enumerate(shown_names(names, classes))] if names else []
    first = max(9, *map(len, shown)) if shown else 9
    head = f"{'predicted':<{first}}" + "".join(f"{label:>{width}}" for label in range(classes))
    rows = (
        (f"{shown[label]:<{first}}" if shown else f"class {label:>3}")
        + "".join(f"{count or '.':>{width}}" for count in row.tolist())
        for label, row in enumerate(confusion.counts)
    )
    return [head, *rows]
