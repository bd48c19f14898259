"""Metrics: figures of outputs and targets, besides the loss, from sums that are added over the tree of a step. Pure.

A metric makes sums of the rows of a micro-batch, and a figure of the sums over any number of them: so it is exact, and
the same for any number of workers. A mean of figures would be neither. The score of a tally names accuracy or R² first.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.scalars import exp
from lockstep.common.numerics.sums import halved_sum

Array = NDArray[Any]
Sums = NDArray[np.float64]

#: A metric of the user: outputs and targets in, the sum of the metric and its divisor out.
OwnMetric = Callable[[Any, Any], tuple[Any, Any]]

#: Metrics that a job may name.
MOST_METRICS = 16

#: Of metrics that count by class: what counts three numbers of each of so many classes travels with each result.
MOST_CLASSES = 4096

#: Sums of all metrics: two of each, and three of each class for the two that count by class.
MOST_SUMS = 2 * MOST_METRICS + 2 * 3 * MOST_CLASSES


class ComparedRows(NamedTuple):
    """The rows that a metric compares, without targets that are ignored."""

    #: (rows, classes), or (rows, labels), or (rows, numbers).
    outputs: Array
    #: The class of each row, (rows,); otherwise as the outputs.
    targets: Array
    kind: LossKind
    #: The weight of each row if samples have weights, (rows,): for figures of numbers, as in their losses.
    weights: Array | None = None
    #: The deviation of each number in the units of the labels, (1,) or (numbers,), if numbers were scaled by it.
    deviations: Array | None = None


#: Returns the figure of sums, the mean loss, and the mean squared error of always predicting the targets' mean, None if
#: that is not needed.
FigureOf = Callable[[Sums, float, float | None], float]


class Metric(msgspec.Struct, frozen=True):
    """A metric of the library, or of the user, whose function is elsewhere."""

    #: The losses that it goes with; those of the user, too, if it has sums.
    kinds: frozenset[LossKind]
    #: How many sums there are, or of each class if it counts by class.
    width: int
    figure: FigureOf
    #: Sums of rows, `width` or `width * classes`; None of a metric without sums, or of the user.
    sums: Callable[[ComparedRows], Sequence[float]] | None = None
    is_by_class: bool = False
    #: Whether all sums are whole numbers, which are exact in any order.
    is_whole: bool = False
    #: None if that is unknown.
    is_higher_better: bool | None = True

    def goes_with(self, kind: LossKind) -> bool:
        """Tell whether a job with a loss of that kind may name the metric."""
        return kind in self.kinds or (kind is LossKind.OWN and self.width > 0)


# Sums


def _right(rows: ComparedRows) -> Sequence[float]:
    if rows.kind is LossKind.LABELS:
        return float(np.count_nonzero((rows.outputs > 0.0) == (rows.targets > 0.5))), float(rows.targets.size)
    return float(np.count_nonzero(rows.outputs.argmax(axis=1) == rows.targets)), float(len(rows.targets))


def _among(best: int) -> Callable[[ComparedRows], Sequence[float]]:
    """Return what counts the rows whose class is among so many of the largest outputs; of equal ones the first are."""

    def sums(rows: ComparedRows) -> Sequence[float]:
        own = np.take_along_axis(rows.outputs, rows.targets[:, np.newaxis], axis=1)
        is_before = (rows.outputs == own) & (np.arange(rows.outputs.shape[1]) < rows.targets[:, np.newaxis])
        places = np.count_nonzero((rows.outputs > own) | is_before, axis=1)
        return float(np.count_nonzero(places < best)), float(len(rows.targets))

    return sums


def _by_class(rows: ComparedRows) -> Sequence[float]:
    """Count of each class, or label, how often it was predicted rightly, was predicted, and was the target."""
    classes = rows.outputs.shape[1]
    if rows.kind is LossKind.LABELS:
        predicted, actual = rows.outputs > 0.0, rows.targets > 0.5
        counts = [np.count_nonzero(each, axis=0) for each in (predicted & actual, predicted, actual)]
    else:
        predicted = rows.outputs.argmax(axis=1)
        found = rows.targets[predicted == rows.targets], predicted, rows.targets
        counts = [np.bincount(each, minlength=classes) for each in found]
    sums: list[float] = np.concatenate(counts).astype(np.float64).tolist()
    return sums


def _errors(size_of: Callable[[Sums], Sums], *, has_units: bool = True) -> Callable[[ComparedRows], Sequence[float]]:
    """Return what adds up errors of numbers, whose size that function has: in the units of the labels, or scaled."""

    def sums(rows: ComparedRows) -> Sequence[float]:
        errors = rows.outputs.astype(np.float64) - rows.targets
        # The difference is scaled, and not both numbers: of those far from 0, float32 would keep nothing of it.
        errors = size_of(errors if rows.deviations is None or not has_units else errors * rows.deviations)
        if rows.weights is None:
            return halved_sum(errors), float(errors.size)
        weights = rows.weights.astype(np.float64)
        return halved_sum(errors * weights[:, np.newaxis]), halved_sum(weights) * errors.shape[1]

    return sums


# Figures


def _mean(sums: Sums, loss: float = 0.0, guess: float | None = None) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _root_mean(sums: Sums, loss: float, guess: float | None) -> float:
    return math.sqrt(_mean(sums))


def _perplexity(sums: Sums, loss: float, guess: float | None) -> float:
    # Above e^700, a float64 is near its end; a loss may not be infinite either.
    return loss if math.isnan(loss) else exp(min(loss, 700.0))


#: R² if all targets are equal, so that there is nothing to explain: a number, because epochs are compared by it.
NOTHING_EXPLAINED = 0.0


def _explained(mean_square: float, guess: float | None) -> float:
    return 1.0 - mean_square / guess if guess else NOTHING_EXPLAINED


def _mean_over_classes(of_class: Callable[[Sums, Sums, Sums], tuple[Sums, Sums]]) -> FigureOf:
    """Return the mean, over classes that were predicted or were targets, of a quotient of their counts."""

    def figure(sums: Sums, loss: float, guess: float | None) -> float:
        right, predicted, actual = sums.reshape(3, -1)
        there = predicted + actual > 0
        over, under = of_class(right[there], predicted[there], actual[there])
        return halved_sum(over / under) / len(over) if len(over) else 0.0

    return figure


_CLASSES, _LABELS = frozenset({LossKind.CLASSES}), frozenset({LossKind.LABELS})
_NUMBERS = frozenset({LossKind.NUMBERS})

#: By name, in the order in which errors and docs name them; besides these, `topK` for any K.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(_CLASSES | _LABELS, 2, _mean, _right, is_whole=True),
    "top5": Metric(_CLASSES, 2, _mean, _among(5), is_whole=True),
    # 2PR / (P + R), in counts; van Rijsbergen, "Information Retrieval", 1979.
    "f1": Metric(
        _CLASSES | _LABELS,
        3,
        _mean_over_classes(lambda right, predicted, actual: (2.0 * right, predicted + actual)),
        _by_class,
        is_by_class=True,
        is_whole=True,
    ),
    # Jaccard's index.
    "iou": Metric(
        _CLASSES | _LABELS,
        3,
        _mean_over_classes(lambda right, predicted, actual: (right, predicted + actual - right)),
        _by_class,
        is_by_class=True,
        is_whole=True,
    ),
    "perplexity": Metric(_CLASSES, 0, _perplexity, is_higher_better=False),
    "mae": Metric(_NUMBERS, 2, _mean, _errors(np.abs), is_higher_better=False),
    "rmse": Metric(_NUMBERS, 2, _root_mean, _errors(np.square), is_higher_better=False),
    # As the guess: several numbers are explained as well as each of them is, whatever their units.
    "r2": Metric(
        _NUMBERS, 2, lambda sums, loss, guess: _explained(_mean(sums), guess), _errors(np.square, has_units=False)
    ),
}

#: R² if the loss is the mean squared error: there is nothing to add up again.
_R2_OF_LOSS = Metric(_NUMBERS, 0, lambda sums, loss, guess: _explained(loss, guess))

#: That of the user, by the number that its function returns and its divisor.
_OWN = Metric(frozenset(LossKind), 2, _mean, is_higher_better=None)

_TOP = re.compile(r"top([1-9][0-9]{0,3})")

#: As errors name them.
KNOWN = ", ".join("topK (as top5)" if name == "top5" else name for name in METRICS)


def is_named(value: str) -> bool:
    """Tell whether a value of a job's metrics names one of the library."""
    return value in METRICS or _TOP.fullmatch(value) is not None


