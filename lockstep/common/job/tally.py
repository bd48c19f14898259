"""What is counted along with the gradients of some samples; it is summed over the same tree."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Sum of losses, number of correct answers, number of targets, and what their sums are divided by."""

    #: Added in float64: over a whole epoch float32 would lose digits.
    loss_sum: float = 0.0
    correct: int = 0
    #: Of all samples, as it follows from their number alone.
    count: int = 0
    #: How many of these targets are none, and in no sum: labels that are `ignore_index`.
    ignored: int = 0
    #: The sum of the targets' weights, added as the losses are; None if each that is not ignored weighs 1.
    weight: float | None = None

    def __add__(self, other: "Tally") -> "Tally":
        is_weighted = self.weight is not None or other.weight is not None
        return Tally(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.count + other.count,
            self.ignored + other.ignored,
            self.divisor + other.divisor if is_weighted else None,
        )

    @property
    def divisor(self) -> float:
        """What sums of losses and of gradients are divided by (rule R1)."""
        return float(self.count - self.ignored) if self.weight is None else self.weight

    @property
    def loss(self) -> float:
        """The mean loss, 0 over no samples."""
        return self.loss_sum / self.divisor if self.divisor else 0.0

    @property
    def accuracy(self) -> float:
        """The share of correct answers, 0 over no samples."""
        return self.correct / (self.count - self.ignored) if self.count > self.ignored else 0.0


def pack_losses(losses: Sequence[float]) -> bytes:
    """Return the loss sums of micro-batches as little-endian float32: the bits that they computed."""
    return struct.pack(f"<{len(losses)}f", *losses)
