"""Check the data: both sets have all classes, samples and columns have sizes that suit training, none is the target."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lockstep.checking.doctor.examined_job import ExaminedJob, Finding, Group
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.folder import flag
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.losses import LossKind

#: Largest share of the training samples that one class may have.
MOST_OF_ONE = 0.9

#: So many test samples of a class that has none would be expected: by chance, that happens once in e^20 times.
EXPECTED_OF_A_CLASS = 20

#: Deviations and means that need no normalisation; bytes divided by 255 are well within.
LEAST_DEVIATION, MOST_DEVIATION, MOST_MEAN = 0.02, 10.0, 10.0

#: The largest size of a feature, as a multiple of the median deviation of the features.
MOST_OF_A_FEATURE = 100.0

#: Rows in which the target is looked for, and the fewest by which a feature is called the target.
MOST_ROWS, LEAST_ROWS = 5_000, 20

#: The least correlation of a feature that is the target in other units.
ON_A_LINE = 0.99999

#: Targets are classes if they are fewer than so many numbers, each of them at least so often. The values of a feature
#: that gives the class are as frequent on average.
MOST_CLASSES, LEAST_OF_A_CLASS = 20, 5


def check_data(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield mistakes in targets and samples; samples of several arrays are not looked at."""
    train, kind = subject.data.train, subject.objective.kind
    if train.images.dtype.names or train.labels.dtype.names:
        return
    if kind is LossKind.CLASSES:
        yield from _classes(subject)
    if kind is LossKind.NUMBERS:
        yield from _numbers(train.labels[:])
    if not train.is_tokens:
        yield from _samples(subject)
    if train.images.ndim == 2 and not train.is_tokens and kind in (LossKind.CLASSES, LossKind.NUMBERS):
        yield from _leak(subject)


def _classes(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that one of the sets lacks a class, or that nearly all samples are of one class."""
    job, data = subject.job, subject.data
    names = [repr(one_line(name, 40)) for name in data.class_names] or range(data.train.classes)
    train, test = (labels[labels != job.ignore_index] for labels in (data.train.labels[:], data.test.labels[:]))
    counts, tested = np.bincount(train.reshape(-1)), np.unique(test)
    expected = counts / max(1, counts.sum()) * test.size
    unknown = np.setdiff1d(tested, np.flatnonzero(counts))
    untested = np.setdiff1d(np.flatnonzero(expected >= EXPECTED_OF_A_CLASS), tested)
    for missing, has, lacks in ((unknown, "test", "training"), (untested, "training", "test")):
        if missing.size:
            what = f"class {names[missing[0]]} is in the {has} set and not in the {lacks} set"
            yield Finding(Group.DATA, what, "shuffle all samples before they are split, as `lockstep pack` does")
            return
    # Most of a picture is its background.
    may_dominate = bool(job.class_weights) or data.train.labels.ndim > 2
    if not may_dominate and len(counts) > 1 and counts.max() > MOST_OF_ONE * train.size:
        what = f"{counts.max():,} of {train.size:,} training samples are of class {names[counts.argmax()]}"
        yield Finding(
            Group.DATA, what, "give rare classes more weight (--set class_weights=1,10), or use as many samples of each"
        )


def _numbers(labels: Array) -> Iterator[Finding]:
    """Yield that the targets look like classes."""
    values, counts = np.unique(labels, return_counts=True)
    are_classes = 2 < len(values) <= MOST_CLASSES and np.array_equal(values, np.arange(len(values)))
    if are_classes and labels.size == len(labels) and counts.min() >= LEAST_OF_A_CLASS:
        what = f"the targets are whole numbers from 0 to {len(values) - 1}, as classes are, and the loss compares sizes"
        yield Finding(Group.DATA, what, f"--loss cross-entropy with {len(values)} outputs, unless they are counts")


def _samples(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield that the samples, as the model is given them, are all equal, far from 0, or have very uneven features."""
    images, _ = subject.batch
    mean, deviation = float(np.mean(images, dtype=np.float64)), float(np.std(images, dtype=np.float64))
    if deviation == 0:
        yield Finding(Group.DATA, f"all values of the samples are {mean:.4g}", "check how they were read or converted")
        return
    deviations = np.atleast_1d(np.std(images, axis=0, dtype=np.float64))
    varying, sizes = np.sort(deviations[deviations > 0]), np.maximum(np.abs(np.mean(images, axis=0)), deviations)
    if images.ndim == 2 and sizes.max() > MOST_OF_A_FEATURE * varying[(len(varying) - 1) // 2]:
        scale = "pack without --no-standardize" if subject.columns else "scale each column to mean 0 and deviation 1"
        yield Finding(Group.DATA, f"{subject.named(int(sizes.argmax()))} is far larger than the others", scale)
    elif not LEAST_DEVIATION <= deviation <= MOST_DEVIATION or abs(mean) > MOST_MEAN:
        what = f"the samples are not normalised: they have mean {mean:.4g} and deviation {deviation:.4g}"
        scale = "remove samples that are far from the rest" if subject.job.normalize else "--set normalize=true"
        yield Finding(Group.DATA, what, scale)


def _leak(subject: ExaminedJob) -> Iterator[Finding]:
    """Yield the first feature that is the target in other words."""
    train, objective = subject.data.train, subject.objective
    features, targets = train.images[:MOST_ROWS], objective.targets(train.labels[:MOST_ROWS]).reshape(-1)
    if len(features) < LEAST_ROWS or targets.size != len(features):
        return
    for feature, values in enumerate(features.T):
        if _is_target(values, targets, is_regression=objective.is_regression):
            leave_out = flag("drop", subject.columns[feature : feature + 1]) if subject.columns else "leave it out"
            what = f"{subject.named(feature)} alone gives the target of all {len(features):,} training samples"
            yield Finding(Group.DATA, what, f"{leave_out}, if it is not known when you predict")
            return


def _is_target(values: NDArray[np.float32], targets: Array, *, is_regression: bool) -> bool:
    """Return whether a feature gives the target: on a straight line, or with one class for each of a few values."""
    if is_regression:
        with np.errstate(all="ignore"):  # NaN if one of the two does not vary
            return bool(abs(np.corrcoef(values, targets, dtype=np.float64)[0, 1]) > ON_A_LINE)
    distinct, places = np.unique(values, return_inverse=True)
    if not 2 <= len(distinct) <= len(targets) // LEAST_OF_A_CLASS or len(np.unique(targets)) < 2:
        return False
    return len(np.unique(places.reshape(-1) * (int(targets.max()) + 1) + targets)) == len(distinct)
