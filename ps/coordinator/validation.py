"""Whether what a worker says that pieces came to can be so. Pure.

Its gradients have to be believed, or audited; what follows from the job alone does not. The step's sums are divided by
the counts: one that is wrong would change all weights.
"""

import math

import numpy as np

from common.aggregation.tree import Node
from common.errors import RemoteProtocolError
from common.protocol.messages import OF_A_STEP, Result
from ps.run.info import RunInfo


def demand_plausible(result: Result, facts: RunInfo) -> None:
    """Raise RemoteProtocolError where something cannot be so."""
    if fault := objection(result, facts):
        raise RemoteProtocolError(fault)


def not_finite(step: int, node: Node) -> RemoteProtocolError:
    """Return what is to be said of sums that would make all others infinite, or no numbers.

    A worker that finds a gradient which is not finite tells of it instead of sending it, and the run ends: so whoever
    sends one computes wrongly, or lies, and its pieces are for others.
    """
    return RemoteProtocolError(f"a gradient that is not finite, of micro-batches {node} of step {step}")


def objection(result: Result, facts: RunInfo) -> str:
    """Return what cannot be so, empty where there is nothing of that kind."""
    if result.work in OF_A_STEP and len(result.losses) != 4 * max(0, result.hi - result.lo):
        return f"losses of {len(result.losses)} bytes: expected 4 for each of its pieces"
    if not (math.isfinite(result.loss_sum) and np.isfinite(np.frombuffer(result.losses, "<f4")).all()):
        return f"a sum of losses that is not finite, {result.loss_sum}: expected to be told of that by itself"
    samples = _samples(result, facts)
    if samples is not None and result.count != samples * facts.targets:
        pieces = result.node()
        return f"a count of {result.count} for micro-batches {pieces} of step {result.step}: expected {samples}"
    return ""


def _samples(result: Result, facts: RunInfo) -> int | None:
    """Return the number of samples in pieces of a training step, None where it is none of this run."""
    job, plan = facts.job, facts.plan
    if result.work not in OF_A_STEP or not 0 <= result.lo < result.hi <= job.micro_batches:
        return None
    start = result.step % plan.steps_per_epoch * job.global_batch
    batch = min(job.global_batch, facts.training_samples - start)
    return result.hi * batch // job.micro_batches - result.lo * batch // job.micro_batches
