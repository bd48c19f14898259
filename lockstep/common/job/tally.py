"""The figures that are counted along with the gradients of some samples; a tally is summed over the same tree."""

import hashlib
import operator
import struct
from collections.abc import Sequence

import msgspec

from lockstep.common.aggregation.tree import Vector


class Tally(msgspec.Struct, frozen=True):
    """Sum of losses, number of targets, what sums are divided by, and the sums of metrics."""

    #: Added in float64: over a whole epoch float32 would lose digits.
    loss_sum: float = 0.0
    #: Of all samples, as it follows from their number alone.
    count: int = 0
    #: How many of these targets are none, and in no sum: labels that are `ignore_index`.
    ignored: int = 0
    #: The sum of the targets' weights, added as the losses are; None if each that is not ignored weighs 1.
    weight: float | None = None
    #: The sums of the job's metrics, one after the other, added as the losses are; empty over no samples.
    metrics: tuple[float, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        is_weighted = self.weight is not None or other.weight is not None
        return Tally(
            self.loss_sum + other.loss_sum,
            self.count + other.count,
            self.ignored + other.ignored,
            self.divisor + other.divisor if is_weighted else None,
            added(self.metrics, other.metrics),
        )

    @property
    def divisor(self) -> float:
        """The divisor of the sums of losses and of gradients (rule R1)."""
        return float(self.count - self.ignored) if self.weight is None else self.weight

    @property
    def loss(self) -> float:
        """The mean loss, 0 over no samples."""
        return self.loss_sum / self.divisor if self.divisor else 0.0


def added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    """Return sums of metrics, added one by one; those over no samples are empty."""
    return tuple(map(operator.add, one, other)) if one and other else one or other


def pack_sums(sums: Sequence[float]) -> bytes:
    """Return sums of metrics as little-endian float64; of zeros, which are those over no samples, nothing."""
    return struct.pack(f"<{len(sums)}d", *sums) if any(sums) else b""


def unpacked_sums(packed: bytes) -> tuple[float, ...]:
    """Return the sums that were packed."""
    return struct.unpack(f"<{len(packed) // 8}d", packed[: len(packed) // 8 * 8])


def pack_losses(losses: Sequence[float]) -> bytes:
    """Return the loss sums of micro-batches as little-endian float32: the bits that they computed."""
    return struct.pack(f"<{len(losses)}f", *losses)


def result_digest(sums: Vector, losses: Sequence[float], tally: Tally) -> str:
    """Return the SHA-256, in hex, by which an audit tells whether another worker's result has the same bits.

    It is taken of the sums as they are sent, the sum of losses of each micro-batch, and the tally.
    """
    digest = hashlib.sha256(sums.data)
    digest.update(pack_losses(losses))
    digest.update(struct.pack("<dqqd", tally.loss_sum, tally.count, tally.ignored, tally.divisor))
    digest.update(pack_sums(tally.metrics))
    return digest.hexdigest()
