"""Handles leases that fail: those that raise, values that are not finite, results that cannot be true. Pure.

Gradients have to be believed, or audited. Figures that follow from the job alone do not: the step's sums are divided by
the counts, and a wrong one would change all weights.
"""

import math
from collections.abc import Sequence

import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, RemoteProtocolError
from lockstep.common.files.sanitize import indented, one_line
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.protocol.messages import (
    OF_A_STEP,
    ComputeFailed,
    Diverged,
    Quantity,
    Result,
    Work,
)
from lockstep.ps.coordinator.effects import Report
from lockstep.ps.coordinator.events import PartFailed
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.scheduling.round_state import RoundState
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import EVALUATIONS, Round

#: Shares of a step that are named.
MOST_SHARES = 16


# Leases that fail


def lease_failed(member: Member, failed: ComputeFailed, state: RoundState) -> PartFailed | Report | None:
    """Record a lease that raised; return the run's failure or a report, None if the lease had ended."""
    at, lease = state.round, state.leases.numbered(member.rank, failed.number)
    if lease is None:
        return None
    is_second = state.leases.record_failure(lease)
    raised = one_line(failed.traceback.strip().rpartition("\n")[2])
    state.account.record_recomputed(at.work, at.step, [lease.node], member.rank, f"it raised: {raised}")
    what = f"{at.named([lease.node])} on {member.named()}"
    if is_second:
        text = f"{what} raised, as it did before:\n{indented(failed.traceback)}"
        return PartFailed(text=text, kind=FailureKind.COMPUTE)
    return Report(text=f"{what} raised, and is tried once more:\n{indented(failed.traceback)}")


def diverged_by(member: Member, found: Diverged, at: Round) -> str:
    """Describe that a loss or gradient of a member is not finite."""
    who = member.named() if found.quantity == "gradient" else ""
    return diverged_text(at.work, at.step, found.micro_batch, found.layer, found.quantity, who)


def is_asked(member: Member, found: Diverged, state: RoundState) -> bool:
    """Tell whether a worker was asked for a micro-batch that no other worker has computed meanwhile."""
    lease = state.leases.numbered(member.rank, found.number)
    return lease is not None and lease.node.lo <= found.micro_batch < lease.node.hi


def diverged_text(
    work: Work, step: int, micro_batch: int, layer: str, quantity: Quantity = "loss", who: str = ""
) -> str:
    """Describe where a value that is not finite was first seen, and what to do.

    `who` computed it, unless that is this process.
    """
    what = "micro-batch" if work == "train" else f"{EVALUATIONS[work]} chunk"
    where = f"layer {layer}" if quantity == "loss" else f"that of {layer!r}"
    by = f" by {who}," if who else ""
    return (
        f"the {quantity} of step {step}, {what} {micro_batch},{by} is not finite; first seen in {where}: "
        "lower the learning rate (--lr), warm it up (--set warmup_steps=100) or clip the gradient (--set clip_norm=1)"
    )


def not_finite_text(step: int, parameter: str, shares: Sequence[tuple[int, int, str]]) -> str:
    """Describe which weights are not finite, whose sums led to them, and how to find out which of these are to blame.

    `shares` are `(lo, hi, who)`. The sums are added up by then: only computing a micro-batch again shows what it gave.
    """
    named = ", ".join(f"{Node(lo, hi)} by {who}" for lo, hi, who in shares[:MOST_SHARES])
    more = f" and {len(shares) - MOST_SHARES} more" if len(shares) > MOST_SHARES else ""
    where = f", first of {parameter!r}," if parameter else ""
    return (
        f"the weights{where} after step {step} are not finite, although every loss was; they were updated from "
        f"micro-batches {named}{more}. "
        f"Compute one again with `lockstep replay RUN --step {step} --micro-batch M`: if its gradient is not finite, "
        "lower the learning rate or clip (--lr, --set clip_norm=1); if it is, its worker sent something else"
    )


# Results that cannot be true


def check_result(result: Result, info: RunInfo) -> None:
    """Raise RemoteProtocolError if a result contradicts the job."""
    if fault := contradiction(result, info):
        raise RemoteProtocolError(fault)


def contradiction(result: Result, info: RunInfo) -> str:
    """Describe how a result contradicts the job, empty if it does not."""
    if result.start is not None and result.work != "train":
        return f"sums with the result of {result.work!r} work: expected them of training only"
    if result.work in OF_A_STEP and len(result.losses) != 4 * max(0, result.hi - result.lo):
        return f"losses of {len(result.losses)} bytes: expected 4 for each of its micro-batches"
    if not math.isfinite(result.loss_sum) or first_not_finite(np.frombuffer(result.losses, "<f4")) is not None:
        return f"a sum of losses that is not finite, {result.loss_sum}: expected a report of that instead"
    samples = _samples(result, info)
    if samples is not None and result.count != (count := samples * info.targets):
        return f"a count of {result.count} for micro-batches {result.node()} of step {result.step}: expected {count}"
    if result.ignored > result.count:
        return f"{result.ignored} of {result.count} targets that are ignored: expected at most as many as there are"
    if result.weight is not None and not 0.0 <= result.weight < math.inf:
        return f"targets that weigh {result.weight}: expected a finite number of at least 0"
    if result.metrics and len(result.metrics) != 8 * info.metric_sums:
        return f"sums of metrics of {len(result.metrics)} bytes: expected {8 * info.metric_sums}"
    if first_not_finite(np.frombuffer(result.metrics, "<f8")) is not None:
        return "a sum of a metric that is not finite: expected finite ones"
    return ""


def _samples(result: Result, info: RunInfo) -> int | None:
    """Return the number of samples in micro-batches of a training step, None if they are not of this run."""
    job, plan = info.job, info.plan
    if result.work not in OF_A_STEP or not 0 <= result.lo < result.hi <= job.micro_batches:
        return None
    start = result.step % plan.steps_per_epoch * job.global_batch
    batch = min(job.global_batch, info.training_samples - start)
    return result.hi * batch // job.micro_batches - result.lo * batch // job.micro_batches