def metric_name(value: str) -> str:
    """Return the name of the figure of a job's value: that of the function if it is the user's."""
    return value if is_named(value) else value.rpartition(":")[2]


def metric_of(value: str, loss: str) -> Metric:
    """Return a metric by a job's value: one without a name in the library is that of the user."""
    if value == "r2" and loss == "mse":
        return _R2_OF_LOSS
    if value not in METRICS and (found := _TOP.fullmatch(value)):
        return Metric(_CLASSES, 2, _mean, _among(int(found[1])), is_whole=True)
    return METRICS.get(value, _OWN)


def score_metric(loss: str) -> str:
    """Return the metric that a loss has unasked, empty if it has none."""
    if kind_of(loss) in (LossKind.CLASSES, LossKind.LABELS):
        return "accuracy"
    return "r2" if loss == "mse" else ""


class Metrics(msgspec.Struct, frozen=True):
    """The metrics of a job by name: those that it names, after the one that its loss has unasked."""

    by_name: Mapping[str, Metric]

    @classmethod
    def of(cls, loss: str, values: Iterable[str]) -> "Metrics":
        """Return the metrics of a job with that loss that names these."""
        unasked = score_metric(loss)
        wanted = dict.fromkeys([*([unasked] if unasked else []), *values])
        return cls({metric_name(value): metric_of(value, loss) for value in wanted})

    @property
    def is_whole(self) -> bool:
        """True if all sums are whole numbers, which are exact in any order."""
        return all(metric.is_whole for metric in self.by_name.values() if metric.width)

    @property
    def needs_guess(self) -> bool:
        """True if a figure is measured by the variance of the targets."""
        return "r2" in self.by_name

    def size(self, classes: int) -> int:
        """Return how many sums there are of all metrics."""
        return sum(metric.width * (classes if metric.is_by_class else 1) for metric in self.by_name.values())

    def figures(self, sums: Sequence[float], loss: float, guess: float | None = None) -> dict[str, float]:
        """Return by name the figures of sums of all metrics, a mean loss and a guess as of `FigureOf`.

        No sums are those over no rows.
        """
        array = np.array(sums or [0.0] * self.size(1), np.float64)
        by_class = sum(metric.width for metric in self.by_name.values() if metric.is_by_class)
        fixed = self.size(0)
        classes = (len(array) - fixed) // by_class if by_class else 0
        found, start = dict[str, float](), 0
        for name, metric in self.by_name.items():
            end = start + metric.width * (classes if metric.is_by_class else 1)
            found[name], start = metric.figure(array[start:end], loss, guess), end
        return found


