"""The losses that have a name, and what each compares; no arithmetic."""

from collections.abc import Mapping
from enum import Enum


class LossKind(Enum):
    """The kind of targets with which a loss compares outputs."""

    #: One class of several.
    CLASSES = "classes"
    #: Labels of which each holds or does not: 0 or 1.
    LABELS = "labels"
    #: Real numbers.
    NUMBERS = "numbers"
    #: Whatever the user's own function takes.
    OWN = "own"


#: By name.
LOSSES: Mapping[str, LossKind] = {
    "cross-entropy": LossKind.CLASSES,
    "nll": LossKind.CLASSES,
    "bce": LossKind.LABELS,
    "mse": LossKind.NUMBERS,
    "l1": LossKind.NUMBERS,
    "smooth-l1": LossKind.NUMBERS,
}


def kind_of(loss: str) -> LossKind:
    """Return the kind of a loss: one without a name is that of the user."""
    return LOSSES.get(loss, LossKind.OWN)


def has_accuracy(loss: str) -> bool:
    """Tell whether an output can be right or wrong."""
    return kind_of(loss) in (LossKind.CLASSES, LossKind.LABELS)
