"""What a person is told when a loss is not finite. Pure."""

from common.messages import Work


def diverged_text(work: Work, step: int, piece: int, layer: str) -> str:
    """Return where it was first seen, and what to do."""
    what = "micro-batch" if work == "train" else "evaluation piece"
    return (
        f"the loss of step {step}, {what} {piece}, is not finite; first seen in layer {layer}: "
        "lower the learning rate, warm it up or clip the gradient (--lr, --warmup-steps, --clip-norm)"
    )