class Guess(NamedTuple):
    """The mean squared errors of always predicting the mean of a set's targets."""

    train: float
    test: float
    #: None without a validation set.
    validation: float | None = None


def explained(r2: float | None) -> float | None:
    """Return R² for programs: None if all targets are equal."""
    return None if r2 == NOTHING_EXPLAINED else r2


class Score(NamedTuple):
    """The figures of a tally, besides its loss; those that the job does not have are None."""

    #: The share of right answers.
    accuracy: float | None
    #: The coefficient of determination: the share of the targets' variance that is explained, at most 1.
    r2: float | None
    #: All other metrics of the job, by name.
    others: Mapping[str, float] = MappingProxyType({})

    def text(self) -> str:
        """Return the first number without its name, empty without a number; a dash for R² of targets that are equal."""
        if self.accuracy is not None:
            return f"{self.accuracy:.2%}"
        if self.r2 is None:
            return ""
        return "-" if explained(self.r2) is None else f"{self.r2:.4f}"

    @property
    def name(self) -> str:
        """The name of that number, empty without a number."""
        if self.accuracy is not None:
            return "accuracy"
        return "" if self.r2 is None else "R²"

    def named(self, prefix: str) -> dict[str, float]:
        """Return the other metrics, by their names after a prefix."""
        return {f"{prefix}{name}": value for name, value in self.others.items()}


def score_of(metrics: Metrics, tally: Tally, guess: float | None = None) -> Score:
    """Return the score of a tally by a job's metrics; R² is measured against `guess`."""
    found = metrics.figures(tally.metrics, tally.loss, guess)
    accuracy, r2 = found.pop("accuracy", None), found.pop("r2", None)
    return Score(accuracy, r2, found)
