"""Whether the loss starts where guessing does: at log(classes), or at the variance of a regression's targets."""

import math

import numpy as np

from lockstep.doctor.checks.signals import Signals
from lockstep.doctor.finding import Finding

#: How far above guessing the first loss may be: a factor, and a number.
FACTOR, MARGIN = 1.5, 0.5

#: The same for a regression: how many times the loss of who always answers with the mean.
MOST_OF_GUESS = 3.0


def check_first_loss(signals: Signals) -> list[Finding]:
    """Return whether the first loss is too high, or the model's output is no longer one of logits."""
    if not math.isfinite(signals.loss):
        return []
    if not signals.classes:
        return [_far_targets(signals)] if signals.loss > MOST_OF_GUESS * signals.guess > 0 else []
    guess = math.log(signals.classes)
    findings = _probabilities(signals)
    if signals.loss > FACTOR * guess + MARGIN:
        findings.append(_too_high(signals, guess))
    return findings


def _far_targets(signals: Signals) -> Finding:
    size = float(np.std(signals.outputs))
    return Finding(
        kind="first-loss",
        what=f"the loss starts at {signals.loss:.3g}, and always answering with the mean costs {signals.guess:.3g}",
        evidence=f"the model's outputs have mean {float(np.mean(signals.outputs)):.3g} and deviation {size:.3g}",
        cause="the targets are far from 0, or the last layer's weights are too large: that costs the first steps",
        change="subtract the targets' mean and divide by their deviation, or start the last layer smaller",
    )


def _too_high(signals: Signals, guess: float) -> Finding:
    spread = float(np.std(signals.outputs))
    return Finding(
        kind="first-loss",
        what=f"the loss starts at {signals.loss:.2f}, and not near log({signals.classes}) = {guess:.2f}",
        evidence=f"the model's outputs have a deviation of {spread:.3g}, and are sure of wrong classes",
        cause="the last layer's weights are too large, or the samples: guessing all classes alike costs less",
        change="start weights as nn.init.kaiming_normal_ does or smaller, and normalise the data",
    )


def _probabilities(signals: Signals) -> list[Finding]:
    logits = signals.outputs
    if signals.classes < 2 or not ((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4)):
        return []
    return [
        Finding(
            kind="softmax-twice",
            what="the model ends in softmax, which the loss applies once more",
            evidence="its outputs are at least 0 and add up to 1 for each sample",
            cause="cross-entropy takes logits: of probabilities, even a perfect model has a loss of "
            f"{math.log(1 + (signals.classes - 1) / math.e):.2f}, and gradients are small",
            change="take Softmax off the end of the model",
        )
    ]
