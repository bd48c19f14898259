"""What is counted along with the gradients of some samples; it is summed over the same tree."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Sum of losses, number of correct answers, number of samples."""

    #: Added in float64: over a whole epoch float32 would lose digits.
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.loss_sum + other.loss_sum, self.correct + other.correct, self.count + other.count)

    @property
    def loss(self) -> float:
        """The mean loss, 0 over no samples."""
        return self.loss_sum / self.count if self.count else 0.0

    @property
    def accuracy(self) -> float:
        """The share of correct answers, 0 over no samples."""
        return self.correct / self.count if self.count else 0.0


def pack_losses(losses: Sequence[float]) -> bytes:
    """Return the loss sums of micro-batches as little-endian float32: the bits that they computed."""
    return struct.pack(f"<{len(losses)}f", *losses)
