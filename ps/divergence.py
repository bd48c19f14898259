"""What a person is told when a loss is not finite. Pure."""

from common.messages import Work
from ps.plan import EVALUATIONS

#: What tells that text from others.
_MARK = "is not finite; first seen in layer"


def is_divergence(text: str) -> bool:
    """Tell whether a failure is that of a loss which is not finite."""
    return _MARK in text


def diverged_text(work: Work, step: int, piece: int, layer: str) -> str:
    """Return where it was first seen, and what to do."""
    what = "micro-batch" if work == "train" else f"{EVALUATIONS[work]} piece"
    return (
        f"the loss of step {step}, {what} {piece}, {_MARK} {layer}: "
        "lower the learning rate, warm it up or clip the gradient (--lr, --warmup-steps, --clip-norm)"
    )
