"""What a worker states about a result: the digest by which its bits are compared. Knows no transport."""

import hashlib
import struct
from collections.abc import Sequence

from lockstep.common.aggregation.tree import Vector
from lockstep.common.job.tally import Tally, pack_losses


def result_digest(sums: Vector, losses: Sequence[float], tally: Tally) -> str:
    """Return the SHA-256, in hex, by which an audit tells whether another worker's result has the same bits.

    It is taken of the sums as they are sent, the sum of losses of each micro-batch, and the tally.
    """
    digest = hashlib.sha256(sums.data)
    digest.update(pack_losses(losses))
    digest.update(struct.pack("<dqqqd", tally.loss_sum, tally.correct, tally.count, tally.ignored, tally.divisor))
    return digest.hexdigest()
