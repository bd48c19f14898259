"""What a person is told when a loss is not finite, or a gradient. Pure."""

from collections.abc import Sequence

from common.aggregation.tree import Node
from common.protocol.messages import Quantity, Work
from ps.run.plan import EVALUATIONS

#: What tells those texts from others.
_MARK, _SPOILT = "is not finite; first seen in", "are not finite, and no loss tells of it"

#: Shares of a step that are listed.
MOST_SHARES = 16


def is_divergence(text: str) -> bool:
    """Tell whether a failure is that of a loss, a gradient or weights which are not finite."""
    return _MARK in text or _SPOILT in text


def diverged_text(work: Work, step: int, piece: int, layer: str, quantity: Quantity = "loss", who: str = "") -> str:
    """Return where it was first seen, and what to do; `who` computed it, where that is not this process."""
    what = "micro-batch" if work == "train" else f"{EVALUATIONS[work]} piece"
    where = f"layer {layer}" if quantity == "loss" else f"that of {layer!r}"
    by = f" by {who}," if who else ""
    return (
        f"the {quantity} of step {step}, {what} {piece},{by} {_MARK} {where}: "
        "lower the learning rate, warm it up or clip the gradient (--lr, --warmup-steps, --clip-norm)"
    )


def spoilt_text(step: int, parameter: str, shares: Sequence[tuple[int, int, str]]) -> str:
    """Return which weights it is, whose sums led to them, and how to tell which of these; `shares` as `(lo, hi, who)`.

    The sums are added up by then: what a piece came to is told by computing it again.
    """
    listed = ", ".join(f"{Node(lo, hi)} by {who}" for lo, hi, who in shares[:MOST_SHARES])
    more = f" and {len(shares) - MOST_SHARES} more" if len(shares) > MOST_SHARES else ""
    where = f", first of {parameter!r}," if parameter else ""
    return (
        f"the weights{where} after step {step} {_SPOILT}: they came of micro-batches {listed}{more}: "
        f"`lockstep replay RUN --step {step} --micro-batch M` computes one again: where that finds such a gradient, "
        "lower the learning rate or clip (--lr, --clip-norm); where it finds none, its worker sent something else"
    )
