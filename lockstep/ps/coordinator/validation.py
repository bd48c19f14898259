"""Whether what a worker claims about its result can be true. Pure.

Its gradients have to be believed, or audited; what follows from the job alone does not. The step's sums are divided by
the counts: a wrong one would change all weights.
"""

import math

import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import OF_A_STEP, Result
from lockstep.ps.run.info import RunInfo


def check_result(result: Result, info: RunInfo) -> None:
    """Raise RemoteProtocolError if a result contradicts the job."""
    if fault := contradiction(result, info):
        raise RemoteProtocolError(fault)


def not_finite(step: int, node: Node) -> RemoteProtocolError:
    """Return the error for sums that are not finite, which would spoil all others.

    A worker that finds a gradient which is not finite reports it instead of sending it, and the run ends: a worker that
    sends one computes wrongly, or lies, and its micro-batches go to others.
    """
    return RemoteProtocolError(f"a gradient that is not finite, of micro-batches {node} of step {step}")


def contradiction(result: Result, info: RunInfo) -> str:
    """Describe how a result contradicts the job, empty if it does not."""
    if result.work in OF_A_STEP and len(result.losses) != 4 * max(0, result.hi - result.lo):
        return f"losses of {len(result.losses)} bytes: expected 4 for each of its micro-batches"
    if not (math.isfinite(result.loss_sum) and np.isfinite(np.frombuffer(result.losses, "<f4")).all()):
        return f"a sum of losses that is not finite, {result.loss_sum}: expected a report of that instead"
    samples = _samples(result, info)
    if samples is not None and result.count != (count := samples * info.targets):
        return f"a count of {result.count} for micro-batches {result.node()} of step {result.step}: expected {count}"
    return ""


def _samples(result: Result, info: RunInfo) -> int | None:
    """Return the number of samples in micro-batches of a training step, None if they are not of this run."""
    job, plan = info.job, info.plan
    if result.work not in OF_A_STEP or not 0 <= result.lo < result.hi <= job.micro_batches:
        return None
    start = result.step % plan.steps_per_epoch * job.global_batch
    batch = min(job.global_batch, info.training_samples - start)
    return result.hi * batch // job.micro_batches - result.lo * batch // job.micro_batches
