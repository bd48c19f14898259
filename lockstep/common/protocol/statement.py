"""A worker's statement about a result: the digest by which its bits are compared, and the signed text. Pure."""

import hashlib
import struct
from collections.abc import Sequence

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.job.tally import Tally, pack_losses, pack_sums


def result_digest(sums: Vector, losses: Sequence[float], tally: Tally) -> str:
    """Return the SHA-256, in hex, by which an audit tells whether another worker's result has the same bits.

    It is taken of the sums as they are sent, the sum of losses of each micro-batch, and the tally.
    """
    digest = hashlib.sha256(sums.data)
    digest.update(pack_losses(losses))
    digest.update(struct.pack("<dqqd", tally.loss_sum, tally.count, tally.ignored, tally.divisor))
    digest.update(pack_sums(tally.metrics))
    return digest.hexdigest()


#: Begins every signed text, so that it cannot be mistaken for another kind of text.
_PREFIX = b"lockstep result 1\n"


def statement_of(run: str, job: str, step: int, node: Node, digest: str) -> bytes:
    """Return what a worker signs: that the micro-batches of a node, at a step of a run, have a result of this digest.

    `run` names the run, and `job` is the digest of its job, which the worker knows by itself.
    """
    return _PREFIX + f"run {run}\njob {job}\nstep {step}\nmicro-batches {node.lo} {node.hi}\ndigest {digest}\n".encode()


def signed_run(name: str, first_link: str) -> str:
    """Return what names a run in signatures: its name, and all that its bits follow from.

    `first_link` is the first link of its receipt, over the job, the data, the model and the first weights.
    """
    return hashlib.sha256(f"{name} {first_link}".encode()).hexdigest()
