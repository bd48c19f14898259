"""Check the data: labels are classes numbered from 0, as many as the model has outputs, and samples suit training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.checking.checkup.activations import SAMPLES
from lockstep.checking.checkup.target import ExaminedData, Finding, class_named, found
from lockstep.common.data.columns import ColumnKind
from lockstep.common.data.folder import flag

#: Largest share of the training samples that one class may have.
MOST_OF_ONE = 0.9

#: So many test samples of a class that has none would be expected: by chance, that happens once in e^20 times.
EXPECTED_OF_A_CLASS = 20

#: Deviations and means that need no normalisation; bytes divided by 255 are well within.
LEAST_DEVIATION, MOST_DEVIATION, MOST_MEAN = 0.02, 10.0, 10.0

#: Rows that are looked at for what a feature says, and the fewest by which one is called the target.
MOST_ROWS, LEAST_ROWS = 20_000, 20

#: The least correlation of a feature that is the target in other units.
ON_A_LINE = 0.99999

#: Signs of targets that are classes: fewer than so many, and each of them at least so often. The values of a feature
#: that gives the class are as frequent on average.
MOST_CLASSES, LEAST_OF_A_CLASS = 20, 5

#: The largest deviation of one feature, as a multiple of the median deviation.
MOST_OF_A_FEATURE = 100.0

#: The largest ratio of two columns' deviations, and of a column's mean to its deviation, that needs no scaling.
MOST_UNSCALED = 10.0


def check_labels(train: NDArray[Any], test: NDArray[Any], *, is_sequence: bool = False) -> list[Finding]:
    """Return why these arrays are not classes, which rules out further checks. A sequence has a row of them."""
    for name, labels in (("training", train), ("test", test)):
        if labels.ndim == 2 and not is_sequence:
            return [_of_rows(name, labels)]
        if labels.dtype.kind not in "iu":
            return [found("labels-are-real", name=name, dtype=str(labels.dtype))]
        if labels.size and labels.min() < 0:
            return [found("label-is-negative", name=name, label=labels.min(), index=labels.argmin())]
    return []


def _of_rows(name: str, labels: NDArray[Any]) -> Finding:
    """Return why labels have two axes: they are one-hot, numbers of a regression, or the column of a table."""
    is_real = labels.dtype.kind == "f"
    # Scores of classes are at least two, and add up to 1.
    if labels.shape[1] > 1 and (not is_real or np.allclose(labels.sum(axis=1), 1.0, atol=1e-3)):
        return found("labels-are-rows", name=name, shape=labels.shape)
    if is_real:
        return found("labels-are-rows-of-numbers", name=name, shape=labels.shape, dtype=str(labels.dtype))
    return found("labels-are-a-column", name=name, shape=labels.shape)


def check_classes(train: NDArray[Any], test: NDArray[Any], outputs: int) -> list[Finding]:
    """Return whether the classes, (targets,) of whole numbers from 0, do not fit that number of outputs."""
    most = int(max(train.max(initial=0), test.max(initial=0)))
    least = int(min(train.min(initial=most), test.min(initial=most)))
    if (least, most) == (1, outputs):
        return [found("labels-begin-with-1", most=most, needed=most + 1)]
    if most >= outputs:
        return [found("labels-out-of-range", least=least, most=most, outputs=outputs, needed=most + 1)]
    if most + 1 < outputs:
        return [found("too-many-outputs", most=most, classes=most + 1, outputs=outputs)]
    return []


def check_balance(
    train: NDArray[Any], test: NDArray[Any], names: Sequence[str] = (), *, may_dominate: bool = False
) -> list[Finding]:
    """Return whether a class is missing from one of the two sets, or, unless it may, has nearly all samples."""
    counts, tested, findings = np.bincount(train), np.unique(test), list[Finding]()
    missing = np.setdiff1d(tested, np.flatnonzero(counts))
    if missing.size:
        named = class_named(missing[0], names)
        findings.append(found("class-is-missing", named=named, missing=missing.size, classes=tested.size))
    else:
        findings += _untested(counts, tested, len(test), names)
    if not may_dominate and len(counts) > 1 and counts.max() > MOST_OF_ONE * len(train):
        named = class_named(int(counts.argmax()), names)
        findings.append(found("one-class", named=named, count=counts.max(), samples=len(train)))
    return findings


def _untested(counts: NDArray[np.int64], tested: NDArray[Any], tests: int, names: Sequence[str]) -> list[Finding]:
    """Return whether classes are missing from a test set in which they would not be by chance."""
    expected = counts / counts.sum() * tests
    untested = np.setdiff1d(np.flatnonzero(expected >= EXPECTED_OF_A_CLASS), tested)
    if not untested.size:
        return []
    facts = {"missing": untested.size, "classes": np.count_nonzero(counts), "expected": expected[untested[0]]}
    return [found("class-is-not-tested", named=class_named(untested[0], names), **facts)]


def check_samples(target: ExaminedData) -> list[Finding]:
    """Return whether the samples that the model receives do not have a mean near 0 and a deviation of about 1."""
    images, _ = target.batch(0, SAMPLES)
    if target.data.train.is_tokens:
        return []
    if unscaled := check_scales(target):
        return [*unscaled, *check_features(target)]
    mean, deviation = float(np.mean(images, dtype=np.float64)), float(np.std(images, dtype=np.float64))
    if deviation == 0:
        return [found("samples-are-equal", value=mean)]
    if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION or abs(mean) > MOST_MEAN:
        name = "far-from-the-rest" if target.job.normalize else "not-normalised"
        return [found(name, mean=mean, deviation=deviation)]
    if images.ndim != 2:
        return []
    return [*_uneven(target, np.std(images, axis=0, dtype=np.float64)), *check_features(target)]


def check_scales(target: ExaminedData) -> list[Finding]:
    """Return whether the columns of a table were packed as they are, and are of very different sizes."""
    columns = target.columns
    if any((column.mean, column.std) != (0.0, 1.0) for column in columns):
        return []
    rows = target.data.train.images[:MOST_ROWS]
    is_scaled = [column.kind is not ColumnKind.CATEGORY for column in columns for _ in column.inputs]
    means, deviations = (np.atleast_1d(each(rows, axis=0, dtype=np.float64)) for each in (np.mean, np.std))
    varying = [place for place in np.flatnonzero(is_scaled).tolist() if deviations[place] > 0]
    if not varying:
        return []
    farthest = max(varying, key=lambda place: max(abs(means[place]), deviations[place]))
    nearest = min(varying, key=lambda place: deviations[place])
    is_uneven = deviations[farthest] > MOST_UNSCALED * deviations[nearest]
    if not is_uneven and max(np.abs(means[varying]) / deviations[varying]) <= MOST_UNSCALED:
        return []
    facts = {"mean": means[farthest], "deviation": deviations[farthest]}
    facts |= {"other_mean": means[nearest], "other_deviation": deviations[nearest]}
    return [found("unscaled-columns", named=target.named(farthest), other=target.named(nearest), **facts)]


def check_features(target: ExaminedData) -> list[Finding]:
    """Return whether a feature is the same in all samples, or is the target in other words.

    A feature that is always 0 is harmless, as the corners of pictures that were made rows. A column with one number has
    become 0 too where the columns are standardized.
    """
    train = target.data.train
    features, targets = train.images[:MOST_ROWS], target.objective.targets(train.labels[:MOST_ROWS])
    for feature, column in enumerate(features.T):
        named = target.column_of(feature)
        value = float(column[0]) or (named.mean if named is not None and named.kind is ColumnKind.NUMBER else 0.0)
        if value and (column == column[0]).all():
            return [_of_feature("constant-feature", target, feature, value=value, samples=len(features))]
    is_regression = target.objective.is_regression
    feature = 0
    # A column with an input for each category gives the target by all of them together.
    for width in [len(column.inputs) for column in target.columns] or [1] * features.shape[1]:
        values = features[:, feature : feature + width] @ np.arange(1.0, width + 1)
        if _is_target(values, targets, is_on_line=is_regression and width == 1):
            return [_of_feature("target-leak", target, feature, is_whole=True, samples=len(features))]
        feature += width
    return []


def _of_feature(name: str, target: ExaminedData, feature: int, *, is_whole: bool = False, **facts: float) -> Finding:
    column = target.column_of(feature)
    leave_out = "leave the column out"
    if column is not None:
        leave_out += f" ({flag('drop', [column.name])}, in Python drop=[{column.name!r}])"
    return found(name, named=target.named(feature, is_whole=is_whole), leave_out=leave_out, **facts)


def _is_target(column: NDArray[Any], targets: NDArray[Any], *, is_on_line: bool) -> bool:
    """Return whether one column gives the target: on a straight line, or with one class for each of its values.

    The values are few, or those of each class lie between two bounds. A column with another number in each row would
    give any target otherwise.
    """
    if is_on_line:
        known = targets[:, 0].astype(np.float64)
        if targets.shape[1] > 1 or not column.std() or not known.std():
            return False
        return abs(float(np.corrcoef(column.astype(np.float64), known)[0, 1])) > ON_A_LINE
    if targets.size != len(targets):
        return False
    values, places = np.unique(column, return_inverse=True)
    classes, counts = np.unique(targets, return_counts=True)
    # In the order of the values.
    pairs = np.unique(np.stack([places.reshape(-1), targets.reshape(-1)]), axis=1)
    if len(targets) < LEAST_ROWS or len(classes) < 2 or counts.min() < LEAST_OF_A_CLASS:
        return False
    are_few = len(values) * LEAST_OF_A_CLASS <= len(targets)
    return pairs.shape[1] == len(values) and (are_few or np.count_nonzero(np.diff(pairs[1])) == len(classes) - 1)


def check_loss(target: ExaminedData) -> list[Finding]:
    """Return whether the targets of a regression are all the same, or look like classes.

    These are some whole numbers from 0 on, each often.
    """
    labels = target.data.train.labels[:]
    if target.objective.is_regression and not labels.dtype.names and (labels == labels[:1]).all():
        value = float(target.objective.in_units(target.objective.targets(labels[:1])).reshape(-1)[0])
        return [found("targets-are-equal", value=value, samples=len(labels))]
    if not target.objective.is_regression or labels.reshape(len(labels), -1).shape[1] > 1:
        return []
    values, counts = np.unique(labels, return_counts=True)
    most = len(values) - 1
    are_classes = 2 <= most < MOST_CLASSES and np.array_equal(values, np.arange(most + 1))
    if not are_classes or counts.min() < LEAST_OF_A_CLASS:
        return []
    return [found("classes-as-numbers", classes=most + 1, most=most, samples=len(labels))]


def _uneven(target: ExaminedData, deviations: NDArray[np.float64]) -> list[Finding]:
    """Return whether one of the features, which have these deviations, is much larger than the others."""
    varying = deviations[deviations > 0]
    largest = int(deviations.argmax())
    if not varying.size or deviations[largest] <= MOST_OF_A_FEATURE * np.median(varying):
        return []
    facts = {"deviation": deviations[largest], "median": np.median(varying)}
    return [found("uneven-features", named=target.named(largest), **facts)]
