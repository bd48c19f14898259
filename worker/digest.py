"""The digest of all that a worker found of some pieces, by which an audit tells whether another one finds the same."""

import hashlib
import struct
from collections.abc import Sequence

from common.aggregation.tree import Vector
from common.job.tally import Tally, pack_losses


def result_digest(sums: Vector, losses: Sequence[float], tally: Tally) -> str:
    """Return the SHA-256, in hex, of the sums as they are sent, the sum of losses of each piece, and their tally."""
    digest = hashlib.sha256(sums.data)
    digest.update(pack_losses(losses))
    digest.update(struct.pack("<dqq", tally.loss_sum, tally.correct, tally.count))
    return digest.hexdigest()
