"""The mistakes of a classifier on its test set, those of which it is most certain first."""

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.results.evaluation.assessment import Assessment


def surest_mistakes(assessment: Assessment) -> NDArray[np.intp]:
    """Return the indices of mistakes, those with the smallest probability of the true class first."""
    labels, logits = assessment.targets, assessment.outputs
    own = probabilities_of(logits)[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(own[wrong], kind="stable")]


def probabilities_of(logits: Array) -> Array:
    """Return the softmax of each row, (n, classes), as float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
