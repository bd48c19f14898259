"""Check that labels are classes numbered from 0, as many as the model has outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.checking.checkup.finding import Finding

#: Largest share of the training samples that one class may have.
MOST_OF_ONE = 0.9


def check_labels(train: NDArray[Any], test: NDArray[Any], *, is_sequence: bool = False) -> list[Finding]:
    """Return why these arrays are not classes, which rules out further checks. A sequence has a row of them."""
    for name, labels in (("training", train), ("test", test)):
        finding = _not_classes(name, labels, is_sequence)
        if finding is not None:
            return [finding]
    return []


def check_classes(train: NDArray[Any], test: NDArray[Any], outputs: int) -> list[Finding]:
    """Return whether the classes, whole numbers from 0, do not fit that number of outputs."""
    most = int(max(train.max(initial=0), test.max(initial=0)))
    if most >= outputs:
        return [_out_of_range(int(min(train.min(initial=most), test.min(initial=most))), most, outputs)]
    if most + 1 < outputs:
        return [_too_many_outputs(most, outputs)]
    return []


def check_balance(train: NDArray[Any], test: NDArray[Any]) -> list[Finding]:
    """Return whether a class is missing from the training samples or has nearly all of them."""
    counts = np.bincount(train)
    missing = sorted({int(label) for label in np.unique(test)} - set(np.flatnonzero(counts).tolist()))
    findings = []
    if missing:
        findings.append(
            Finding(
                kind="labels",
                what=f"class {missing[0]} is in the test set and not in the training set",
                evidence=f"{len(missing)} of {len(np.unique(test))} classes of the test set have no training sample",
                cause="the samples were sorted by class before they were split, or a file belongs to other data",
                change="shuffle all samples, then split them",
            )
        )
    if len(counts) > 1 and counts.max() > MOST_OF_ONE * len(train):
        findings.append(
            Finding(
                kind="labels",
                what=f"nearly all training samples are of class {int(counts.argmax())}",
                evidence=f"{int(counts.max()):,} of {len(train):,}",
                cause="a model that always predicts this class has that accuracy, and learning more gains little",
                change="use as many samples of each class, or compare figures per class (lockstep evaluate)",
            )
        )
    return findings


def _not_classes(name: str, labels: NDArray[Any], is_sequence: bool) -> Finding | None:
    if labels.ndim == 2 and not is_sequence:
        return _finding(
            f"the {name} labels are rows and not numbers",
            f"their shape is {labels.shape}",
            "they are one-hot, or scores",
            "pass labels.argmax(axis=1)",
        )
    if labels.dtype.kind not in "iu":
        return _finding(
            f"the {name} labels are not whole numbers",
            f"their dtype is {str(labels.dtype)!r}",
            "they were read or computed as real numbers; or they are not classes, and this is a regression",
            "pass labels.astype(numpy.int64), or set loss = 'mse'",
        )
    if labels.size and int(labels.min()) < 0:
        return _finding(
            f"a {name} label is out of range",
            f"label {int(labels.min())} at index {int(labels.argmin())}",
            "classes are numbered from 0; a negative number, often -1, marks a sample without a class",
            "remove such samples, or number the classes from 0",
        )
    return None


def _out_of_range(least: int, most: int, outputs: int) -> Finding:
    is_from_one = least == 1 and most == outputs
    return _finding(
        f"labels are out of range: {least} to {most}, and the model has {outputs} outputs",
        f"label {most} needs {most + 1} outputs",
        "the classes are numbered from 1" if is_from_one else f"the model was made for {outputs} classes",
        "pass labels - 1" if is_from_one else f"give the last layer {most + 1} outputs, or correct the labels",
    )


def _too_many_outputs(most: int, outputs: int) -> Finding:
    return _finding(
        f"the model has {outputs} outputs for {most + 1} classes",
        f"the largest label is {most}",
        "the model was made for other data, or classes are missing from this data",
        f"give the last layer {most + 1} outputs",
    )


def _finding(what: str, evidence: str, cause: str, change: str) -> Finding:
    return Finding(kind="labels", what=what, evidence=evidence, cause=cause, change=change)
