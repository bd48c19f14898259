"""Check the data: labels are classes numbered from 0, as many as the model has outputs, and samples suit training."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.checking.checkup.checks.magnitudes import SAMPLES
from lockstep.checking.checkup.finding import Finding, found
from lockstep.checking.checkup.target import ExaminationTarget

#: Largest share of the training samples that one class may have.
MOST_OF_ONE = 0.9

#: Deviations and means that need no normalisation; bytes divided by 255 are well within.
LEAST_DEVIATION, MOST_DEVIATION, MOST_MEAN = 0.02, 10.0, 10.0

#: The largest deviation of one feature, as a multiple of the median deviation.
MOST_OF_A_FEATURE = 100.0


def check_labels(train: NDArray[Any], test: NDArray[Any], *, is_sequence: bool = False) -> list[Finding]:
    """Return why these arrays are not classes, which rules out further checks. A sequence has a row of them."""
    for name, labels in (("training", train), ("test", test)):
        if labels.ndim == 2 and not is_sequence:
            return [found("labels-are-rows", name=name, shape=labels.shape)]
        if labels.dtype.kind not in "iu":
            return [found("labels-are-real", name=name, dtype=str(labels.dtype))]
        if labels.size and labels.min() < 0:
            return [found("label-is-negative", name=name, label=labels.min(), index=labels.argmin())]
    return []


def check_classes(train: NDArray[Any], test: NDArray[Any], outputs: int) -> list[Finding]:
    """Return whether the classes, whole numbers from 0, do not fit that number of outputs."""
    most = int(max(train.max(initial=0), test.max(initial=0)))
    least = int(min(train.min(initial=most), test.min(initial=most)))
    if (least, most) == (1, outputs):
        return [found("labels-begin-with-1", most=most, needed=most + 1)]
    if most >= outputs:
        return [found("labels-out-of-range", least=least, most=most, outputs=outputs, needed=most + 1)]
    if most + 1 < outputs:
        return [found("too-many-outputs", most=most, classes=most + 1, outputs=outputs)]
    return []


def check_balance(train: NDArray[Any], test: NDArray[Any]) -> list[Finding]:
    """Return whether a class is missing from the training samples or has nearly all of them."""
    counts, tested, findings = np.bincount(train), np.unique(test), []
    missing = np.setdiff1d(tested, np.flatnonzero(counts))
    if missing.size:
        findings.append(found("class-is-missing", first=missing[0], missing=missing.size, classes=tested.size))
    if len(counts) > 1 and counts.max() > MOST_OF_ONE * len(train):
        findings.append(found("one-class", label=counts.argmax(), count=counts.max(), samples=len(train)))
    return findings


def check_samples(target: ExaminationTarget) -> list[Finding]:
    """Return whether the samples that the model receives do not have a mean near 0 and a deviation of about 1."""
    images, _ = target.batch(0, SAMPLES)
    if target.data.train.is_tokens:
        return []
    mean, deviation = float(np.mean(images, dtype=np.float64)), float(np.std(images, dtype=np.float64))
    if deviation == 0:
        return [found("samples-are-equal", value=mean)]
    if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION or abs(mean) > MOST_MEAN:
        name = "far-from-the-rest" if target.job.normalize else "not-normalised"
        return [found(name, mean=mean, deviation=deviation)]
    return _uneven(np.std(images, axis=0, dtype=np.float64)) if images.ndim == 2 else []


def _uneven(deviations: NDArray[np.float64]) -> list[Finding]:
    """Return whether one of the features, which have these deviations, is much larger than the others."""
    varying = deviations[deviations > 0]
    largest = int(deviations.argmax())
    if not varying.size or deviations[largest] <= MOST_OF_A_FEATURE * np.median(varying):
        return []
    return [found("uneven-features", largest=largest, deviation=deviations[largest], median=np.median(varying))]
